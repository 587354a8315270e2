"""``--max-drop``: the fewest layers in float with which the accuracy stays within a limit.

How much a layer hurts is the error of the outputs when it alone, of all layers with weights, is quantised. In that
order layers return to float until the drop is within the limit (the number is found by bisection); then each of them,
the least harmful first, is quantised again where the limit allows it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from onnxsep.data import Dataset
from onnxsep.evaluation.quality import Task, run_over
from onnxsep.evaluation.sessions import Candidate, Session
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.running.runtime import RuntimeOptions


@dataclass(frozen=True)
class Spared:
    """What the search found.

    Attributes:
        names: Layers that stay in float, the most harmful first.
        sensitivities: Error of the outputs with only that layer quantised, by name; empty where none had to be spared.
        first: Drop with all layers quantised.
        drop: Drop with these layers in float.
    """

    names: tuple[str, ...]
    sensitivities: dict[str, float]
    first: float
    drop: float


def spare(
    layers: Sequence[str],
    drop: Callable[[Collection[str]], float],
    error: Callable[[Collection[str]], float],
    limit: float,
    progress: Progress | None = None,
) -> Spared:
    """Find the layers that stay in float.

    Args:
        layers: Names of the layers that could be quantised.
        drop: Loss of accuracy with some layers in float.
        error: Error of the outputs with some layers in float.
        limit: The largest drop that is allowed.
        progress: Told of every layer whose error was measured.

    Returns:
        The result; where even all layers in float are not enough, all of them, with the drop that remains.
    """
    first = drop(())
    if first <= limit:
        return Spared((), {}, first, first)
    sensitivities: dict[str, float] = {}
    for number, name in enumerate(layers, start=1):
        announce(progress, f"sensitivity: {name}", number - 1, len(layers))
        sensitivities[name] = error([other for other in layers if other != name])
        if progress is not None:
            progress("sensitivity", number, len(layers))
    order = sorted(layers, key=lambda name: sensitivities[name], reverse=True)
    reached = drop(order)
    if reached > limit:
        return Spared(tuple(order), sensitivities, first, reached)
    enough, too_few = len(order), 0
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        got = drop(order[:middle])
        if got <= limit:
            enough, reached = middle, got
        else:
            too_few = middle
    chosen = order[:enough]
    for name in reversed(order[: enough - 1]):  # without the last one the limit was not kept
        rest = [other for other in chosen if other != name]
        if (got := drop(rest)) <= limit:
            chosen, reached = rest, got
    return Spared(tuple(chosen), sensitivities, first, reached)


class Accuracy:
    """Top-1 accuracy on the same labelled samples, in points: percent of the samples.

    Raises:
        EvaluationError: a model does not run, or has no output of class scores.
        DataError: the labels are no classes of the model.
    """

    def __init__(self, data: Dataset, indices: Sequence[int], output: str | None, options: RuntimeOptions) -> None:
        self._data, self._options = data, options
        self._batches = list(data.batches(indices))
        self._task = Task(None, "", output, accuracy=True)

    def __call__(self, model: Model, name: str) -> float:
        """The accuracy of a model; ``name`` is for messages."""
        session = Session(Candidate(name, model), self._options)
        quality = run_over([session], None, self._data, self._batches, self._task).models[0]
        assert quality.top1 is not None  # the task says so
        return 100 * quality.top1.share.value
