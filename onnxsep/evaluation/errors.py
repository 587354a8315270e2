"""What can go wrong in an evaluation, beyond data and options."""

from onnxsep.errors import OnnxsepError


class EvaluationError(OnnxsepError):
    """A model cannot be run or measured, or not side by side with the others."""
