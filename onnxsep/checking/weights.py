"""Comparing the weights of two models."""

import itertools
from collections.abc import Iterator

import numpy as np
import onnx

from onnxsep.checking.alignment import LinePair
from onnxsep.checking.result import Difference, PartResult
from onnxsep.checking.structure import Structure
from onnxsep.checking.structure_tensors import StructureTensor
from onnxsep.model import io
from onnxsep.model.tensors import type_name

_CHUNK = 2**20  # elements that are compared at once
_TensorPair = tuple[StructureTensor | None, StructureTensor | None]


def tensor_pairs(reference: Structure, actual: Structure, lines: list[LinePair] | None) -> Iterator[_TensorPair]:
    """Tensors that belong together: those of the same name, or where names are ignored those of aligned lines."""
    if lines is None:
        ours = {tensor.where: tensor for tensor in actual.tensors}
        for tensor in reference.tensors:
            yield tensor, ours.pop(tensor.where, None)
        yield from ((None, tensor) for tensor in ours.values())
        return
    left, right = _by_line(reference), _by_line(actual)
    for i, j in lines:
        wanted = [] if i is None else left.get(i, [])
        given = [] if j is None else right.get(j, [])
        yield from itertools.zip_longest(wanted, given)


def _by_line(structure: Structure) -> dict[int, list[StructureTensor]]:
    found: dict[int, list[StructureTensor]] = {}
    for tensor in structure.tensors:
        found.setdefault(tensor.line, []).append(tensor)
    return found


def compare_weights(
    model: io.Model, reference: io.Model, pairs: Iterator[_TensorPair], rtol: float, atol: float
) -> PartResult:
    """The part of a check that reads weights, one pair at a time."""
    found: list[Difference] = []
    for expected, actual in pairs:
        if expected is None or actual is None:
            present = expected or actual
            assert present is not None
            message = "the model has no such weight" if actual is None else "the reference has no such weight"
            found.append(Difference(where=present.where, message=message))
            continue
        message = _compare_tensors(model, actual.tensor, reference, expected.tensor, rtol, atol)
        if message:
            found.append(Difference(where=actual.where, message=message))
    return PartResult(name="weights", status="differs" if found else "same", differences=tuple(found))


def _compare_tensors(
    model: io.Model, actual: onnx.TensorProto, reference: io.Model, expected: onnx.TensorProto, rtol: float, atol: float
) -> str:
    if actual.data_type != expected.data_type:
        names = [type_name(tensor.data_type).lower() for tensor in (actual, expected)]
        return f"element type is {names[0]}, expected {names[1]}"
    if actual.dims != expected.dims:
        return f"shape is {list(actual.dims)}, expected {list(expected.dims)}"
    if actual.raw_data and actual.raw_data == expected.raw_data:
        return ""
    return compare_arrays(io.read_tensor(model, actual), io.read_tensor(reference, expected), rtol, atol)


def compare_arrays(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float | np.ndarray) -> str:
    """Say how two arrays of the same shape differ, or nothing.

    Elements are the same where ``|actual - expected| <= atol + rtol * |expected|``, and NaN is the same as NaN. For
    integers and booleans ``rtol`` does not count; anything else must be equal. ``atol`` may be an array of that shape.
    """
    a, b = actual.reshape(-1), expected.reshape(-1)
    absolute = atol.reshape(-1) if isinstance(atol, np.ndarray) else None
    count, largest, place = 0, -1.0, 0
    for start in range(0, a.size, _CHUNK):
        one, two = a[start : start + _CHUNK], b[start : start + _CHUNK]
        distance, allowed = _distances(one, two, rtol, atol if absolute is None else absolute[start : start + _CHUNK])
        beyond = ~(distance <= allowed)
        if beyond.any():
            count += int(beyond.sum())
            here = int(np.argmax(np.where(beyond, distance, -1.0)))
            if distance[here] > largest:
                largest, place = float(distance[here]), start + here
    if not count:
        return ""
    index = [int(axis) for axis in np.unravel_index(place, actual.shape)]
    at = f" at {index}" if index else ""
    return (
        f"{count} of {a.size} elements differ; the largest difference is {largest:.4g}{at}: "
        f"{a[place]}, expected {b[place]}"
    )


def _distances(
    actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Absolute differences in double, infinite where NaN or infinity meets something else; and what is allowed."""
    different = np.asarray(actual != expected)
    if actual.dtype.kind in "OSU" or actual.dtype.kind != expected.dtype.kind:
        return np.where(different, np.inf, 0.0), np.zeros(actual.shape)
    wide = np.complex128 if actual.dtype.kind == "c" else np.float64
    one, two = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(different, np.abs(one - two), 0.0)
    distance[np.isnan(distance)] = np.inf
    distance[np.isnan(one) & np.isnan(two)] = 0.0
    if actual.dtype.kind in "iub":
        # Two large integers can be the same double.
        return np.where(different, np.maximum(distance, 1.0), 0.0), np.broadcast_to(atol, actual.shape)
    limits = atol + rtol * np.abs(two)
    return distance, np.where(np.isfinite(limits), limits, 0.0)
