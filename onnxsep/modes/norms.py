"""BatchNormalization in the patterns of block modes, also where it is written as a product and a sum."""

import math
from collections.abc import Sequence

from onnxsep.graph.expressions import Const, Op, Operand
from onnxsep.modes.block import Operator

STATISTICS = ("gamma", "beta", "mean", "variance")
"""Operands of BatchNormalization behind what it normalises, as roles of constants."""
NORM_TENSORS = ("scale", "bias", "mean", "variance")
"""What a ``NormLayer`` calls the same."""


def norm_refused(norm: Operator) -> str | None:
    """Why a BatchNormalization is none that could be written anew; None if it could."""
    if norm.attribute("training_mode", 0) or norm.outputs > 1:
        return "the BatchNormalization behind it is in training mode"
    if not norm.attribute("spatial", 1):
        return "the BatchNormalization behind it has statistics for each position (spatial=0)"
    return None


def scaled(inner: Operand) -> Operand:
    """A product with a constant and a sum with another, as TensorFlow's BatchNormalization is exported."""
    return Op("shift", "Add", Op("scale", "Mul", inner, Const("factor")), Const("term"))


def per_channel(shape: Sequence[int], channels: int, dims: int) -> bool:
    """Whether a constant, broadcast to [batch, channels, *spatial], is the same at all positions.

    Args:
        shape: of the constant.
        channels: how many.
        dims: how many spatial axes.
    """
    if math.prod(shape) == 1:
        return len(shape) <= dims + 2
    return dims < len(shape) <= dims + 2 and shape[-dims - 1] == math.prod(shape) == channels
