"""What an error behind a Conv says about what the Conv reads: convolutions, tails and their transposes on arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.sampled import majorised
from onnxsep.calibration.sampling import Floats, pad_before
from onnxsep.calibration.schedule import Tail
from onnxsep.errors import CalibrationError
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_OPSET, _IR_VERSION = 13, 8


class Convolution:
    """A Conv and its transpose, for weights that change, in single precision.

    Args:
        conv: the geometry; one group, at least one spatial dimension.
        runtime: how to run it.
    """

    def __init__(self, conv: Conv, runtime: RuntimeOptions) -> None:
        self._conv, self._runtime = conv, runtime
        pads = {"pads": list(conv.pads)} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad}
        self._forward = self._runner("Conv", pads)
        self._backward: Runner | None = None

    def outputs(self, inputs: NDArray[np.floating], weight: Array, bias: Array) -> Floats:
        """The Conv.

        Args:
            inputs: [images, in_channels, *size].
            weight: [out_channels, in_channels, *kernel_shape].
            bias: [out_channels].

        Returns:
            [images, out_channels, *output size].
        """
        return _run(self._forward, inputs, weight, bias)

    def transposed(self, errors: Floats, weight: Array, size: tuple[int, ...]) -> Floats:
        """The slope of half of |errors|^2 at the inputs.

        Args:
            errors: [images, out_channels, *output size].
            weight: as above.
            size: spatial sizes of the inputs.

        Returns:
            [images, in_channels, *size].
        """
        conv = self._conv
        if self._backward is None:
            self._backward = self._runner("ConvTranspose", {})
        # Without pads, so from the first element that any kernel touches; what hangs over the edges is cut off.
        whole = _run(self._backward, errors, weight, np.zeros(conv.in_channels))
        slope = np.zeros((len(errors), conv.in_channels, *size), np.float32)
        source, place = [slice(None)] * 2, [slice(None)] * 2
        for axis, extent in enumerate(size):
            before = pad_before(conv, axis, extent)
            end = min(before + extent, whole.shape[axis + 2])
            source.append(slice(before, end))
            place.append(slice(0, max(end - before, 0)))
        slope[tuple(place)] = whole[tuple(source)]
        return slope

    def _runner(self, op_type: str, pads: Mapping[str, Any]) -> Runner:
        conv = self._conv
        node = onnx.helper.make_node(
            op_type,
            ["x", "w", "b"],
            ["y"],
            kernel_shape=list(conv.kernel_shape),
            strides=list(conv.strides),
            dilations=list(conv.dilations),
            **pads,
        )
        rank = conv.dims + 2
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * (1 if name == "b" else rank))
            for name in "xwby"
        ]
        graph = onnx.helper.make_graph([node], "convolution", values[:3], values[3:])
        opsets = [onnx.helper.make_opsetid("", _OPSET)]
        try:
            return Runner(
                Model(onnx.helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opsets)), self._runtime
            )
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run a {op_type}: {error}") from error


def _run(runner: Runner, inputs: NDArray[np.floating], weight: Array, bias: Array) -> Floats:
    arrays = {"x": inputs, "w": weight, "b": bias}
    try:
        outputs: Floats = runner({name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})["y"]
    except CannotRun as error:
        raise CalibrationError(f"the runtime cannot run a Conv: {error}") from error
    return outputs


def along(vector: Array, values: NDArray[np.floating]) -> Floats:
    """A value for each channel, in single precision, to broadcast against [images, channels, *size]."""
    shaped: Floats = vector.astype(np.float32).reshape(-1, *(1,) * (values.ndim - 2))
    return shaped


def behind(tail: Tail, outputs: Floats, skip: NDArray[np.floating] | None) -> Floats:
    """What stands behind a Conv before the activation: scale y + shift + skip_scale s, [images, channels, *size]."""
    values: Floats = outputs * along(tail.scale, outputs) + along(tail.shift, outputs)
    return values if skip is None else values + along(tail.skip_scale, outputs) * skip.astype(np.float32)


def clipped(tail: Tail, values: Floats) -> Floats:
    """The activation."""
    return np.clip(values, np.float32(tail.low), np.float32(tail.high)) if tail.clips else values


def lost(tail: Tail, wanted: Floats, now: Floats) -> Floats:
    """The errors that count, before the activation: none where both are clipped."""
    if tail.clips:
        wanted = majorised(wanted, now, np.float32(tail.low), np.float32(tail.high))
    return now - wanted
