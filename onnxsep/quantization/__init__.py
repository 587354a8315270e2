"""Static int8 quantisation with ONNX Runtime's quantiser; see ``api.quantize``."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.quantization.api import QuantizeResult, quantize
    from onnxsep.quantization.errors import QuantizationError
    from onnxsep.quantization.report import QuantizeReport
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.quantization.api": ("QuantizeResult", "quantize"),
            "onnxsep.quantization.errors": ("QuantizationError",),
            "onnxsep.quantization.report": ("QuantizeReport",),
        },
    )

__all__ = ["QuantizationError", "QuantizeReport", "QuantizeResult", "quantize"]
