"""Fitting the weights of blocks to calibration data: what a block reads and gives in the original network.

Each block is fitted as if it were the only one that is replaced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.walk import split
from onnxsep.engine.factors import Factorized, OutputErrors, block_tensors, factorize_one
from onnxsep.engine.planning import Plan, in_main_graph, naming
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import CalibrationError, FactorizationError, spelled
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.block import BlockMode
from onnxsep.options.progress import Progress, announce
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions


@dataclass
class _Seen:
    """Rows of what a block reads and gives."""

    rows: list[Array] = field(default_factory=list)
    targets: list[Array] = field(default_factory=list)


def fitted_blocks(plan: Plan) -> list[BlockReplacement]:
    """The blocks of a plan that are fitted to data, once where they share all weights.

    They are those of the main graph whose mode does that.
    """
    rows = [row for row in plan.replacements if isinstance(row, BlockReplacement)]
    found = {row.key: row for row in reversed(rows) if row.mode.fits and in_main_graph(row.site)}
    return list(found.values())[::-1]


def fit_blocks(
    model: Model,
    sites: Sites,
    blocks: Sequence[BlockReplacement],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    runtime: RuntimeOptions,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[Place, Factorized | str], int]:
    """Fit blocks to the outputs of the original network on samples; a tenth of them is held out to measure the error.

    Args:
        model: the source.
        sites: where its convolutions are.
        blocks: as ``fitted_blocks`` gives them.
        batches: inputs by name; the first dimension counts samples.
        runtime: how the network is run.
        seed: chooses what is held out.
        progress: told of every block that is done.

    Returns:
        The tensors of each block, or why there are none, by its place; and how many samples were used.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        PassError: a mode failed.
    """
    announce(progress, "running the network", 0, len(blocks))
    seen, samples = _gather(model, sites, blocks, batches, runtime)
    found: dict[Place, Factorized | str] = {}
    for number, (block, one) in enumerate(zip(blocks, seen, strict=True)):
        with naming(block.mode, block.site.name):
            found[block.site.place] = _fit(model, sites, block, one, seed)
        if progress:
            progress(block.site.name, number + 1, len(blocks))
    return found, samples


def _gather(
    model: Model,
    sites: Sites,
    blocks: Sequence[BlockReplacement],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    runtime: RuntimeOptions,
) -> tuple[list[_Seen], int]:
    """What each block reads and gives, and the number of samples."""
    copied = bool(held_types(model))
    outputs = [sites.scopes[0].body.node[block.site.place[1]].output[0] for block in blocks]
    given = {value.name for value in model.proto.graph.input}
    names = dict.fromkeys(name for block, out in zip(blocks, outputs, strict=True) for name in (block.site.input, out))
    seen, samples = [_Seen() for _ in blocks], 0
    try:
        runner = Runner(_watched(float32_copy(model) if copied else model, [one for one in names if one not in given]))
        for batch in batches:
            feeds = {name: as_float32(array) for name, array in batch.items()} if copied else dict(batch)
            values = {**feeds, **runner(feeds)}
            for block, out, one in zip(blocks, outputs, seen, strict=True):
                inputs = _finite(values[block.site.input], block)
                one.rows.append(block.mode.observe(block.site.block, inputs))
                one.targets.append(_finite(values[out], block))
            samples += len(one.rows[-1])
    except CannotRun as error:
        raise CalibrationError(f"the runtime cannot run the network on the data: {error}") from error
    return seen, samples


def _watched(model: Model, names: Sequence[str]) -> Model:
    """The network with these tensors as its outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return replace(model, proto=proto, path=None, pristine=False, stored=None)


def _finite(values: NDArray[Any], block: BlockReplacement) -> Array:
    if not np.isfinite(values).all():
        site = block.site
        raise CalibrationError(
            f"NaN or infinity around {site.op_type} {site.name!r} on the calibration data; check the data and their "
            f"preprocessing, or leave it out with {spelled('skip')}"
        )
    return values.astype(np.float64)


def _fit(model: Model, sites: Sites, block: BlockReplacement, seen: _Seen, seed: int) -> Factorized | str:
    mode, match = block.mode, block.site.block
    rows, targets = np.concatenate(seen.rows), np.concatenate(seen.targets)
    if len(rows) < 2:
        raise CalibrationError(
            f"calibration needs at least 2 samples, for some are held out to measure the error; got {len(rows)}"
        )
    apart = split(np.zeros(len(rows), bool), seed, block.site.anchor)
    try:
        found = block_tensors(block, mode.fit(match, rows[~apart], targets[~apart]))
        if isinstance(found, str):
            return found
        before = factorize_one(model, sites, block)
    except FactorizationError as error:
        return str(error)
    start = _error(mode, block, before, rows[apart], targets[apart]) if isinstance(before, Factorized) else np.inf
    fitted = _error(mode, block, found, rows[~apart], targets[~apart])
    return replace(found, errors=OutputErrors(start, fitted, _error(mode, block, found, rows[apart], targets[apart])))


def _error(mode: BlockMode, block: BlockReplacement, tensors: Factorized, rows: Array, targets: Array) -> float:
    """|u - u'| / |u - mean u|; what is constant counts in full."""
    wrong = targets - mode.predict(block.site.block, tensors.factors.weights, rows)
    spread = float(np.linalg.norm(targets - targets.mean(axis=0))) or float(np.linalg.norm(targets)) or 1.0
    return float(np.linalg.norm(wrong)) / spread
