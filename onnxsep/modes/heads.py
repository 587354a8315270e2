"""What the heads of classifiers are made of: flattening, fully connected layers, what stands between them."""

import math
from collections.abc import Mapping, Sequence

from onnxsep.algebra.linalg import Array
from onnxsep.graph.activations import ACTIVATIONS
from onnxsep.graph.expressions import Const, Either, Op, Operand
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match
from onnxsep.modes.block import Block

_LAYERS = ("Gemm", "MatMul")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_IDLE = ("Dropout", "Identity")


def flattened(x: Operand) -> Operand:
    """[N, channels, positions ...] as [N, features], with a pool before it or without."""
    pooled = Op("pool", _POOLS, x, optional=True)
    turned = Op("transpose", "Transpose", pooled, optional=True)
    # As older exporters write view(x.size(0), -1).
    size = Op(
        "unsqueeze",
        "Unsqueeze",
        Op("size", "Gather", Op("shape", "Shape", turned), Const("axis")),
        Const("axes", optional=True),
    )
    computed = Op("sizes", "Concat", size, Const("others"))
    return Either(
        Op("flatten", "Flatten", turned),
        Op("flatten", "Reshape", turned, Const("sizes")),
        Op("flatten", "Reshape", turned, computed),
    )


def connected(inner: Operand, number: int) -> Operand:
    """A fully connected layer."""
    weight, bias, role = Const(f"weight_{number}"), Const(f"bias_{number}", optional=True), f"fc_{number}"
    product = Op(role, "MatMul", inner, weight)
    return Either(
        Op(role, "Gemm", inner, weight, bias), Op(f"add_{number}", "Add", Const(f"bias_{number}"), product), product
    )


def maybe_idle(role: str, inner: Operand) -> Operand:
    """Dropout or Identity, or nothing."""
    operands = [Const(f"{role}_{part}", optional=True) for part in ("ratio", "mode")]
    return Op(role, _IDLE, inner, *operands, optional=True)


def goes_on(index: Index, match: Match) -> str | None:
    """Why a match does not end with the logits: what it computes goes on into a further layer."""
    uses = list(index.uses(match.output, match.scope))
    behind = [use.place for use in uses if use.place is not None]
    for place in behind:
        node = index.node(place)
        if node.op_type not in (*_LAYERS, *ACTIVATIONS, *_IDLE, "Clip", "PRelu", "Mul", "Add"):
            continue
        further = [use.place for name in node.output for use in index.uses(name, match.scope)]
        for one in (place, *further):
            if one is not None and index.node(one).op_type in _LAYERS:
                also = "".join(f", and is {use.what}" for use in uses if use.place is None)
                return f"is not the last layer: what it computes goes on into {index.label(one)}{also}"
    return None


def outputs_of(block: Block, number: int) -> int:
    """Of a fully connected layer."""
    shape = block.shapes[f"weight_{number}"]
    return shape[0] if _is_transposed(block, number) else shape[1]


def _is_transposed(block: Block, number: int) -> bool:
    """Whether a weight is stored as [outputs, inputs]."""
    return bool(block.nodes[f"fc_{number}"].attribute("transB", 0))


def matrix_of(block: Block, values: Mapping[str, Array], number: int) -> Array:
    """The weight of a fully connected layer, [outputs, inputs]."""
    weight = values[f"weight_{number}"]
    return weight if _is_transposed(block, number) else weight.T


def not_linear(block: Block, numbers: Sequence[int]) -> str | None:
    """Why one of the layers is not y = W x + b; None if all are."""
    for number in numbers:
        node, shape = block.nodes[f"fc_{number}"], block.shapes[f"weight_{number}"]
        factors = [node.attribute(name, default) for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))]
        if factors != [1.0, 1.0, 0] or len(shape) != 2:
            return (
                f"its {node.op_type} number {number} is not W x + b: alpha, beta or transA, or the weight is no matrix"
            )
        outputs = shape[0] if _is_transposed(block, number) else shape[1]
        if math.prod(block.shapes.get(f"bias_{number}", (outputs,))) not in (1, outputs):
            return f"what is added behind its layer number {number} is not one number for each output"
    return None
