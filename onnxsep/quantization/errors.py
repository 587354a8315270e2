"""What can go wrong in a quantisation, beyond data and options."""

from onnxsep.errors import OnnxsepError


class QuantizationError(OnnxsepError):
    """The model cannot be quantised; the message says why, and where it can, which node or tensor."""
