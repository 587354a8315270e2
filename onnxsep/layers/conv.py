"""The nouns of onnxsep: a convolution's geometry, the layers of a replacement, ranks.

Nothing here knows ONNX or holds weights, so parameters and MACs can be counted for a plan before any weight is read.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]


@dataclass(frozen=True)
class Conv:
    """The geometry of one convolution of any number of spatial dimensions, as ONNX's Conv defines it.

    A Gemm or a MatMul is one without spatial dimensions: kernel_shape (), and a weight [out_channels, in_channels].
    ``pads`` holds all begins, then all ends (ONNX's order) and counts only where ``auto_pad`` is NOTSET.

    A ``transposed`` one is ONNX's ConvTranspose: strides spread the input, pads cut the whole output, at whose ends
    ``output_padding`` adds positions (none where it is left out). Its weight is described as that of any other, output
    channels first, whereas ONNX stores it input channels first (``onnxsep.graph.transposing``).
    """

    in_channels: int
    out_channels: int
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    bias: bool = False
    auto_pad: AutoPad = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel_shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels / group, *kernel_shape]."""
        return (self.out_channels, self.in_channels // self.group, *self.kernel_shape)

    @property
    def weight_size(self) -> int:
        """Elements of the weight."""
        return math.prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """Elements of the weight and the bias."""
        return self.weight_size + (self.out_channels if self.bias else 0)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output for an input of spatial sizes ``size`` (0 where the kernel does not fit)."""
        sizes = []
        for axis, extent in enumerate(size):
            stride = self.strides[axis]
            window = self.window(axis)
            padding = 0 if self.auto_pad == "VALID" else self.pads[axis] + self.pads[axis + self.dims]
            if self.transposed:
                padding = sum(self.cut(axis)) if self.auto_pad.startswith("SAME") else padding
                sizes.append(max(0, stride * (extent - 1) + window + self.extra(axis) - padding))
            elif self.auto_pad.startswith("SAME"):
                sizes.append(-(-extent // stride))
            else:
                sizes.append(max(0, (extent + padding - window) // stride + 1))
        return tuple(sizes)

    def window(self, axis: int) -> int:
        """Positions that the dilated kernel spans along an axis."""
        return (self.kernel_shape[axis] - 1) * self.dilations[axis] + 1

    def extra(self, axis: int) -> int:
        """The output padding of a transposed one along an axis."""
        return self.output_padding[axis] if self.output_padding else 0

    def cut(self, axis: int) -> tuple[int, int]:
        """What automatic padding cuts off the whole output of a transposed one, at both ends of an axis.

        The output gets ``strides`` times the size of the input; where it is smaller from the start nothing is cut.
        """
        total = max(0, self.window(axis) + self.extra(axis) - self.strides[axis])
        less = total // 2
        return (less, total - less) if self.auto_pad == "SAME_UPPER" else (total - less, less)

    def macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulate operations for one image of spatial sizes ``size``, padding counted like data.

        Every output of a Conv meets every tap, and every input of a transposed one.
        """
        return math.prod(size if self.transposed else self.output_size(size)) * self.weight_size

    def own_tap(self) -> tuple[int, ...] | None:
        """The tap that reads the position of the output itself, at the Conv's strides.

        None where there is none: a 1 x 1 Conv with the same strides and without pads would give outputs of other sizes.
        """
        found = []
        for axis, (kernel, dilation) in enumerate(zip(self.kernel_shape, self.dilations, strict=True)):
            begin, end, reach = self.pads[axis], self.pads[axis + self.dims], dilation * (kernel - 1)
            if self.auto_pad in ("SAME_UPPER", "SAME_LOWER") and self.strides[axis] == 1:
                begin = reach // 2 if self.auto_pad == "SAME_UPPER" else -(-reach // 2)
                end = reach - begin
            elif self.auto_pad == "VALID":
                begin = end = 0
            elif self.auto_pad != "NOTSET":
                return None
            if begin + end != reach or begin % dilation:
                return None
            found.append(begin // dilation)
        return tuple(found)

    @property
    def keeps_sizes(self) -> bool:
        """Whether its output has the sizes that a 1 x 1 Conv with its strides and no pads gives."""
        return self.own_tap() is not None

    def along(self, axes: Collection[int], in_channels: int, out_channels: int, *, bias: bool) -> "Conv":
        """The convolution over ``axes`` only: they keep kernel, stride, pads, output padding and dilation."""
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_shape=_keep(self.kernel_shape, axes, 1),
            strides=_keep(self.strides, axes, 1),
            dilations=_keep(self.dilations, axes, 1),
            pads=_keep(self.pads[: self.dims], axes, 0) + _keep(self.pads[self.dims :], axes, 0),
            output_padding=_keep(self.output_padding, axes, 0),
            bias=bias,
        )

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool, group: int = 1) -> "Conv":
        """A 1 x 1 convolution with as many spatial dimensions as this one."""
        ones = (1,) * self.dims
        return Conv(in_channels, out_channels, ones, ones, (0,) * (2 * self.dims), ones, group=group, bias=bias)


def _keep(values: Sequence[int], axes: Collection[int], other: int) -> tuple[int, ...]:
    return tuple(value if axis in axes else other for axis, value in enumerate(values))
