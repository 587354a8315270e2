"""Nodes that the quantiser must not see: Relu and Clip where no range does their work, and what leaves a range.

A quantised tensor cannot leave its range, which always holds 0. So the quantiser drops a Relu or Clip and gives what it
reads the range of what it makes. That is right only where nothing else reads it, where the bounds are constants that
have 0 between them, and, in the integer operators, where the node before has a range of its own.
"""

from collections.abc import Collection, Mapping

import onnx

from onnxsep.graph.clipping import clip_bounds
from onnxsep.graph.index import Index
from onnxsep.graph.scopes import is_standard
from onnxsep.model.io import Model
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
    index, model = Index(proto), Model(proto)
    found: dict[str, str] = {}

    def taken(node: onnx.NodeProto | None) -> bool:
        return (
            node is not None
            and node.op_type in op_types
            and is_standard(node)
            and node.name not in left
            and node.name not in found
        )

    for number, node in enumerate(index.nodes[0]):
        if node.op_type == "Resize" and taken(node) and any(entry.s == b"cubic" for entry in node.attribute):
            found[node.name] = _OVERSHOOTS
        if node.op_type not in _LIMITS or not taken(node):
            continue
        bounds = clip_bounds(model, index, (0, number))
        maker = index.maker(node.input[0])
        if bounds is None:
            found[node.name] = _NOT_CONSTANT
        elif not bounds[0] <= 0 <= bounds[1]:
            found[node.name] = _WITHOUT_ZERO
        elif bounds[0] == bounds[1]:
            found[node.name] = _ONLY_ZERO
        elif format_ == "qoperator" and taken(maker):
            assert maker is not None
            if len(index.uses(node.input[0])) != 1:
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
    index, model = Index(proto), Model(proto)
    found = dict(ranges)
    for number, node in reversed(list(enumerate(index.nodes[0]))):
        if node.op_type not in _LIMITS or not is_standard(node) or node.name in left or node.input[0] not in found:
            continue
        bounds = clip_bounds(model, index, (0, number))
        if bounds is None or node.output[0] not in found:
            continue
        if bounds[0] <= 0 <= bounds[1]:
            found[node.output[0]] = _that_limits(found[node.output[0]], bounds)
        if len(index.uses(node.input[0])) == 1:
            found[node.input[0]] = found[node.output[0]]
    return found


def _that_limits(made: tuple[float, float], bounds: tuple[float, float]) -> tuple[float, float]:
    """What a Relu or Clip makes, as a range that does its work: what only ever was 0 has none that limits anything."""
    return (max(bounds[0], -1.0), min(bounds[1], 1.0)) if made == (0, 0) else made
