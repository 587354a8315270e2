"""Conv, ConvTranspose and the pools with torch: windows that slide over the spatial axes.

ONNX pads the two sides of an axis by themselves, or as much as the input's size asks for (auto_pad); torch pads both
sides alike. So unequal sides are padded before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Attributes = dict[str, Any]
Call = Callable[..., Any]


def torch_order(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Pads as torch wants them: last axis first, both sides together."""
    return [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]


def _torch() -> Any:
    import torch

    return torch


@dataclass(frozen=True)
class _Window:
    """Kernel, strides, dilations and pads of a Conv or a pool; None where the node leaves them to their defaults."""

    strides: list[int] | None
    dilations: list[int] | None
    pads: list[int] | None
    auto_pad: str

    @classmethod
    def of(cls, attributes: Attributes) -> "_Window":
        values = [attributes.get(name) for name in ("strides", "dilations", "pads")]
        lists = [None if value is None else [int(item) for item in value] for value in values]
        return cls(lists[0], lists[1], lists[2], attributes.get("auto_pad", "NOTSET") or "NOTSET")

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
        """Elements to add in front of and behind every spatial axis of these sizes."""
        rank = len(kernel)
        if self.auto_pad == "VALID":
            return [0] * rank, [0] * rank
        if self.auto_pad == "NOTSET":
            pads = self.pads or [0] * 2 * rank
            return pads[:rank], pads[rank:]
        strides, dilations = self.strides or [1] * rank, self.dilations or [1] * rank
        totals = [
            max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
            for size, stride, dilation, taps in zip(sizes, strides, dilations, kernel, strict=True)
        ]
        small, large = [total // 2 for total in totals], [-(-total // 2) for total in totals]
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)

    def padded(self, x: Any, kernel: Sequence[int], value: float) -> tuple[Any, Any]:
        """The input and what torch is to add on both sides.

        Here, with ``value``, is added what torch cannot add: unequal sides, and in pools more than half a window.
        """
        begin, end = self.padding(x.shape[2:], kernel)
        spans = [(taps - 1) * step + 1 for taps, step in zip(kernel, self.dilations or [1] * len(kernel), strict=True)]
        if begin == end and all(2 * size <= span for size, span in zip(begin, spans, strict=True)):
            return x, begin
        return _torch().nn.functional.pad(x, torch_order(begin, end), value=value), [0] * len(kernel)


def conv(attributes: Attributes, _: int) -> Call:
    """Conv-1 and later."""
    torch, window, group = _torch(), _Window.of(attributes), attributes.get("group", 1)
    functional = torch.nn.functional
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


def conv_transpose(attributes: Attributes, _: int) -> Call:
    """ConvTranspose-1 and later, with explicit pads."""
    functional, window, group = _torch().nn.functional, _Window.of(attributes), attributes.get("group", 1)
    if window.auto_pad not in ("NOTSET", "VALID") or "output_shape" in attributes:
        raise NotImplementedError("auto_pad and output_shape are not supported")
    extra = attributes.get("output_padding", 0)

    def call(x: Any, weight: Any, bias: Any = None) -> Any:
        rank = weight.dim() - 2
        begin, end = window.padding(x.shape[2:], weight.shape[2:])
        slide = getattr(functional, f"conv_transpose{rank}d")
        same = begin == end
        y = slide(x, weight, bias, window.strides or 1, begin if same else 0, extra, group, window.dilations or 1)
        if same:
            return y
        for axis, (first, last) in enumerate(zip(begin, end, strict=True), start=2):
            y = y.narrow(axis, first, y.shape[axis] - first - last)
        return y

    return call


def max_pool(attributes: Attributes, outputs: int) -> Call:
    """MaxPool-1 and later, its first output."""
    functional, window = _torch().nn.functional, _Window.of(attributes)
    kernel, ceil = list(attributes["kernel_shape"]), bool(attributes.get("ceil_mode", 0))
    if outputs > 1:
        raise NotImplementedError("its second output, Indices, is not supported")

    def call(x: Any) -> Any:
        x, padding = window.padded(x, kernel, float("-inf"))
        pool = getattr(functional, f"max_pool{len(kernel)}d")
        return pool(x, kernel, window.strides or 1, padding, window.dilations or 1, ceil_mode=ceil)

    return call


def average_pool(attributes: Attributes, _: int) -> Call:
    """AveragePool-1 and later."""
    torch, window = _torch(), _Window.of(attributes)
    kernel, ceil = list(attributes["kernel_shape"]), bool(attributes.get("ceil_mode", 0))
    include = bool(attributes.get("count_include_pad", 0))
    if any(size != 1 for size in window.dilations or ()):
        raise NotImplementedError("dilations are not supported")

    def call(x: Any) -> Any:
        pool = getattr(torch.nn.functional, f"avg_pool{len(kernel)}d")
        padded, padding = window.padded(x, kernel, 0.0)
        y = pool(padded, kernel, window.strides or 1, padding, ceil, include)
        if padded is x or include:
            return y
        inside, _ = window.padded(torch.ones_like(x[:1, :1]), kernel, 0.0)
        return y / pool(inside, kernel, window.strides or 1, padding, ceil, include)

    return call


def global_pool(kind: str) -> Callable[[Attributes, int], Call]:
    """GlobalAveragePool ("mean") or GlobalMaxPool ("amax")."""

    def build(_: Attributes, __: int) -> Call:
        reduce = getattr(_torch(), kind)
        return lambda x: reduce(x, dim=tuple(range(2, x.dim())), keepdim=True)

    return build
