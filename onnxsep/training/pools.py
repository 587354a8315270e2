"""Pools with torch: the largest element, mean or norm of every window."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from onnxsep.training.attributes import Attributes, Builder, Call, plain
from onnxsep.training.windows import Window, torch_order


def _max_pool(attributes: Attributes) -> Call:
    window, kernel = Window.of(attributes), [int(size) for size in attributes.need("kernel_shape")]
    ceil, by_column = attributes.flag("ceil_mode"), attributes.flag("storage_order")
    rank, indices = len(kernel), attributes.outputs > 1

    def call(x: Any) -> Any:
        padded, padding = window.padded(x, kernel, float("-inf"))
        pool = getattr(functional, f"max_pool{rank}d")
        rest = (kernel, window.strides or 1, padding, window.dilations or 1, ceil)
        if not indices:
            return pool(padded, *rest)
        y, flat = pool(padded, *rest, return_indices=True)
        begin = window.padding(x.shape[2:], kernel)[0] if padded is not x else [0] * rank
        return y, _places(flat, x.shape, padded.shape, begin, by_column)

    return call


def _places(flat: Any, shape: Sequence[int], padded: Sequence[int], begin: Sequence[int], by_column: bool) -> Any:
    """Places in the whole tensor, as ONNX counts them, from those in the padded positions of one channel."""
    along = []
    for size, first in zip(reversed(padded[2:]), reversed(begin), strict=True):
        along.append(flat % size - first)
        flat = flat // size
    sizes = list(shape[2:])
    if by_column:
        sizes = sizes[::-1]
    else:
        along = along[::-1]
    place: Any = torch.zeros_like(along[0])
    for position, size in zip(along, sizes, strict=True):
        place = place * size + position
    count, channels, volume = shape[0], shape[1], torch.Size(shape[2:]).numel()
    lead: Any = torch.arange(count * channels, device=place.device) * volume
    return place + lead.reshape(count, channels, *[1] * (place.dim() - 2))


def _max_unpool(attributes: Attributes) -> Call:
    window, kernel = Window.of(attributes), [int(size) for size in attributes.need("kernel_shape")]

    def call(x: Any, places: Any, shape: Any = None) -> Any:
        begin, end = window.padding(x.shape[2:], kernel)
        strides = window.strides or [1] * len(kernel)
        sizes = [
            (size - 1) * step + taps - first - last
            for size, step, taps, first, last in zip(x.shape[2:], strides, kernel, begin, end, strict=True)
        ]
        # The places are those in the smallest tensor that the pool can have read.
        y = x.new_zeros(x.shape[0] * x.shape[1] * torch.Size(sizes).numel())
        y = y.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(*x.shape[:2], *sizes)
        if shape is None:
            return y
        more = [new - old for new, old in zip(shape.tolist(), y.shape, strict=True)]
        return functional.pad(y, torch_order([0] * y.dim(), more))

    return call


def _sums(x: Any, window: Window, kernel: Sequence[int], ceil: bool) -> Any:
    """A function that adds up the windows of a tensor like x, whose spatial axes are padded by the window's pads."""
    rank, strides = len(kernel), window.strides or [1] * len(kernel)
    begin, end = window.padding(x.shape[2:], kernel)
    more = [0] * rank
    if ceil:
        for axis, (span, step) in enumerate(zip(window.spans(kernel), strides, strict=True)):
            size = x.shape[2 + axis] + begin[axis] + end[axis]
            count = -(-(size - span) // step) + 1
            if (count - 1) * step >= x.shape[2 + axis] + begin[axis]:  # no window starts in the pads behind
                count -= 1
            more[axis] = max((count - 1) * step + span - size, 0)
    slide = getattr(functional, f"conv{rank}d")

    def sums(values: Any, filler: float) -> Any:
        """The pads of the window hold ``filler``, what is beyond them for ceil_mode holds 0."""
        count, channels = values.shape[:2]
        flat = values.reshape(count * channels, 1, *values.shape[2:])
        flat = functional.pad(flat, torch_order(begin, end), value=filler)
        flat = functional.pad(flat, torch_order([0] * rank, more))
        taps = torch.ones(1, 1, *kernel, device=values.device, dtype=values.dtype)
        y = slide(flat, taps, None, strides, 0, window.dilations or 1)
        return y.reshape(count, channels, *y.shape[2:])

    return sums


def _average_pool(attributes: Attributes) -> Call:
    window, kernel = Window.of(attributes), [int(size) for size in attributes.need("kernel_shape")]
    ceil, include = attributes.flag("ceil_mode"), attributes.flag("count_include_pad")
    dilated = any(size != 1 for size in window.dilations or ())

    def call(x: Any) -> Any:
        padded, padding = window.padded(x, kernel, 0.0)
        if padded is x and not dilated:
            pool = getattr(functional, f"avg_pool{len(kernel)}d")
            return pool(x, kernel, window.strides or 1, padding, ceil, include)
        sums = _sums(x, window, kernel, ceil)
        return sums(x, 0.0) / sums(torch.ones_like(x[:1, :1]), float(include))

    return call


def _root(sums: Any, p: float) -> Any:
    """The p-th root of sums that are 0 or more; its gradient is 0 where the sum is 0, and not infinite."""
    empty = sums <= 0
    return sums.masked_fill(empty, 1.0).pow(1 / p).masked_fill(empty, 0.0)


def _lp_pool(attributes: Attributes) -> Call:
    window, kernel, p = (
        Window.of(attributes),
        [int(size) for size in attributes.need("kernel_shape")],
        attributes.get("p", 2),
    )
    ceil = attributes.flag("ceil_mode")
    return lambda x: _root(_sums(x, window, kernel, ceil)(x.abs().pow(p), 0.0), p)


def _global_pool(kind: Call) -> Builder:
    return plain(lambda x: kind(x, dim=tuple(range(2, x.dim())), keepdim=True))


TABLE: dict[str, Builder] = {
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
}
