"""The models of one evaluation: loaded, named, checked to take the same data, and ready to run."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxsep.errors import EvaluationError, FeedError
from onnxsep.model.files import printable
from onnxsep.model.io import Model
from onnxsep.running.inputs import Input, model_inputs
from onnxsep.running.integer_io import RealRunner, as_real
from onnxsep.running.runtime import CannotRun, RuntimeOptions


@dataclass(frozen=True)
class Candidate:
    """A model and what the report calls it."""

    name: str
    model: Model


class Session:
    """A model that can be run on real numbers, also where its inputs and outputs hold integers; failures name it.

    Args:
        candidate: The model.
        options: How it is run.

    Raises:
        EvaluationError: the runtime cannot load it.
    """

    def __init__(self, candidate: Candidate, options: RuntimeOptions) -> None:
        self.name = candidate.name
        try:
            self._runner = RealRunner(candidate.model, options)
        except CannotRun as error:
            raise EvaluationError(f"{self.name}: the runtime cannot load the model: {error}") from error

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name.

        Raises:
            EvaluationError: the runtime cannot run the model on these inputs.
        """
        try:
            return self._runner(feed)
        except CannotRun as error:
            raise EvaluationError(f"{self.name}: the runtime cannot run the model: {error}") from error

    def timed(self, feeds: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], Any]:
        """A call that runs the model alone on any of these feeds: what integers it takes is computed before."""
        own = {id(feed): self._runner.own(feed) for feed in feeds}
        for feed in feeds[:1]:  # within the time limit, which timed runs do without
            self(feed)
        return lambda feed: self._runner.run.alone(own[id(feed)])


def named(models: Sequence[Model]) -> list[Candidate]:
    """Give each model its file's name, the whole path where two files share a name; a number where it has no file."""
    names = Counter(model.path.name for model in models if model.path is not None)
    return [
        Candidate(
            f"model {number}"
            if model.path is None
            else printable(model.path if names[model.path.name] > 1 else model.path.name),
            model,
        )
        for number, model in enumerate(models, start=1)
    ]


def check_same_interface(candidates: Sequence[Candidate]) -> None:
    """Refuse models that cannot be fed with the same data, or whose outputs are not the same ones.

    Raises:
        EvaluationError: inputs differ in name, type or fixed dimensions, or outputs in name or type.
    """
    first = candidates[0]
    for other in candidates[1:]:
        left, right = _inputs(first), _inputs(other)
        if set(left) != set(right) or any(not _alike(left[name], right[name]) for name in left):
            raise EvaluationError(_different(first, other, "inputs", _show(left), _show(right)))
        outputs = [_outputs(candidate) for candidate in (first, other)]
        if outputs[0] != outputs[1]:
            raise EvaluationError(_different(first, other, "outputs", *map(_show_outputs, outputs)))


def most_fixed(candidates: Sequence[Candidate]) -> Model:
    """The model with the most fixed dimensions in its inputs: data that fit it fit the others too.

    It is given as it is seen from outside: data are real numbers also where the model takes integers for them.
    """

    def fixed(candidate: Candidate) -> int:
        return sum(isinstance(dim, int) for entry in _inputs(candidate).values() for dim in entry.dims or ())

    return as_real(max(candidates, key=fixed).model)


def _inputs(candidate: Candidate) -> dict[str, Input]:
    try:
        return {entry.name: entry for entry in model_inputs(as_real(candidate.model).proto)}
    except FeedError as error:
        raise EvaluationError(f"{candidate.name}: {error}") from error


def _alike(left: Input, right: Input) -> bool:
    if left.elem_type != right.elem_type:
        return False
    if left.dims is None or right.dims is None:
        return True
    return len(left.dims) == len(right.dims) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(left.dims, right.dims, strict=True)
    )


def _outputs(candidate: Candidate) -> dict[str, tuple[str | None, int]]:
    """Kind and element type of each output by name."""
    return {
        value.name: (value.type.WhichOneof("value"), value.type.tensor_type.elem_type)
        for value in as_real(candidate.model).proto.graph.output
    }


def _show(entries: Mapping[str, Input]) -> str:
    return ", ".join(map(str, entries.values())) or "none"


def _show_outputs(outputs: Mapping[str, tuple[str | None, int]]) -> str:
    return ", ".join(f"{name!r} (type {kind[1]})" for name, kind in outputs.items()) or "none"


def _different(first: Candidate, other: Candidate, what: str, left: str, right: str) -> str:
    return (
        f"{other.name} cannot be evaluated side by side with {first.name}: the {what} of the first are {left},"
        f" those of the other {right}; evaluate each in a run of its own"
    )
