"""ONNX Runtime's quantisation tools: the only module beside ``runtime`` that imports onnxruntime, in functions only.

Its calibrators are not used, but the algorithms in them are: they keep every activation of every sample, or, fed in
strides, let a histogram grow without bound; their sessions know neither threads nor custom operators.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxsep.errors import MissingDependencyError
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.settings import Method, Settings

_FATAL_ONLY = 4
_BINS = {"entropy": 128, "percentile": 2048}  # as the runtime's calibrators have them
_LEVELS = 128  # what the entropy method merges bins to
_PERCENTILE = 99.999


@dataclass(frozen=True)
class Histogram:
    """How the values of one activation are distributed.

    Attributes:
        counts: Values in each bin.
        edges: Borders of the bins, one more than there are bins; from -threshold to threshold.
        low: Smallest value.
        high: Largest value.
    """

    counts: np.ndarray
    edges: np.ndarray
    low: float
    high: float


def bins_of(method: Method) -> int:
    """Bins of the histograms that a method needs."""
    return _BINS[method]


def pre_process(source: Path, target: Path) -> tuple[str, ...]:
    """Fold BatchNormalization and constants, and infer shapes, with the runtime's ``quant_pre_process``.

    Args:
        source: An .onnx file, all weights in it.
        target: Where the result goes.

    Returns:
        What could not be done.

    Raises:
        QuantizationError: the tool fails.
    """
    with _tools() as messages:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # Symbolic shape inference needs sympy, which is no dependency of the runtime, and gives up on some models.
        # Old versions of the tool also fail where the optimiser does; newer ones log that and go on.
        attempts = [{"skip_symbolic_shape": True}, {"skip_symbolic_shape": True, "skip_optimization": True}]
        if importlib.util.find_spec("sympy") is not None:
            attempts.insert(0, {})
        for number, options in enumerate(attempts, start=1):
            try:
                with _temporary_files_in(source.parent):
                    quant_pre_process(str(source), str(target), **options)
                break
            except Exception:
                if number == len(attempts):
                    raise
    if "skip_optimization" in options or any("Optimization Failed" in message for message in messages):
        return ("the runtime could not optimise the model, so BatchNormalization and constants are not folded",)
    return ()


def quantizable_types(settings: Settings) -> frozenset[str]:
    """The operators that the runtime's quantiser knows."""
    with _tools():
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        known = {*QLinearOpsRegistry, *(QDQRegistry if settings.format == "qdq" else ())}
    return frozenset(known)


def ranges_from_histograms(histograms: Mapping[str, Histogram], settings: Settings) -> Any:
    """Ranges of activations by the entropy or the percentile method, as :func:`apply` takes them."""
    with _tools():
        from onnxruntime.quantization.calibrate import CalibrationMethod, HistogramCollector, TensorsData

        percentile = _PERCENTILE if settings.percentile is None else settings.percentile
        collector = HistogramCollector(
            settings.method, False, bins_of(settings.method), _LEVELS, percentile, scenario="same"
        )
        for name, found in histograms.items():
            low, high = np.float32(found.low), np.float32(found.high)
            threshold = np.float32(found.edges[-1])
            collector.histogram_dict[name] = (found.counts, found.edges, low, high, threshold)
        kind = {"entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}[settings.method]
        return TensorsData(kind, collector.compute_collection_result())


def ranges_from_extremes(extremes: Mapping[str, tuple[float, float]]) -> Any:
    """Ranges of activations from their smallest and largest values, as :func:`apply` takes them."""
    with _tools():
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

        return TensorsData(
            CalibrationMethod.MinMax,
            {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in extremes.items()},
        )


def apply(
    prepared: onnx.ModelProto, ranges: Any, settings: Settings, op_types: Collection[str], exclude: Collection[str]
) -> onnx.ModelProto:
    """Quantise a prepared model.

    Args:
        prepared: The model; every node has a name of its own. It may be changed.
        ranges: From one of the functions above.
        settings: Formats and types.
        op_types: Operators that are quantised.
        exclude: Names of nodes that stay in float.

    Raises:
        QuantizationError: the quantiser fails.
    """
    with _tools():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        activations = QuantType.QInt8 if settings.activations == "int8" else QuantType.QUInt8
        common: tuple[Any, ...] = (QuantType.QInt8, activations, ranges, [], list(exclude), list(op_types), {})
        head = (prepared, settings.per_channel, settings.reduce_range)
        if settings.format == "qdq":
            quantizer = QDQQuantizer(*head, *common)
        else:
            quantizer = ONNXQuantizer(*head, QuantizationMode.QLinearOps, True, *common)
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        result: onnx.ModelProto = quantizer.model.model
    return result


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let the tool put its own temporary folders there, so that they go with it whenever the process is ended."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _tools() -> Iterator[list[str]]:
    """The runtime's tools print and log to the root logger; errors of any class become ours.

    Yields:
        The messages that are logged.
    """
    try:
        import onnxruntime
        import onnxruntime.quantization  # fails where a dependency of the tools is missing
    except ImportError as error:
        raise MissingDependencyError(
            f"the quantisation tools of onnxruntime cannot be imported ({error}); install it with: pip install"
            " onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    messages: list[str] = []
    keep = _Keep(messages)
    root = logging.getLogger()
    tools = logging.getLogger("onnxruntime")
    propagate = tools.propagate
    root.addFilter(keep)
    tools.addHandler(keep_handler := _Handler(messages))
    tools.propagate = False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield messages
    except QuantizationError:
        raise
    except Exception as error:  # the tools raise whatever class; many are bare ValueError
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise QuantizationError(f"the runtime's quantiser cannot handle this model: {reason}") from error
    finally:
        root.removeFilter(keep)
        tools.removeHandler(keep_handler)
        tools.propagate = propagate


class _Keep(logging.Filter):
    """Takes records from a logger that would print them."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def filter(self, record: logging.LogRecord) -> bool:
        self._messages.append(record.getMessage())
        return False


class _Handler(logging.Handler):
    """Keeps the messages of the tools' own loggers."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
