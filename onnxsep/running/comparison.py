"""Verification: the original and the result run on the same inputs, their outputs compared."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxsep.algebra.output_parts import Part, PartTally, worst
from onnxsep.errors import VerificationError
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import Model
from onnxsep.running.feeds import Feeds, samples_of
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

Outputs = dict[str, Any]
_SELECTING = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of the result is from the original's.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference of an element.
        mean_abs: Mean absolute difference.
        relative: ||original - result|| / ||original||, Euclidean norms over all elements; 0 where both are zero,
            infinite where only the original is. Where the output has parts of unlike ranges, that of the worst part.
        parts: The parts, where there are several (:mod:`onnxsep.algebra.output_parts`).
    """

    name: str
    max_abs: float
    mean_abs: float
    relative: float
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The differences of all outputs, in the model's order.

    Attributes:
        outputs: One entry per output.
        notes: What a reader must know: how the inputs were chosen, what was left out and why.
    """

    outputs: tuple[OutputDifference, ...]
    notes: tuple[str, ...]

    @property
    def max_abs(self) -> float:
        """The largest of all outputs."""
        return max((output.max_abs for output in self.outputs), default=0.0)

    @property
    def mean_abs(self) -> float:
        """The largest mean of all outputs."""
        return max((output.mean_abs for output in self.outputs), default=0.0)

    @property
    def relative(self) -> float:
        """The largest of all outputs."""
        return max((output.relative for output in self.outputs), default=0.0)


def compare_outputs(
    original: Model, result: Model, feeds: Feeds, options: RuntimeOptions, *, parts: bool = True
) -> Comparison:
    """Run both models on the same inputs and compare every output in float64, over all sets of inputs together.

    Integers and booleans are compared as numbers, strings as equal (0) or not (1), sequences and maps element by
    element. Where the runtime cannot run the original and it holds bfloat16 or float64, both are compared as float32
    copies, and a note says so.

    Args:
        original: The model as it was.
        result: The rewritten model, with the same inputs and outputs.
        feeds: Inputs for ``original``.
        options: How to run them.
        parts: Whether to look for parts of unlike ranges in the outputs.

    Raises:
        CannotRun: the runtime cannot run the original, so nothing was verified; the message is its reason.
        VerificationError: the result does not run though the original does; names, shapes or types of the outputs
            differ; or the result has NaN or infinity where the original has a number.
    """
    expected, run, extra = run_reference(original, feeds, options, sessions=1 if feeds.others is None else 2)
    tallies: dict[str, _Tally] = {}
    sized = _sized_by_values(original)
    for number, arrays in enumerate(feeds.sets()):
        wanted = run(original, arrays) if number else expected
        try:
            actual = run(result, arrays)
        except CannotRun as error:
            raise VerificationError(f"the runtime runs the original but not the result: {error}") from error
        if list(wanted) != list(actual):
            raise VerificationError(f"the result has the outputs {list(actual)}, the original has {list(wanted)}")
        for name, values in wanted.items():
            tally = tallies.setdefault(name, _Tally())
            if name in sized and _resized(values, actual[name]):
                tally.resized += 1
            else:
                _compare(tally, name, values, actual[name], samples_of(arrays))
    notes = [*feeds.notes, *extra, *(note for name, tally in tallies.items() for note in _left_out(name, tally))]
    if any(tally.left_out for tally in tallies.values()) and not any(tally.count for tally in tallies.values()):
        raise CannotRun("all outputs are NaN or infinity, so nothing can be compared")
    if any(tally.resized for tally in tallies.values()) and not any(tally.count for tally in tallies.values()):
        raise CannotRun("every output has another size in the result, by what it holds, so nothing can be compared")
    differences = []
    for name, tally in tallies.items():
        found = tally.parts.parts() if parts else ()
        mean = tally.sum_abs / max(tally.count, 1)
        differences.append(OutputDifference(name, tally.max_abs, mean, worst(tally.relative, found), found))
        notes += tally.parts.losses(f"output {name!r}") if parts else []
    return Comparison(tuple(differences), tuple(notes))


Run = Callable[[Model, Mapping[str, Any]], Outputs]
"""Runs a model on inputs."""


def run_reference(
    model: Model, feeds: Feeds, options: RuntimeOptions, *, sessions: int = 1
) -> tuple[Outputs, Run, tuple[str, ...]]:
    """Run a model on the first set of inputs, as a float32 copy where no kernel has its bfloat16 or float64.

    Args:
        model: The model.
        feeds: The inputs.
        options: How to run it.
        sessions: How many models the function that is returned keeps ready to run.

    Returns:
        Its outputs; a function that runs another model in the same way; and a note where copies are run.

    Raises:
        CannotRun: the runtime cannot run it either way; the message says why it cannot run the model itself.
    """
    ready: list[tuple[Model, Runner]] = []  # of the models that were run last

    def runner(other: Model, made: Callable[[Model], Model]) -> Runner:
        found = next((known for of, known in ready if of is other), None)
        if found is None:
            del ready[: len(ready) + 1 - sessions]  # before the next one is made, which needs memory
            found = Runner(made(other), options)
            ready.append((other, found))
        return found

    def plain(other: Model, arrays: Mapping[str, Any]) -> Outputs:
        return runner(other, lambda model: model)(dict(arrays))

    def copied(other: Model, arrays: Mapping[str, Any]) -> Outputs:
        return runner(other, float32_copy)({name: as_float32(array) for name, array in arrays.items()})

    try:
        return plain(model, feeds.arrays), plain, ()
    except CannotRun as error:
        types, reason = held_types(model), str(error)
        if not types:
            raise
    ready.clear()
    try:
        expected = copied(model, feeds.arrays)
    except CannotRun:
        raise CannotRun(reason) from None
    note = f"compared through float32 copies: the runtime cannot run {' and '.join(types)} here ({reason})"
    return expected, copied, (note,)


@dataclass
class _Tally:
    """Sums over the elements of one output."""

    max_abs: float = 0.0
    sum_abs: float = 0.0
    count: int = 0
    norm_of_difference: float = 0.0
    norm_of_original: float = 0.0
    left_out: int = field(default=0)  # the same NaN or infinity in both
    undefined: int = field(default=0)  # NaN or infinity in the original, something else in the result
    resized: int = field(default=0)  # runs in which the result has more or fewer entries
    parts: PartTally = field(default_factory=PartTally)

    def add(self, expected: np.ndarray, difference: np.ndarray) -> None:
        """Add finite values of the original, and their absolute differences, both float64."""
        if not difference.size:
            return
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.sum_abs += float(difference.sum())
        self.count += difference.size
        self.norm_of_difference = math.hypot(self.norm_of_difference, _norm(difference))
        self.norm_of_original = math.hypot(self.norm_of_original, _norm(expected))

    @property
    def relative(self) -> float:
        if self.norm_of_difference == 0.0:
            return 0.0
        return self.norm_of_difference / self.norm_of_original if self.norm_of_original else math.inf


def _norm(values: np.ndarray) -> float:
    """The Euclidean norm, scaled so that squares neither overflow nor vanish."""
    scale = float(np.abs(values).max())
    if scale == 0.0 or not math.isfinite(scale):
        return scale
    return scale * float(np.linalg.norm((values / scale).ravel()))


def _compare(tally: _Tally, name: str, expected: Any, actual: Any, samples: int | None) -> None:
    for where, left, right in _pairs(f"output {name!r}", expected, actual):
        _add(tally, where, left, right)
    if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        tally.parts.add(expected, actual, samples)


def _left_out(name: str, tally: _Tally) -> Iterator[str]:
    """Notes on values of an output that were not compared."""
    if tally.resized:
        yield (
            f"output {name!r}: in {tally.resized} runs the result has more or fewer entries than the original, as their"
            " number depends on values; these runs were left out"
        )
    if tally.left_out:
        yield f"output {name!r}: {tally.left_out} values are the same NaN or infinity in both and were left out"
    if tally.undefined:
        yield (
            f"output {name!r}: {tally.undefined} values are NaN or infinite in the original, and not so or otherwise "
            "in the result; they were left out"
        )


def _sized_by_values(model: Model) -> set[str]:
    """Outputs whose size may depend on what the model computes, such as the boxes that a detector keeps."""
    if not any(node.op_type in _SELECTING for scope in scopes(model.proto) for node in scope.body.node):
        return set()
    declared = {value.name: value.type.tensor_type for value in model.proto.graph.output}
    return {
        name
        for name, kind in declared.items()
        if not kind.HasField("shape") or any(dim.dim_value <= 0 for dim in kind.shape.dim)
    }


def _resized(expected: Any, actual: Any) -> bool:
    """Whether two arrays differ in how long axes are, and in nothing else of their form."""
    both = isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)
    return both and expected.ndim == actual.ndim and expected.dtype == actual.dtype and expected.shape != actual.shape


def _pairs(where: str, expected: Any, actual: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The arrays that sequences and maps are made of, in pairs, with their place in words."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if set(expected) != set(actual):
            raise VerificationError(f"{where} has the keys {sorted(actual)} in the result, not {sorted(expected)}")
        for key in expected:
            yield from _pairs(f"{where}[{key!r}]", expected[key], actual[key])
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            raise VerificationError(f"{where} has {len(actual)} elements in the result, not {len(expected)}")
        for index, (left, right) in enumerate(zip(expected, actual, strict=True)):
            yield from _pairs(f"{where}[{index}]", left, right)
    elif isinstance(expected, list | dict) or isinstance(actual, list | dict) or (expected is None) != (actual is None):
        raise VerificationError(f"{where} is {_kind(actual)} in the result, not {_kind(expected)}")
    elif expected is not None:
        yield where, np.asarray(expected), np.asarray(actual)


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a sequence"
    if isinstance(value, dict):
        return "a map"
    return "an empty optional" if value is None else "a tensor"


def _add(tally: _Tally, where: str, expected: np.ndarray, actual: np.ndarray) -> None:
    if expected.shape != actual.shape:
        raise VerificationError(f"{where} has shape {list(actual.shape)} in the result, not {list(expected.shape)}")
    texts = [array.dtype.kind in "OU" for array in (expected, actual)]
    if all(texts):
        unequal = np.asarray(expected != actual, np.float64)
        tally.add(np.ones_like(unequal), unequal)
        return
    if any(texts) or expected.dtype != actual.dtype:
        raise VerificationError(f"{where} has type {actual.dtype} in the result, not {expected.dtype}")
    if expected.dtype.kind in "biu":
        tally.add(expected.astype(np.float64), _integer_difference(expected, actual))
        return
    finite, bad = np.isfinite(expected), ~np.isfinite(actual)
    if broken := int(np.count_nonzero(bad & finite)):
        raise VerificationError(
            f"{where} has {broken} values in the result that are NaN or infinite and are numbers in the original"
        )
    with np.errstate(over="ignore"):
        tally.add(
            expected[finite].astype(np.float64),
            np.abs(expected[finite].astype(np.float64) - actual[finite].astype(np.float64)),
        )
    same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    tally.left_out += int(np.count_nonzero(~finite & same))
    tally.undefined += int(np.count_nonzero(~finite & ~same))


def _integer_difference(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Absolute differences as float64, exact before the conversion: in 64 bits the difference itself may not fit."""
    high, low = np.maximum(expected, actual), np.minimum(expected, actual)
    return np.asarray(high.astype(np.uint64) - low.astype(np.uint64), np.float64)
