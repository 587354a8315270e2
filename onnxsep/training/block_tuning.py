"""Training the weights of one block alone, to give what the original gives there on the same inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.model.io import Model
from onnxsep.training.bridge import to_torch
from onnxsep.training.converters import import_torch
from onnxsep.training.optimizers import Steps
from onnxsep.training.run_records import Settings

_BATCH = 64
_RATE = 0.02  # of Adam, relative to the root mean square of each tensor's values


def tune_block(
    block: Model,
    feeds: Mapping[str, NDArray[np.generic]],
    targets: NDArray[np.generic],
    names: Sequence[str],
    *,
    steps: int,
    seed: int,
) -> dict[str, Array]:
    """Train a block by Adam on the squared error of its output; BatchNormalization keeps its statistics.

    Args:
        block: its nodes as a model with one output.
        feeds: its inputs by name, samples first.
        targets: what it should give.
        names: of the tensors to train, as far as they are weights.
        steps: of 64 samples each; the rate rises over a tenth of them and falls along a cosine to zero.
        seed: of the order of the samples.

    Returns:
        New values by name, in double precision; none where they are no longer finite.

    Raises:
        MissingDependencyError: torch is not installed.
        UnsupportedModelError: torch cannot compute a node of the block.
    """
    torch = import_torch()
    graph = to_torch(block)
    trained = {name: graph.parameters[name] for name in names if name in graph.parameters}
    for name, value in graph.parameters.items():
        value.requires_grad_(name in trained)
    settings = Settings(
        epochs=1,
        optimizer="adam",
        rate=_RATE,
        schedule="one-cycle",
        weight_decay=0.0,
        patience=0,
        seed=seed,
        steps=steps,
        relative=True,
    )
    moves, rng, count = Steps(torch, trained.values(), settings), np.random.default_rng(seed), len(targets)
    aim = torch.from_numpy(targets.astype(np.float32))
    spread = float(aim.var()) or 1.0
    order: list[int] = []
    for step in range(1, steps + 1):
        if len(order) < min(_BATCH, count):
            order += rng.permutation(count).tolist()
        chosen, order = sorted(order[:_BATCH]), order[_BATCH:]
        moves.begin(step, steps)
        (made,) = graph.module(graph.tensors({name: values[chosen] for name, values in feeds.items()})).values()
        loss = (made - aim[chosen]).square().mean() / spread
        loss.backward()
        moves.end()
    found = {name: array.astype(np.float64) for name, array in graph.arrays(list(trained)).items()}
    return found if all(np.isfinite(array).all() for array in found.values()) else {}
