"""The expression of an activation, in the forms that exporters write."""

from onnxsep.graph.expressions import Const, Either, Op, Operand

ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Gelu", "HardSwish", "Swish", "Mish"),
    *("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign"),
)
"""Operators of one tensor that stand behind a layer, element by element."""


def activation(role: str, inner: Operand) -> Operand:
    """An activation of what ``inner`` computes: one node, or a product with a gate (SiLU, hard swish).

    Args:
        role: Of its last node; numbers that it reads have roles that begin so.
        inner: What it is applied to.
    """
    least, most = (Const(f"{role}_{end}", optional=True) for end in ("least", "most"))
    gate = Op(f"{role}_gate", ("Sigmoid", "HardSigmoid"), inner)
    # Hard swish, x clip(x + 3, 0, 6) / 6, in parts; the quotient may be taken of the product or of the gate.
    ramp = Op(f"{role}_ramp", "Clip", Op(f"{role}_shift", "Add", inner, Const(f"{role}_three")), least, most)
    sixth = Const(f"{role}_six")
    return Either(
        Op(role, ACTIVATIONS, inner),
        Op(role, "Clip", inner, least, most),
        Op(role, "PRelu", inner, Const(f"{role}_slope")),
        Op(role, "Mul", inner, gate),
        Op(role, ("Div", "Mul"), Op(f"{role}_product", "Mul", inner, ramp), sixth),
        Op(role, "Mul", inner, Op(f"{role}_gate", ("Div", "Mul"), ramp, sixth)),
    )
