"""Operators that give elements another place or shape, and those that make tensors of sizes."""

from typing import Any

import numpy as np
import torch
from onnx import numpy_helper

from onnxsep.training.attributes import Attributes, Builder, Call, plain
from onnxsep.training.elementwise import dtype_of
from onnxsep.training.windows import torch_order

# ---------------------------------------------------------------- shapes


def _reshape(attributes: Attributes) -> Call:
    zero, fixed = attributes.flag("allowzero"), attributes.get("shape")

    def call(x: Any, shape: Any = None) -> Any:
        sizes = list(fixed) if shape is None else shape.tolist()
        if not zero:
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return call


def _flatten(attributes: Attributes) -> Call:
    axis = attributes.get("axis", 1)

    def call(x: Any) -> Any:
        split = axis % x.dim() if axis < 0 else axis
        # Not -1: a tensor without elements would leave it open.
        return x.reshape(x.shape[:split].numel(), x.shape[split:].numel())

    return call


def _transpose(attributes: Attributes) -> Call:
    order = attributes.get("perm")
    return lambda x: x.permute(list(order) if order else list(range(x.dim()))[::-1])


def _squeeze(attributes: Attributes) -> Call:
    fixed = attributes.get("axes")

    def call(x: Any, axes: Any = None) -> Any:
        chosen = fixed if axes is None else axes.tolist()
        return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))

    return call


def _unsqueeze(attributes: Attributes) -> Call:
    fixed = attributes.get("axes")

    def call(x: Any, axes: Any = None) -> Any:
        chosen = fixed if axes is None else axes.reshape(-1).tolist()
        rank = x.dim() + len(chosen)
        for axis in sorted(axis % rank for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return call


def _expand(x: Any, shape: Any) -> Any:
    sizes = torch.broadcast_shapes(x.shape, tuple(shape.tolist()))  # type: ignore[no-untyped-call, unused-ignore]
    return x.expand(sizes)


def _tile(x: Any, repeats: Any, axis: Any = None) -> Any:
    if axis is None:
        return x.repeat(repeats.tolist())
    counts = [1] * x.dim()  # Tile-1: so many tiles along one axis
    counts[int(axis)] = int(repeats)
    return x.repeat(counts)


def _concat(attributes: Attributes) -> Call:
    axis = attributes.get("axis", 1)
    return lambda *tensors: torch.cat(tensors, axis)


def _split(attributes: Attributes) -> Call:
    axis, fixed = attributes.get("axis", 0), attributes.get("split")
    parts = attributes.get("num_outputs", attributes.outputs)

    def call(x: Any, split: Any = None) -> Any:
        sizes = fixed if split is None else split.tolist()
        if sizes is None:
            each = -(-x.shape[axis] // parts)  # the last one may be smaller
            sizes = [min(each, x.shape[axis] - each * index) for index in range(parts)]
        return tuple(torch.split(x, list(sizes), axis))

    return call


def _pad(attributes: Attributes) -> Call:
    mode = attributes.choice("mode", ("constant", "reflect", "edge", "wrap"))
    fixed: Any = attributes.ints("pads") or attributes.ints("paddings")
    filler = attributes.get("value", 0.0)

    def call(x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
        sizes = [int(size) for size in (fixed if pads is None else pads.tolist())]
        half = len(sizes) // 2
        begin, end = [0] * x.dim(), [0] * x.dim()
        for index, axis in enumerate(range(half) if axes is None else axes.tolist()):
            begin[axis], end[axis] = sizes[index], sizes[half + index]
        if mode == "constant":
            return torch.nn.functional.pad(
                x, torch_order(begin, end), value=filler if value is None or not value.numel() else value.item()
            )
        for axis, (first, last) in enumerate(zip(begin, end, strict=True)):
            if first or last:  # torch pads in these modes along some axes only, so pick elements
                size = x.shape[axis]
                picked = np.pad(np.arange(size), (max(first, 0), max(last, 0)), mode)  # type: ignore[call-overload]
                picked = picked[max(-first, 0) : len(picked) - max(-last, 0)]
                x = x.index_select(axis, torch.from_numpy(picked).to(x.device))
        return x

    return call


def _slice(attributes: Attributes) -> Call:
    fixed = [attributes.get(name) for name in ("starts", "ends", "axes")]

    def call(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
        begins, stops, where = (
            own if tensor is None else tensor.tolist() for own, tensor in zip(fixed, (starts, ends, axes), strict=True)
        )
        index, flipped = [slice(None)] * x.dim(), []
        for number, (begin, stop) in enumerate(zip(begins or (), stops or (), strict=True)):
            axis = (where[number] if where else number) % x.dim()
            step = 1 if steps is None else int(steps[number])
            picked = range(x.shape[axis])[begin:stop:step]
            if step < 0:  # torch has no negative steps: take the same elements forwards, then turn them round
                picked = picked[::-1]
                flipped.append(axis)
            index[axis] = slice(picked.start, picked.stop, picked.step) if len(picked) else slice(0, 0)
        y = x[tuple(index)]
        return y.flip(flipped) if flipped else y

    return call


def _center_crop_pad(attributes: Attributes) -> Call:
    fixed = attributes.ints("axes")

    def call(x: Any, shape: Any) -> Any:
        begin, end = [0] * x.dim(), [0] * x.dim()
        for axis, size in zip(range(x.dim()) if fixed is None else fixed, shape.tolist(), strict=True):
            missing = size - x.shape[axis]
            # The odd element is missing, or left over, at the end.
            begin[axis] = missing // 2 if missing >= 0 else -(-missing // 2)
            end[axis] = missing - begin[axis]
        return torch.nn.functional.pad(x, torch_order(begin, end))

    return call


# ---------------------------------------------------------------- channels and positions


def _depth_to_space(attributes: Attributes) -> Call:
    block, mode = attributes.need("blocksize"), attributes.choice("mode", ("DCR", "CRD"))

    def call(x: Any) -> Any:
        if mode == "CRD":
            return torch.pixel_shuffle(x, block)
        count, channels, high, wide = x.shape
        parts = x.reshape(count, block, block, channels // block**2, high, wide).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(count, channels // block**2, high * block, wide * block)

    return call


def _space_to_depth(attributes: Attributes) -> Call:
    block, mode = attributes.need("blocksize"), attributes.choice("mode", ("DCR", "CRD"))

    def call(x: Any) -> Any:
        if mode == "CRD":
            return torch.pixel_unshuffle(x, block)
        count, channels, high, wide = x.shape
        parts = x.reshape(count, channels, high // block, block, wide // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(count, channels * block**2, high // block, wide // block)

    return call


def _trilu(attributes: Attributes) -> Call:
    part = torch.triu if attributes.flag("upper", True) else torch.tril
    return lambda x, k=None: part(x, 0 if k is None else int(k))


def _reverse_sequence(attributes: Attributes) -> Call:
    time, batch = attributes.get("time_axis", 0), attributes.get("batch_axis", 1)

    def call(x: Any, lengths: Any) -> Any:
        moved = x.movedim((batch, time), (0, 1))
        places = torch.arange(moved.shape[1], device=x.device).expand(moved.shape[:2])
        ends = lengths.reshape(-1, 1)
        turned = torch.where(places < ends, ends - 1 - places, places)
        turned = turned.reshape(*turned.shape, *[1] * (moved.dim() - 2)).expand(moved.shape)
        return moved.gather(1, turned).movedim((0, 1), (batch, time))

    return call


# ---------------------------------------------------------------- tensors of sizes


def _shape(attributes: Attributes) -> Call:
    start, end = attributes.get("start", 0), attributes.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def _size(x: Any) -> Any:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def _constant_of_shape(attributes: Attributes) -> Call:
    tensor = attributes.get("value")
    values = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor).reshape(1)
    one = torch.from_numpy(np.array(values))
    return lambda shape: one.to(shape.device).reshape([1] * shape.numel()).repeat(shape.tolist())


def _range(start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (tensor.item() for tensor in (start, limit, delta))
    count = max(int(np.ceil((last - first) / step)), 0)
    return torch.arange(count, device=start.device, dtype=start.dtype) * step + first


def _eye_like(attributes: Attributes) -> Call:
    number, k = attributes.get("dtype"), attributes.get("k", 0)
    dtype = None if number is None else dtype_of(number)

    def call(x: Any) -> Any:
        y = torch.zeros(x.shape, dtype=dtype or x.dtype, device=x.device)
        y.diagonal(k).fill_(1)
        return y

    return call


TABLE: dict[str, Builder] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": plain(_expand),
    "Tile": plain(_tile),
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
    "CenterCropPad": _center_crop_pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
    "ReverseSequence": _reverse_sequence,
    "Identity": plain(lambda x: x),
    "Shape": _shape,
    "Size": plain(_size),
    "ConstantOfShape": _constant_of_shape,
    "Range": plain(_range),
    "EyeLike": _eye_like,
}
