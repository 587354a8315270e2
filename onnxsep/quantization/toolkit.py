"""ONNX Runtime's quantisation tools: the only module beside ``runtime`` that imports onnxruntime, in functions only.

Its calibrators are not used: they keep every activation of every sample, or, fed in strides, let a histogram grow
without bound; their sessions know neither threads nor custom operators; their entropy has as many bins as levels.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxsep.errors import MissingDependencyError
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.lookups import Lookups, quick_find_by_name
from onnxsep.quantization.settings import Settings
from onnxsep.running.runtime import quiet_telemetry

_FATAL_ONLY = 4


def pre_process(source: Path, target: Path, *, fold: bool = True) -> tuple[str, ...]:
    """Fold BatchNormalization and constants, and infer shapes, with the runtime's ``quant_pre_process``.

    Args:
        source: An .onnx file, all weights in it.
        target: Where the result goes.
        fold: Fold; without it only shapes are inferred.

    Returns:
        What could not be done.

    Raises:
        QuantizationError: the tool fails.
    """
    with _tools() as messages:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # Symbolic shape inference needs sympy, which is no dependency of the runtime, gives up on some models, and then
        # leaves files in the folder where the command runs.
        # Old versions of the tool also fail where the optimiser does; newer ones log that and go on.
        attempts = [{"skip_symbolic_shape": True}, {"skip_symbolic_shape": True, "skip_optimization": True}]
        if not fold:
            attempts = attempts[-1:]
        for number, options in enumerate(attempts, start=1):
            try:
                with _temporary_files_in(source.parent):
                    quant_pre_process(str(source), str(target), **options)
                break
            except Exception:
                if number == len(attempts):
                    raise
    failed = "skip_optimization" in options or any("Optimization Failed" in message for message in messages)
    if fold and failed:
        return ("the runtime could not optimise the model, so BatchNormalization and constants are not folded",)
    return ()


def quantizable_types(settings: Settings) -> frozenset[str]:
    """The operators that the runtime's quantiser knows."""
    with _tools():
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        known = {*QLinearOpsRegistry, *QDQRegistry} if settings.format == "qdq" else {*QLinearOpsRegistry} - {_SPOILT}
    return frozenset(known)


def apply(
    isolated: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    settings: Settings,
    op_types: Collection[str],
    exclude: Collection[str],
) -> onnx.ModelProto:
    """Quantise a model that ``isolating`` made.

    Args:
        isolated: The model; it may be changed.
        ranges: Of the activations.
        settings: Formats and types.
        op_types: Operators that are quantised.
        exclude: Names of nodes that stay in float.

    Raises:
        QuantizationError: the quantiser fails.
    """
    with _tools():
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.quant_utils import QuantizationMode

        activations = QuantType.QInt8 if settings.integers == "int8" else QuantType.QUInt8
        found = TensorsData(
            CalibrationMethod.MinMax,
            {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in ranges.items()},
        )
        common: tuple[Any, ...] = (QuantType.QInt8, activations, found, [], list(exclude), list(op_types), {})
        head = (isolated, settings.per_channel, settings.reduce_range)
        if settings.format == "qdq":
            kind: Any = _qdq_quantizer()
            mode: tuple[Any, ...] = ()
        else:
            _rename(isolated, _SPOILT, _HIDDEN)
            kind, mode = ONNXQuantizer, (QuantizationMode.QLinearOps, True)
        with quick_find_by_name():
            quantizer = _with_lookups(kind)(*head, *mode, *common)
            quantizer.quantize_model()
        result: onnx.ModelProto = quantizer.model.model
    _rename(result, _HIDDEN, _SPOILT)
    return result


# The quantiser for integer operators copies a Where, even one that is excluded, without giving it floats to read.
_SPOILT, _HIDDEN = "Where", "Where_in_float"


def _rename(proto: onnx.ModelProto, before: str, after: str) -> None:
    for node in proto.graph.node:
        if node.op_type == before:
            node.op_type = after


def _qdq_quantizer() -> Any:
    """The runtime's quantiser for QuantizeLinear and DequantizeLinear nodes, but with own ranges for averages.

    It gives an AveragePool the scale of its input, as if that moved values. But means are spread less, those of a whole
    image by far, so that most levels would stay unused. ``QLinearAveragePool``, which the runtime makes of it, takes a
    scale of its own, and so has the other format.
    """
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    class Quantizer(QDQQuantizer):  # type: ignore[misc, no-any-unimported, unused-ignore]
        def __init__(self, model: onnx.ModelProto, *options: Any) -> None:
            self._averages = {node.name for node in model.graph.node if node.op_type == "AveragePool"}
            super().__init__(model, *options)

        def quantize_output_same_as_input(self, output_name: str, input_name: str, node_name: str) -> None:
            if node_name in self._averages:
                self.quantize_activation_tensor(output_name)
            else:
                super().quantize_output_same_as_input(output_name, input_name, node_name)

    return Quantizer


def _with_lookups(quantizer: Any) -> Any:
    """A class of the runtime's quantisers whose model has tables."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    class Model(Lookups, ONNXModel):  # type: ignore[misc, no-any-unimported, unused-ignore]
        pass

    class Quick(quantizer):  # type: ignore[misc]
        @property
        def model(self) -> Any:
            return self._quick_model

        @model.setter
        def model(self, made: Any) -> None:
            self._quick_model = Model(made.model)

    return Quick


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
    quiet_telemetry()
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
    except Exception as error:  # the tools raise whatever class, with texts that tell a user nothing
        raise QuantizationError("the runtime's quantiser fails at this model") from error
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
