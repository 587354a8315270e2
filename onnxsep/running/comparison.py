"""Verification: the original and the result run on the same inputs, their outputs compared."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxsep.algebra.output_parts import Part, PartTally, worst
from onnxsep.errors import VerificationError
from onnxsep.model.io import Model
from onnxsep.running.feeds import Feeds
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

Outputs = dict[str, Any]


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
    """Run both models on the same inputs, one after the other, and compare every output in float64.

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
    expected, run, extra = run_reference(original, feeds, options)
    notes = [*feeds.notes, *extra]
    try:
        actual = run(result, feeds.arrays)
    except CannotRun as error:
        raise VerificationError(f"the runtime runs the original but not the result: {error}") from error
    if list(expected) != list(actual):
        raise VerificationError(f"the result has the outputs {list(actual)}, the original has {list(expected)}")
    samples = samples_of(feeds.arrays)
    tallies = {name: _compare(name, expected[name], actual[name], samples, notes) for name in expected}
    if any(tally.left_out for tally in tallies.values()) and not any(tally.count for tally in tallies.values()):
        raise CannotRun("all outputs are NaN or infinity, so nothing can be compared")
    differences = []
    for name, tally in tallies.items():
        found = tally.parts.parts() if parts else ()
        mean = tally.sum_abs / max(tally.count, 1)
        differences.append(OutputDifference(name, tally.max_abs, mean, worst(tally.relative, found), found))
        notes += tally.parts.losses(f"output {name!r}") if parts else []
    return Comparison(tuple(differences), tuple(notes))


def samples_of(arrays: Mapping[str, Any]) -> int | None:
    """How many samples inputs hold: the length of the first axis, where all inputs that have one share it."""
    sizes = {value.shape[0] for value in arrays.values() if isinstance(value, np.ndarray) and value.ndim}
    return int(sizes.pop()) if len(sizes) == 1 else None


Run = Callable[[Model, Mapping[str, Any]], Outputs]
"""Runs a model on inputs."""


def run_reference(model: Model, feeds: Feeds, options: RuntimeOptions) -> tuple[Outputs, Run, tuple[str, ...]]:
    """Run a model, as a float32 copy where the runtime has no kernels for its bfloat16 or float64.

    Returns:
        Its outputs; a function that runs another model in the same way; and a note where copies are run.

    Raises:
        CannotRun: the runtime cannot run it either way; the message says why it cannot run the model itself.
    """
    last: list[tuple[Model, Runner]] = []  # of the model that was run last: several feeds, one session

    def runner(other: Model, made: Callable[[Model], Model]) -> Runner:
        if not last or last[0][0] is not other:
            last.clear()  # before the next one is made: one session at a time
            last.append((other, Runner(made(other), options)))
        return last[0][1]

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
    last.clear()
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


def _compare(name: str, expected: Any, actual: Any, samples: int | None, notes: list[str]) -> _Tally:
    tally = _Tally()
    for where, left, right in _pairs(f"output {name!r}", expected, actual):
        _add(tally, where, left, right)
    if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
        tally.parts.add(expected, actual, samples)
    if tally.left_out:
        notes.append(f"output {name!r}: {tally.left_out} values are the same NaN or infinity in both and were left out")
    if tally.undefined:
        notes.append(
            f"output {name!r}: {tally.undefined} values are NaN or infinite in the original, and not so or otherwise "
            "in the result; they were left out"
        )
    return tally


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
