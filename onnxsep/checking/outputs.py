"""Comparing what two models compute."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx

from onnxsep import io
from onnxsep.checking.result import Difference, PartResult
from onnxsep.checking.weights import compare_arrays
from onnxsep.comparison import run_reference, samples_of
from onnxsep.errors import FeedError
from onnxsep.feeds import make_feeds
from onnxsep.parts import Part, PartTally
from onnxsep.runtime import CannotRun, RuntimeOptions


def compare_outputs(
    model: io.Model,
    reference: io.Model,
    ignore_names: bool,
    feeding: Mapping[str, Any],
    runtime: RuntimeOptions,
    rtol: float,
    atol: float,
) -> PartResult:
    """The part of a check that runs both models; ``feeding`` holds the arguments of ``make_feeds``."""
    try:
        feeds = make_feeds(reference, **feeding)
        expected, run, notes = run_reference(reference, feeds, runtime)
    except CannotRun as error:
        return PartResult(name="outputs", status="skipped", reason=f"the runtime cannot run the reference: {error}")
    except FeedError as error:
        if feeding["inputs"] is not None or feeding["input_shapes"]:
            raise
        return PartResult(name="outputs", status="skipped", reason=f"no inputs could be made: {error}")
    found: list[Difference] = []
    wanted, given = _input_names(reference), _input_names(model)
    renamed = dict(zip(wanted, given, strict=False)) if ignore_names else {name: name for name in wanted}
    if len(wanted) != len(given) or set(renamed.values()) != set(given):
        message = f"the inputs are {', '.join(given) or 'none'}; expected {', '.join(wanted) or 'none'}"
        found.append(Difference(where="inputs", message=message))
    else:
        try:
            actual = run(model, {renamed[name]: array for name, array in feeds.arrays.items()})
        except CannotRun as error:
            reason = f"the runtime cannot run it, though it runs the reference: {error}"
            found.append(Difference(where="the model", message=reason))
        else:
            found += _compare_outputs(actual, expected, ignore_names, samples_of(feeds.arrays), rtol, atol)
            if notes:  # float32 copies ran, in which differences of the types do not show
                found += _compare_types(model, reference, ignore_names)
    status: Literal["differs", "same"] = "differs" if found else "same"
    return PartResult(name="outputs", status=status, differences=tuple(found), notes=(*feeds.notes, *notes))


def _compare_types(model: io.Model, reference: io.Model, ignore_names: bool) -> Iterator[Difference]:
    """Element types of the outputs, as the graphs declare them."""
    ours, theirs = ([*side.proto.graph.output] for side in (model, reference))
    by_name = {value.name: value for value in ours}
    pairs = zip(theirs, ours if ignore_names else (by_name.get(value.name) for value in theirs), strict=False)
    for expected, actual in pairs:
        types = [value.type.tensor_type.elem_type for value in (actual, expected) if value is not None]
        if len(types) == 2 and types[0] != types[1]:
            names = [onnx.TensorProto.DataType.Name(kind) for kind in types]
            message = f"element type is {names[0]}, expected {names[1]}"
            yield Difference(where=f"output {expected.name!r}", message=message)


def _input_names(model: io.Model) -> list[str]:
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    return [value.name for value in graph.input if value.name not in given]


def _compare_outputs(
    actual: dict[str, Any],
    expected: dict[str, Any],
    ignore_names: bool,
    samples: int | None,
    rtol: float,
    atol: float,
) -> Iterator[Difference]:
    if ignore_names and len(actual) == len(expected):
        actual = dict(zip(expected, actual.values(), strict=True))
    ours = dict(item for name, value in actual.items() for item in _flat(f"output {name!r}", value))
    theirs = dict(item for name, value in expected.items() for item in _flat(f"output {name!r}", value))
    for where in [*theirs, *(where for where in ours if where not in theirs)]:
        if where not in ours or where not in theirs:
            message = (
                "the reference has it, the model not" if where in theirs else "the model has it, the reference not"
            )
            yield Difference(where=where, message=message)
        elif message := _compare_output(ours[where], theirs[where], samples, rtol, atol):
            yield Difference(where=where, message=message)


def _flat(where: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an output, which may also be a sequence, a map or an empty optional."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{where}[{key!r}]", value[key])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(f"{where}[{index}]", item)
    elif value is not None:
        yield where, np.asarray(value)


def _compare_output(actual: np.ndarray, expected: np.ndarray, samples: int | None, rtol: float, atol: float) -> str:
    if actual.dtype != expected.dtype:
        return f"element type is {actual.dtype}, expected {expected.dtype}"
    if actual.shape != expected.shape:
        return f"shape is {list(actual.shape)}, expected {list(expected.shape)}"
    if expected.dtype.kind in "iubOSU":
        return compare_arrays(actual, expected, 0.0, 0.0)
    finite = np.abs(expected[np.isfinite(expected)])
    largest = float(finite.max(initial=0.0)) or 1.0
    tally = PartTally()
    tally.add(expected, actual, samples)
    parts = tally.parts()
    allowed: float | np.ndarray = atol * largest
    if parts:
        # What is little beside the largest value of the whole may be all that a part of smaller range holds.
        by_index = np.empty(expected.shape[parts[0].axis])
        for part in parts:
            by_index[list(part.indices)] = atol * max(abs(part.low), abs(part.high))
        shape = [1] * expected.ndim
        shape[parts[0].axis] = len(by_index)
        allowed = np.broadcast_to(by_index.reshape(shape), expected.shape)
    message = compare_arrays(actual, expected, rtol, allowed)
    if not message:
        return ""
    whole = tally.whole()
    if parts:
        message += "".join(f"; {part}: relative error {part.relative:.4g}{_lost(part)}" for part in parts)
    elif np.any(expected):
        message += f"; relative error {tally.relative:.4g}" + (_lost(whole) if whole is not None else "")
    return message


def _lost(part: Part) -> str:
    return ", has lost its variation" if part.lost else ""
