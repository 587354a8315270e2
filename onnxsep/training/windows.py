"""Convolutions with torch: windows that slide over the spatial axes; :mod:`onnxsep.training.pools` uses them too.

ONNX pads the two sides of an axis by themselves, or as much as the input's size asks for (auto_pad); torch pads both
sides alike. So unequal sides are padded before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from onnxsep.training.attributes import Attributes, Builder, Call


def torch_order(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Pads as torch wants them: last axis first, both sides together."""
    return [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]


@dataclass(frozen=True)
class Window:
    """Kernel, strides, dilations and pads of a Conv or a pool; None where the node leaves them to their defaults."""

    strides: list[int] | None
    dilations: list[int] | None
    pads: list[int] | None
    auto_pad: str

    @classmethod
    def of(cls, attributes: Attributes) -> "Window":
        """Read them."""
        strides, dilations, pads = (attributes.ints(name) for name in ("strides", "dilations", "pads"))
        auto_pad = attributes.choice("auto_pad", ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))
        return cls(strides, dilations, pads, auto_pad)

    def spans(self, kernel: Sequence[int]) -> list[int]:
        """How many elements a window reaches over along every spatial axis."""
        steps = self.dilations or [1] * len(kernel)
        return [(taps - 1) * step + 1 for taps, step in zip(kernel, steps, strict=True)]

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
        """Elements to add in front of and behind every spatial axis of these sizes."""
        rank = len(kernel)
        if self.auto_pad == "VALID":
            return [0] * rank, [0] * rank
        if self.auto_pad == "NOTSET":
            pads = self.pads or [0] * 2 * rank
            return pads[:rank], pads[rank:]
        strides = self.strides or [1] * rank
        totals = [
            max((-(-size // stride) - 1) * stride + span - size, 0)
            for size, stride, span in zip(sizes, strides, self.spans(kernel), strict=True)
        ]
        small, large = [total // 2 for total in totals], [-(-total // 2) for total in totals]
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    def padded(self, x: Any, kernel: Sequence[int], value: float) -> tuple[Any, Any]:
        """The input and what torch is to add on both sides.

        Here, with ``value``, is added what torch cannot add: unequal sides, and in pools more than half a window.
        """
        begin, end = self.padding(x.shape[2:], kernel)
        if begin == end and all(2 * size <= span for size, span in zip(begin, self.spans(kernel), strict=True)):
            return x, begin
        return functional.pad(x, torch_order(begin, end), value=value), [0] * len(kernel)


def _conv(attributes: Attributes) -> Call:
    window, group = Window.of(attributes), attributes.get("group", 1)
    attributes.ignore("kernel_shape")
    strided = group > 1 and any(size > 1 for size in window.strides or ())

    def call(x: Any, weight: Any, bias: Any = None) -> Any:
        rank = weight.dim() - 2
        if rank == 2:  # a third of the time less on the CPU; later Convs find their input in this order already
            x = x.contiguous(memory_format=torch.channels_last)
        x, padding = window.padded(x, weight.shape[2:], 0.0)
        slide = getattr(functional, f"conv{rank}d")
        rest = (window.strides or 1, padding, window.dilations or 1, group)
        if strided and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):  # its gradient in bfloat16 takes fifteen times as long
                return slide(x.float(), weight, bias, *rest)
        return slide(x, weight, bias, *rest)

    return call


def _conv_transpose(attributes: Attributes) -> Call:
    window, group = Window.of(attributes), attributes.get("group", 1)
    extra, shape = attributes.ints("output_padding"), attributes.ints("output_shape")
    attributes.ignore("kernel_shape")

    def cuts(x: Any, kernel: Sequence[int], more: Sequence[int]) -> tuple[list[int], list[int]]:
        """What the two sides of every axis of the whole result lose."""
        strides = window.strides or [1] * len(kernel)
        if shape is None and window.auto_pad in ("NOTSET", "VALID"):
            return window.padding(x.shape[2:], kernel)
        sizes = x.shape[2:]
        wanted = (
            [size * step for size, step in zip(sizes, strides, strict=True)] if shape is None else shape[-len(kernel) :]
        )
        begin, end = [], []
        for size, step, span, add, new in zip(sizes, strides, window.spans(kernel), more, wanted, strict=True):
            total = max(step * (size - 1) + add + span - new, 0)
            first = total // 2 if window.auto_pad == "SAME_UPPER" else total - total // 2
            begin.append(first)
            end.append(total - first)
        return begin, end

    def call(x: Any, weight: Any, bias: Any = None) -> Any:
        kernel = weight.shape[2:]
        more = extra or [0] * len(kernel)
        begin, end = cuts(x, kernel, more)
        slide = getattr(functional, f"conv_transpose{len(kernel)}d")
        strides, dilations = window.strides or 1, window.dilations or 1
        # torch takes an output padding that is smaller than stride or dilation, and the same cut on both sides.
        if begin == end and not any(more):
            return slide(x, weight, bias, strides, begin, 0, group, dilations)
        y = slide(x, weight, None, strides, 0, 0, group, dilations)
        y = functional.pad(y, torch_order([-size for size in begin], [a - b for a, b in zip(more, end, strict=True)]))
        return y if bias is None else y + bias.reshape(-1, *[1] * len(kernel))

    return call


def _col2im(attributes: Attributes) -> Call:
    window = Window.of(attributes)

    def call(x: Any, image: Any, block: Any) -> Any:
        sizes, kernel = image.tolist(), block.tolist()
        if len(sizes) != 2:
            raise NotImplementedError("images of other than two axes are not supported")
        begin, end = window.padding(sizes, kernel)
        whole = [size + first + last for size, first, last in zip(sizes, begin, end, strict=True)]
        fold: Any = functional.fold  # its types ask for tuples
        y = fold(x, whole, kernel, window.dilations or 1, 0, window.strides or 1)
        return functional.pad(y, torch_order([-size for size in begin], [-size for size in end]))

    return call


def _deform_conv(attributes: Attributes) -> Call:
    """J. Dai et al., Deformable Convolutional Networks, ICCV 2017; the mask is that of X. Zhu et al., CVPR 2019."""
    window, group, groups = Window.of(attributes), attributes.get("group", 1), attributes.get("offset_group", 1)
    attributes.ignore("kernel_shape")

    def call(x: Any, weight: Any, offset: Any, bias: Any = None, mask: Any = None) -> Any:
        count, channels, *sizes = x.shape
        kernel, out = list(weight.shape[2:]), list(offset.shape[2:])
        if len(kernel) != 2:
            raise NotImplementedError("only two spatial axes are supported")
        taps = kernel[0] * kernel[1]
        begin, _ = window.padding(sizes, kernel)
        moved = offset.reshape(count, groups, taps, 2, *out)
        grids = []
        for axis in range(2):
            step, dilation = (window.strides or [1, 1])[axis], (window.dilations or [1, 1])[axis]
            place = torch.arange(out[axis], device=x.device, dtype=x.dtype) * step - begin[axis]
            tap = torch.arange(kernel[axis], device=x.device, dtype=x.dtype) * dilation
            tap = tap.repeat_interleave(kernel[1]) if axis == 0 else tap.repeat(kernel[0])
            place = place[:, None] if axis == 0 else place[None, :]
            at = tap[:, None, None] + place + moved[:, :, :, axis]
            grids.append(2 * at / max(sizes[axis] - 1, 1) - 1 if sizes[axis] > 1 else at)
        grid = torch.stack(grids[::-1], -1).reshape(count * groups, taps * out[0], out[1], 2)
        parts = x.reshape(count * groups, channels // groups, *sizes)
        picked = functional.grid_sample(parts, grid, "bilinear", "zeros", True)
        picked = picked.reshape(count, groups, channels // groups, taps, *out)
        if mask is not None:
            picked = picked * mask.reshape(count, groups, 1, taps, *out)
        columns = picked.reshape(count, group, channels // group * taps, out[0] * out[1])
        y = weight.reshape(group, weight.shape[0] // group, -1) @ columns
        y = y.reshape(count, -1, *out)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    return call


TABLE: dict[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Col2Im": _col2im,
    "DeformConv": _deform_conv,
}
