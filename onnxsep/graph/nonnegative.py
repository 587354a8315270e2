"""Whether a tensor is never negative, as far as the operators before it tell."""

from collections.abc import Sequence

from onnx import numpy_helper

from onnxsep.graph.constants import find_constant
from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import is_standard

_NEVER_NEGATIVE = frozenset({"Abs", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "ThresholdedRelu"})
_FIRST_OPERAND = frozenset(
    """
    AveragePool DepthToSpace Dropout Flatten Gather GlobalAveragePool GlobalMaxPool Identity MaxPool Pad ReduceMax
    ReduceMean Reshape Slice SpaceToDepth Split Squeeze Transpose Unsqueeze Upsample
    """.split()  # noqa: SIM905 - one name to a line would be twenty lines
)
_ALL_OPERANDS = frozenset({"Add", "Concat", "Max", "Mean", "Mul", "Sum"})
_MOST_NODES = 64


def is_nonnegative(index: Index, scope: int, name: str) -> bool:
    """Whether no element of a tensor is below 0: it is behind a Relu or the like, over operators that keep the sign.

    Args:
        index: of the model, whose small constants are at hand.
        scope: where the tensor is read.
        name: of the tensor.
    """
    pending, seen = [(scope, name)], set[Place]()
    while pending:
        place = index.place(pending[-1][1], pending.pop()[0])
        if place is None or len(seen) > _MOST_NODES:
            return False
        if place in seen:
            continue
        seen.add(place)
        node = index.node(place)
        if not is_standard(node):
            return False
        if node.op_type in _NEVER_NEGATIVE or (node.op_type == "Clip" and _clipped(index, place, node.input)):
            continue
        if node.op_type in _FIRST_OPERAND:
            pending.append((place[0], node.input[0]))
        elif node.op_type in _ALL_OPERANDS:
            pending += [(place[0], operand) for operand in node.input]
        else:
            return False
    return True


def _clipped(index: Index, place: Place, operands: Sequence[str]) -> bool:
    """Whether the lower bound of a Clip is 0 or more."""
    if len(operands) < 2 or not operands[1]:
        return float(index.attribute(place, "min", -1.0)) >= 0
    bound = find_constant(index.scopes, place[0], operands[1])
    return bound is not None and bool((numpy_helper.to_array(bound) >= 0).all())
