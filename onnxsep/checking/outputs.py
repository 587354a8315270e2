"""Comparing what two models compute."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from onnxsep.algebra.output_parts import Part, PartTally
from onnxsep.checking.feeding import Feeding
from onnxsep.checking.options import SAMPLES
from onnxsep.checking.result import Difference, PartResult
from onnxsep.checking.weights import compare_arrays
from onnxsep.errors import FeedError
from onnxsep.graph.scopes import scopes
from onnxsep.model import io
from onnxsep.model.tensors import type_name
from onnxsep.running.comparison import Outputs, Run, run_reference
from onnxsep.running.execution import describe, idle_scopes
from onnxsep.running.feeds import Feeds, samples_of
from onnxsep.running.integer_io import integer_io, quantized_feed
from onnxsep.running.runtime import CannotRun, RuntimeOptions


def compare_outputs(
    model: io.Model,
    reference: io.Model,
    ignore_names: bool,
    feeding: Feeding,
    runtime: RuntimeOptions,
    rtol: float,
    atol: float,
) -> PartResult:
    """The part of a check that runs both models."""
    try:
        opened = feeding.open(reference)
        feeds = list(opened.feeds(SAMPLES))
        expected, run, notes = _run_all(reference, feeds, runtime)
    except CannotRun as error:
        return PartResult(name="outputs", status="skipped", reason=f"the runtime cannot run the reference: {error}")
    except FeedError as error:
        if feeding.given:
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
            actual = [
                run(model, _feeds(model, {renamed[name]: array for name, array in feed.items()}).arrays)
                for feed in feeds
            ]
        except CannotRun as error:
            reason = f"the runtime cannot run it, though it runs the reference: {error}"
            found.append(Difference(where="the model", message=reason))
        else:
            samples = [samples_of(feed) for feed in feeds]
            for where, mine, theirs, count in _joined(actual, expected, samples):
                differences = _compare_outputs(mine, theirs, ignore_names, count, rtol, atol)
                found += [one.model_copy(update={"where": f"{one.where}{where}"}) for one in differences]
            if notes:  # float32 copies ran, in which differences of the types do not show
                found += _compare_types(model, reference, ignore_names)
    status: Literal["differs", "same"] = "differs" if found else "same"
    idle = set.intersection(*(idle_scopes(reference, _feeds(reference, feed), runtime) for feed in feeds))
    unseen = [
        f"not compared, for these inputs do not run it: {where}" for where in describe(scopes(reference.proto), idle)
    ]
    return PartResult(
        name="outputs",
        status=status,
        differences=tuple(found),
        notes=(*opened.notes, *notes, *unseen),
        measured_on=opened.measured_on,
    )


def _run_all(
    reference: io.Model, feeds: Sequence[Mapping[str, Any]], runtime: RuntimeOptions
) -> tuple[list[Outputs], Run, tuple[str, ...]]:
    """The reference's outputs for all feeds, and what ``run_reference`` gives for the first one."""
    made = [_feeds(reference, feed) for feed in feeds]
    first, run, notes = run_reference(reference, made[0], runtime)
    return [first, *(run(reference, feed.arrays) for feed in made[1:])], run, notes


def _feeds(model: io.Model, feed: Mapping[str, Any]) -> Feeds:
    """The feed as the model takes it: integers where they stand for real numbers and the data hold these."""
    integers = integer_io(model.proto)
    real = any(feed[name].dtype.kind == "f" for name in integers.inputs)
    return Feeds(quantized_feed(feed, integers) if real else dict(feed))


def _joined(
    actual: Sequence[Outputs], expected: Sequence[Outputs], samples: Sequence[int | None]
) -> Iterator[tuple[str, Outputs, Outputs, int | None]]:
    """The outputs of all feeds as those of one, where every output has a row for each sample; else feed by feed."""
    rows = all(
        isinstance(value, np.ndarray) and value.ndim and len(value) == count
        for side in (actual, expected)
        for outputs, count in zip(side, samples, strict=True)
        for value in outputs.values()
    )
    shapes = (
        {
            (side, name, value.shape[1:])
            for side, all_ in enumerate((actual, expected))
            for outputs in all_
            for name, value in outputs.items()
        }
        if rows
        else set()
    )
    if rows and len(shapes) == len(actual[0]) + len(expected[0]):
        one, two = (
            {name: np.concatenate([outputs[name] for outputs in side]) for name in side[0]}
            for side in (actual, expected)
        )
        yield "", one, two, sum(count or 0 for count in samples)
        return
    for number, (mine, theirs, count) in enumerate(zip(actual, expected, samples, strict=True)):
        yield (f" (feed {number})" if len(actual) > 1 else ""), mine, theirs, count


def _compare_types(model: io.Model, reference: io.Model, ignore_names: bool) -> Iterator[Difference]:
    """Element types of the outputs, as the graphs declare them."""
    ours, theirs = ([*side.proto.graph.output] for side in (model, reference))
    by_name = {value.name: value for value in ours}
    pairs = zip(theirs, ours if ignore_names else (by_name.get(value.name) for value in theirs), strict=False)
    for expected, actual in pairs:
        types = [value.type.tensor_type.elem_type for value in (actual, expected) if value is not None]
        if len(types) == 2 and types[0] != types[1]:
            names = [type_name(kind) for kind in types]
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
