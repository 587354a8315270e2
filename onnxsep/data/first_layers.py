"""What a model's first layers say about the values that go in: it may subtract and divide by itself.

Sub, Add, Mul and Div by constants between the input and the first other operator are ``a x + b`` for each channel.
Where that is 0 is the mean of the training's pixels, and so is what a BatchNormalization there has stored; it tells
whether pixels go in from 0 to 255 or from 0 to 1, and a mean that rises from channel to channel as ImageNet's does in
BGR tells the order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.sidecars import Said
from onnxsep.data.usual import IMAGENET
from onnxsep.graph.constants import find_constant
from onnxsep.graph.scopes import Scope, scopes
from onnxsep.model.io import Model, read_tensor
from onnxsep.running.inputs import Input

_PASSES = {"Cast", "Identity", "Transpose"}
_MOST = 12  # nodes in a row
_BYTES, _UNIT = (50.0, 205.0), (0.2, 0.8)  # where the mean of pixels is
_DIVIDES = 1 / 64  # a factor below it is for pixels from 0 to 255
_NEAR = 0.03  # of means from 0 to 1


@dataclass
class _Affine:
    """a x + b, each of them one value or one for each channel."""

    factor: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    names: tuple[str, ...] = ()
    mean: npt.NDArray[np.float64] | None = None
    """Of what goes in, where a BatchNormalization has stored it."""


def read_first_layers(model: Model, entry: Input) -> Said | None:
    """What the first layers of a model say about an input; None where they do nothing of the kind, or are unclear."""
    found = _affine(model, entry.name)
    if not found.names:
        return None
    zero = -found.shift / found.factor if found.mean is None else found.mean
    if found.mean is None and not found.shift.any():
        ends = 255.0 if (np.abs(found.factor) <= _DIVIDES).all() else None
    else:
        fitting = (
            end for end, (low, high) in ((255.0, _BYTES), (1.0, _UNIT)) if ((low <= zero) & (zero <= high)).all()
        )
        ends = next(fitting, None)
    if ends is None:
        return None
    mean = np.array(IMAGENET[0])
    reverse = zero.size == 3 and not np.allclose(mean, zero / ends, atol=_NEAR)
    color: Any = "BGR" if reverse and np.allclose(mean[::-1], zero / ends, atol=_NEAR) else None
    words = f"the model's first layers ({', '.join(found.names)})"
    return Said(Preprocessing(scale=1.0 if ends == 255 else 1 / 255, color=color), words)


def _affine(model: Model, name: str) -> _Affine:
    """What the model computes of an input before anything else."""
    scope = scopes(model.proto)
    found = _Affine(np.ones(1), np.zeros(1))
    for _ in range(_MOST):
        readers = [node for node in model.proto.graph.node if name in node.input]
        if len(readers) != 1 or len(readers[0].output) != 1:
            break
        node = readers[0]
        if node.op_type == "BatchNormalization" and _normalized(model, scope, node, found):
            found.names = (*found.names, node.op_type)
            break
        if node.op_type not in _PASSES:
            if not _apply(model, scope, node, name, found):
                break
            found.names = (*found.names, node.op_type)
        name = node.output[0]
    return found


def _apply(model: Model, scope: list[Scope], node: onnx.NodeProto, name: str, found: _Affine) -> bool:
    """Whether a node is one of the four, by a constant; it is then added to what was found."""
    if node.op_type not in ("Sub", "Add", "Mul", "Div") or node.domain or len(node.input) != 2:
        return False
    first = node.input[0] == name
    tensor = find_constant(scope, 0, node.input[1 if first else 0])
    if tensor is None or (not first and node.op_type == "Div"):
        return False
    value = read_tensor(model, tensor).astype(np.float64).ravel()
    if value.size not in (1, 3) or not np.isfinite(value).all():
        return False
    if node.op_type in ("Mul", "Div"):
        if not value.all():
            return False
        by = value if node.op_type == "Mul" else 1 / value
        found.factor, found.shift = found.factor * by, found.shift * by
    elif node.op_type == "Add" or first:
        found.shift = found.shift + (value if node.op_type == "Add" else -value)
    else:
        found.factor, found.shift = -found.factor, value - found.shift
    return True


def _normalized(model: Model, scope: list[Scope], node: onnx.NodeProto, found: _Affine) -> bool:
    """Whether a BatchNormalization has stored statistics; what they say of the input is then added."""
    tensors = [find_constant(scope, 0, name) for name in node.input[3:5]]
    if len(tensors) < 2 or tensors[0] is None:
        return False
    mean = read_tensor(model, tensors[0]).astype(np.float64).ravel()
    if mean.size not in (1, 3):
        return False
    found.mean = (mean - found.shift) / found.factor
    return True
