"""BatchNormalization in the patterns of block modes."""

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
