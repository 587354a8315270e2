"""Fitting the weights of blocks to calibration data, block by block along the network.

Each block is fitted to the output of the original network, on what it will really read: the blocks before it are
replaced already, as with Convs (``onnxsep.calibration.layerwise``).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.block_nodes import BlockNodes, TensorName, build_block, stored, tensors_of
from onnxsep.calibration.dense import Dense, stand_ins
from onnxsep.calibration.least_squares import Task, output_error, solve
from onnxsep.calibration.walk import CalibrationOptions, Walk, split
from onnxsep.engine.factors import Factorized, OutputErrors, block_tensors, factorize_one
from onnxsep.engine.planning import Plan, in_main_graph, naming
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import FactorizationError
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import reads
from onnxsep.layers.layer import INPUT
from onnxsep.model.io import Model
from onnxsep.modes.block import LEAST_SQUARES, BlockMode
from onnxsep.options.progress import Progress, announce
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training.block_tuning import tune_block


def fitted_blocks(plan: Plan) -> list[BlockReplacement]:
    """The blocks of a plan that are fitted to data: those of the main graph whose mode does that."""
    rows = [row for row in plan.replacements if isinstance(row, BlockReplacement)]
    return [row for row in rows if row.mode.fits and in_main_graph(row.site)]


def fit_blocks(
    model: Model,
    sites: Sites,
    blocks: Sequence[BlockReplacement],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    progress: Progress | None = None,
    convs: Mapping[Place, Dense] | None = None,
) -> tuple[dict[Place, Factorized | str], int]:
    """Fit blocks to the outputs of the original network on samples; a tenth of them is held out to measure the error.

    Args:
        model: the source.
        sites: where its convolutions are.
        blocks: as ``fitted_blocks`` gives them.
        batches: inputs by name; the first dimension counts samples.
        options: positions and seed.
        runtime: how the network is run.
        progress: told of every block that is done, with its error before and after.
        convs: weights and biases of Convs that are replaced too, in what blocks read.

    Returns:
        The tensors of each block, or why there are none, by its place; and how many samples were used.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        PassError: a mode failed.
    """
    announce(progress, "running the network", 0, len(blocks))
    walk = _Blocks(model, sites, blocks, batches, options, runtime, convs or {})
    found: dict[Place, Factorized | str] = {}
    for number, block in enumerate(sorted(blocks, key=lambda row: row.site.place)):
        with naming(block.mode, block.site.name), one_thread():
            outcome = walk.next(block)
        found[block.site.place] = outcome
        if progress:
            errors = outcome.errors if isinstance(outcome, Factorized) else None
            told = f"{block.site.name}: error {errors.svd:.4f} -> {errors.held_out:.4f}" if errors else block.site.name
            progress(told, number + 1, len(blocks))
    return found, walk.samples


class _Blocks:
    """The original network, and the one whose blocks so far are replaced, both right behind the last block."""

    def __init__(
        self,
        model: Model,
        sites: Sites,
        blocks: Sequence[BlockReplacement],
        batches: Iterable[Mapping[str, NDArray[Any]]],
        options: CalibrationOptions,
        runtime: RuntimeOptions,
        convs: Mapping[Place, Dense],
    ) -> None:
        self._model, self._sites, self._options = model, sites, options
        self._walk = Walk(model, batches, options, runtime)
        self._original, self._rewritten = self._walk.frontier, self._walk.frontier.fork()
        stands = stand_ins(self._walk.nodes, sites, convs, copied=self._walk.copied)
        self._stands = stands.nodes
        for tensor in stands.tensors:
            self._rewritten.add_initializer(tensor)
        self._done = -1  # the last node that has been run
        self._own = {block.site.place: {place[1] for place in block.site.nodes} for block in blocks}
        self._outcomes: dict[Hashable, Factorized | str] = {}

    @property
    def samples(self) -> int:
        """How many there are."""
        return self._walk.samples

    def next(self, block: BlockReplacement) -> Factorized | str:
        """Move both networks on to a block, and fit it."""
        match, index = block.site, block.site.place[1]
        nodes = self._walk.nodes
        output = nodes[index].output[0]
        made = build_block(self._model, self._sites, block, copied=self._walk.copied)
        later = {name for node in nodes[index + 1 :] for name in reads(node)}
        between = range(self._done + 1, index + 1)
        own = self._own[match.place]
        either = [*made.nodes, *(nodes[number] for number in own)]
        needed = later | {match.input} | {name for node in either for name in reads(node)}
        self._original.advance([nodes[number] for number in between], later | {match.input, output})
        others = [node for number in between if number not in own for node in self._stands.get(number, [nodes[number]])]
        self._rewritten.advance(others, needed)
        self._done = index
        task = self._task(block, made, output)
        outcome = self._outcomes.get(block.key)
        if outcome is None:
            outcome = self._outcomes[block.key] = fit_task(self._model, self._sites, task, self._options)
        elif isinstance(outcome, Factorized):  # its weights are those of an earlier block
            outcome = replace(outcome, errors=None)
        taken = outcome if isinstance(outcome, Factorized) else None
        self._original.advance([], later)
        if taken is None:
            self._rewritten.advance([nodes[number] for number in sorted(own)], later)
        else:
            made.store(self._rewritten, tensors_of(block, taken))
            self._rewritten.advance(made.nodes, later)
        return outcome

    def _task(self, block: BlockReplacement, made: BlockNodes, output: str) -> Task:
        held_out = split(self._walk.held_out, self._options.seed, block.site.anchor)
        ends = np.cumsum(self._walk.images)[:-1]
        fits = tuple(np.split(~held_out, ends))
        positions, seed = self._options.positions, self._options.seed
        return Task(block, made, self._rewritten, self._original, output, fits, positions, seed)


def fit_task(model: Model, sites: Sites, task: Task, options: CalibrationOptions) -> Factorized | str:
    """Fit one block; the tensors with the lowest error on samples that were held out, or why there are none."""
    block = task.block
    before = factorize_one(model, sites, block)
    if block.mode.fits != LEAST_SQUARES:
        return _fit_by_mode(task, before)
    if isinstance(before, str):
        return before
    start = tensors_of(block, before)
    errors = output_error(task, start, fitting=False)
    best = replace(before, errors=OutputErrors(errors, output_error(task, start, fitting=True), errors))
    tensors = solve(task, start)
    best = _better(task, best, tensors)
    if options.block_steps:
        best = _better(task, best, trained(task, tensors, options.block_steps))
    return best


def _better(task: Task, best: Factorized, tensors: Mapping[TensorName, Array]) -> Factorized:
    """What has the lower error on the samples that were held out: few samples, or a good start, do not help."""
    found = stored(task.block, tensors)
    if isinstance(found, str):
        return best
    assert best.errors is not None
    fitted, held_out = (output_error(task, tensors_of(task.block, found), fitting=part) for part in (True, False))
    if not held_out < best.errors.held_out:
        return best
    return replace(found, errors=OutputErrors(best.errors.svd, fitted, held_out))


def trained(task: Task, tensors: Mapping[TensorName, Array], steps: int) -> dict[TensorName, Array]:
    """Tensors of a block after some steps of training on what it reads and the original gives."""
    task.nodes.store(task.frontier, tensors)
    output = task.nodes.outputs[task.block.layers[-1].name]
    model, inputs = task.frontier.model(list(task.nodes.nodes), [output])
    numbers = range(len(task.batches))
    feeds = {
        name: np.concatenate([task.frontier.value(number, name)[task.batches[number]] for number in numbers])
        for name in inputs
    }
    targets = np.concatenate([values[fits] for values, fits in zip(task.targets(), task.batches, strict=True)])
    by_name = {name: key for key, name in task.nodes.operands.items()}
    found = tune_block(model, feeds, targets, list(by_name), steps=steps, seed=task.seed)
    return {**tensors, **{by_name[name]: array for name, array in found.items()}}


def _fit_by_mode(task: Task, before: Factorized | str) -> Factorized | str:
    """Of a mode that fits by itself, to rows of what it wants to know of its inputs."""
    block, mode, match = task.block, task.block.mode, task.block.site.block
    rows = np.concatenate([mode.observe(match, values.astype(np.float64)) for (values,) in task.run({}, INPUT)])
    targets = np.concatenate([values.astype(np.float64) for values in task.targets()])
    fits = np.concatenate(task.batches)
    try:
        found = block_tensors(block, mode.fit(match, rows[fits], targets[fits]))
    except FactorizationError as error:
        return str(error)
    if isinstance(found, str) or isinstance(before, str):
        return found if isinstance(found, str) else before
    start = _error(mode, block, before, rows[~fits], targets[~fits])
    fitted, held_out = (_error(mode, block, found, rows[part], targets[part]) for part in (fits, ~fits))
    return replace(found, errors=OutputErrors(start, fitted, held_out))


def _error(mode: BlockMode, block: BlockReplacement, tensors: Factorized, rows: Array, targets: Array) -> float:
    """|u - u'| / |u - mean u|; what is constant counts in full."""
    wrong = targets - mode.predict(block.site.block, tensors.factors.weights, rows)
    spread = float(np.linalg.norm(targets - targets.mean(axis=0))) or float(np.linalg.norm(targets)) or 1.0
    return float(np.linalg.norm(wrong)) / spread
