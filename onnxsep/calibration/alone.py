"""Fits of blocks each as if it were the only one replaced, from one walk along the original network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.block_nodes import build_block
from onnxsep.calibration.blocks import fit_task
from onnxsep.calibration.least_squares import Task
from onnxsep.calibration.walk import CalibrationOptions, Walk, split
from onnxsep.engine.factors import Factorized
from onnxsep.engine.planning import naming
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.scopes import reads
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions


def fit_alone(
    model: Model,
    sites: Sites,
    blocks: Sequence[BlockReplacement],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
) -> Iterator[tuple[BlockReplacement, Factorized | str]]:
    """Fit blocks to what the original network computes; the same one may come in many forms.

    The arguments are those of ``onnxsep.calibration.blocks.fit_blocks``.

    Yields:
        Each block with its tensors, or why there are none, in the order of their last nodes.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        PassError: a mode failed.
    """
    if not blocks:
        return
    walk = Walk(model, batches, options, runtime)
    ends, done = np.cumsum(walk.images)[:-1], -1
    for index in sorted({block.site.place[1] for block in blocks}):
        here = [block for block in blocks if block.site.place[1] == index]
        made = [build_block(model, sites, block, copied=walk.copied) for block in here]
        output = walk.nodes[index].output[0]
        later = {name for node in walk.nodes[index + 1 :] for name in reads(node)}
        later |= {block.site.input for block in blocks if block.site.place[1] > index}
        own = {name for one in made for node in one.nodes for name in reads(node)}
        walk.frontier.advance(walk.nodes[done + 1 : index + 1], later | own | {output})
        done = index
        for block, nodes in zip(here, made, strict=True):
            fits = tuple(np.split(~split(walk.held_out, options.seed, block.site.anchor), ends))
            front, positions, seed = walk.frontier.fork(), options.positions, options.seed
            task = Task(block, nodes, front, walk.frontier, output, fits, positions, seed)
            with naming(block.mode, block.site.name), one_thread():
                found = fit_task(model, sites, task, options)
            yield block, found
