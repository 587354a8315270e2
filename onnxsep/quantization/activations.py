"""Nodes that the quantiser must not see: Relu and Clip where no range does their work, and what leaves a range.

A quantised tensor cannot leave its range, which always holds 0. So the quantiser drops a Relu or Clip and gives what it
reads the range of what it makes. That is right only where nothing else reads it, where the bounds are constants that
have 0 between them, and, in the integer operators, where the node before has a range of its own.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx

from onnxsep.calibration.frontier import reads
from onnxsep.graph.scopes import constant_value, is_standard
from onnxsep.quantization.settings import Format

_LIMITS = ("Relu", "Clip")
_OWN_RANGE = (
    "Add",
    "AveragePool",
    "Concat",
    "Conv",
    "Gemm",
    "GlobalAveragePool",
    "LeakyRelu",
    "MatMul",
    "Mul",
    "Sigmoid",
)
_WITHOUT_ZERO = "its bounds do not have 0 between them, and the range of a quantised tensor always holds 0"
_ONLY_ZERO = "its bounds leave nothing but 0, which is no range"
_OVERSHOOTS = "cubic interpolation goes beyond the range of its input, which its output would have"
_NOT_CONSTANT = "its bounds are not constant"
_READ_ELSEWHERE = "what it reads is needed elsewhere without it, so that it cannot become a range"
_NO_RANGE = "what it reads has the range of another tensor, so that it cannot become a range"


def staying(
    proto: onnx.ModelProto, op_types: Collection[str], left: Collection[str], format_: Format
) -> dict[str, str]:
    """The nodes that the quantiser must not see, with the reason.

    Args:
        proto: The prepared model.
        op_types: Operators that are quantised.
        left: Names of nodes that stay in float anyway.
        format_: With "qoperator" they are dropped or stay in float; with "qdq" there are other ways.
    """
    readers = _readers(proto)
    constants = _constants(proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    found: dict[str, str] = {}

    def taken(node: onnx.NodeProto | None) -> bool:
        return (
            node is not None
            and node.op_type in op_types
            and is_standard(node)
            and node.name not in left
            and node.name not in found
        )

    for node in proto.graph.node:
        if node.op_type == "Resize" and taken(node) and any(entry.s == b"cubic" for entry in node.attribute):
            found[node.name] = _OVERSHOOTS
        if node.op_type not in _LIMITS or not taken(node):
            continue
        bounds = _bounds(node, constants)
        maker = makers.get(node.input[0])
        if bounds is None:
            found[node.name] = _NOT_CONSTANT
        elif not bounds[0] <= 0 <= bounds[1]:
            found[node.name] = _WITHOUT_ZERO
        elif bounds[0] == bounds[1]:
            found[node.name] = _ONLY_ZERO
        elif format_ == "qoperator" and taken(maker):
            assert maker is not None
            if readers[node.input[0]] != 1:
                found[node.name] = _READ_ELSEWHERE
            elif maker.op_type not in (*_OWN_RANGE, *_LIMITS):
                found[node.name] = _NO_RANGE
    return found


def narrowed(
    proto: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], left: Collection[str]
) -> dict[str, tuple[float, float]]:
    """Ranges in which what only a Relu or Clip reads needs no more levels than what that makes.

    Args:
        proto: The prepared model.
        ranges: Ranges of activations.
        left: Names of nodes whose inputs keep their ranges.
    """
    readers, constants = _readers(proto), _constants(proto)
    found = dict(ranges)
    for node in reversed(proto.graph.node):
        if node.op_type not in _LIMITS or not is_standard(node) or node.name in left or node.input[0] not in found:
            continue
        bounds = _bounds(node, constants)
        if bounds is None or node.output[0] not in found:
            continue
        if bounds[0] <= 0 <= bounds[1]:
            found[node.output[0]] = _that_limits(found[node.output[0]], bounds)
        if readers[node.input[0]] == 1:
            found[node.input[0]] = found[node.output[0]]
    return found


def _that_limits(made: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """What a Relu or Clip makes, as a range that does its work: what only ever was 0 has none that limits anything."""
    return (max(bounds[0], -1.0), min(bounds[1], 1.0)) if made == (0, 0) else made


def _readers(proto: onnx.ModelProto) -> Counter[str]:
    """How often each tensor of the main graph is read, in nested graphs and as an output too."""
    found = Counter(entry.name for entry in proto.graph.output)
    for node in proto.graph.node:
        found.update(reads(node))
    return found


def _constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if (value := constant_value(node)) is not None:
            found[node.output[0]] = value
    return found


def _bounds(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[float, float] | None:
    """Lower and upper bound; None where they are no constants."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    attributes = {entry.name: entry.f for entry in node.attribute}  # before opset 11
    bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
    for index, name in enumerate(_padded(node.input[1:3])):
        if name and name not in constants:
            return None
        if name:
            value = onnx.numpy_helper.to_array(constants[name])
            if value.size != 1:
                return None
            bounds[index] = float(value.reshape(()))
    return bounds[0], bounds[1]


def _padded(names: Iterable[str]) -> list[str]:
    return [*names, "", ""][:2]
