"""Counting the parameters of a whole model.

Two conventions are in use, and papers do not always say which:

- ``stored``: every element of a weight that the file holds, the four vectors of a BatchNormalization included. This is
  what Keras prints as total parameters, and what papers 000 and 002 count.
- ``trainable``: the same without the running mean and variance of BatchNormalization. PyTorch and paper 004 count so.

Parameters that are not zero are counted among the stored ones. A quantised weight is zero where it equals its zero
point.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from onnxsep.graph.counting import QUANTIZED_OPERANDS
from onnxsep.graph.scopes import Scope, constant_value, is_standard, scopes
from onnxsep.model.io import Model, read_tensor

Convention = Literal["stored", "trainable", "paper004"]


_TYPES = onnx.TensorProto


# Weights are floats, or small integers where the model is quantised; larger integers are shapes, axes and indices.
_WEIGHT_TYPES = {
    *(_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.DOUBLE, _TYPES.FLOAT8E4M3FN, _TYPES.FLOAT8E5M2),
    *(_TYPES.INT8, _TYPES.UINT8, _TYPES.INT4, _TYPES.UINT4),
}


def count_parameters(light: onnx.ModelProto, convention: Convention = "stored") -> int:
    """Weight elements that a model holds, each tensor once, in all its graphs and functions.

    Counted are constant tensors with at least one dimension: a scalar is a setting, not a weight.

    Args:
        light: the model, or its skeleton (``onnxsep.graph.shapes.skeleton``).
        convention: see above; ``paper004`` counts what ``trainable`` counts.
    """
    total = sum(math.prod(tensor.dims) for scope in scopes(light) for tensor in _weights(scope))
    return total if convention == "stored" else total - _running_statistics(light)


def count_nonzero_parameters(model: Model) -> int:
    """Weight elements, as ``stored`` counts them, whose value is not zero; one tensor at a time is read.

    A quantised weight is zero where it equals its zero point, which is one number or one for each channel; zero points
    of blocks are taken as 0.

    Args:
        model: the model with its weights.

    Raises:
        ModelLoadError: a weight cannot be read.
    """
    all_scopes = scopes(model.proto)
    points = _zero_points(all_scopes)
    total = 0
    for scope in all_scopes:
        for name, tensor in _named_weights(scope):
            values = read_tensor(model, tensor)
            zero = np.zeros((), values.dtype)
            if (scope.namespace, name) in points:
                point, axis = points[scope.namespace, name]
                zero = _along(read_tensor(model, point), values.shape, axis)
            total += int(np.count_nonzero(values != zero))
    return total


def _along(point: npt.NDArray[Any], shape: Sequence[int], axis: int) -> npt.NDArray[Any]:
    """A zero point in a form that broadcasts with its weight; 0 where it does not fit it."""
    if point.size == 1:
        return point.reshape(())
    if not -len(shape) <= axis < len(shape) or point.size != shape[axis]:
        return np.zeros((), point.dtype)
    return point.reshape([-1 if place == axis % len(shape) else 1 for place in range(len(shape))])


def _zero_points(all_scopes: Sequence[Scope]) -> dict[tuple[int, str], tuple[onnx.TensorProto, int]]:
    """Constant zero point and its axis, of each weight that has one, by namespace and name."""
    tensors = {(scope.namespace, name): tensor for scope in all_scopes for name, tensor in _constants(scope)}
    found: dict[tuple[int, str], tuple[onnx.TensorProto, int]] = {}
    for scope in all_scopes:
        for node in scope.body.node:
            weight, point, axis = QUANTIZED_OPERANDS.get(node.op_type, (0, len(node.input), 0))
            zero = tensors.get((scope.namespace, node.input[point])) if point < len(node.input) else None
            if zero is None or len(zero.dims) > 1:
                continue
            settings = {entry.name: entry.i for entry in node.attribute}
            axis = 0 if settings.get("transB") else settings.get("axis", axis)
            found[scope.namespace, node.input[weight]] = zero, axis
    return found


def _weights(scope: Scope) -> Iterator[onnx.TensorProto]:
    return (tensor for _, tensor in _named_weights(scope))


def _named_weights(scope: Scope) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((name, tensor) for name, tensor in _constants(scope) if _is_weight(tensor))
    if isinstance(scope.body, onnx.GraphProto):
        yield from ((tensor.values.name, tensor.values) for tensor in scope.body.sparse_initializer)


def _constants(scope: Scope) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Dense constants of a scope by name."""
    if isinstance(scope.body, onnx.GraphProto):
        yield from ((tensor.name, tensor) for tensor in scope.body.initializer)
    for node in scope.body.node:
        value = constant_value(node)
        if value is not None:
            yield node.output[0], value


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in _WEIGHT_TYPES and len(tensor.dims) > 0


def _running_statistics(light: onnx.ModelProto) -> int:
    """Elements of running means and variances, each tensor once."""
    sizes: dict[tuple[int, str], int] = {}
    statistics: set[tuple[int, str]] = set()
    for scope in scopes(light):
        body, namespace = scope.body, scope.namespace
        for tensor in body.initializer if isinstance(body, onnx.GraphProto) else ():
            sizes[namespace, tensor.name] = math.prod(tensor.dims)
        for node in body.node:
            if (value := constant_value(node)) is not None:
                sizes[namespace, node.output[0]] = math.prod(value.dims)
            elif node.op_type == "BatchNormalization" and is_standard(node):
                statistics.update((namespace, name) for name in node.input[3:5])
    return sum(sizes.get(key, 0) for key in statistics)
