"""Static int8 quantisation with ONNX Runtime's quantiser; see ``api.quantize``."""

from onnxsep.quantization.api import QuantizeResult, quantize
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.report import QuantizeReport

__all__ = ["QuantizationError", "QuantizeReport", "QuantizeResult", "quantize"]
