"""Sampling output positions of a Conv, and gathering what it reads and what tensors hold there.

A Gemm or MatMul is a Conv without spatial dimensions: every row of its input is a position.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.layers.conv import Conv

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Stack:
    """Rows that come in parts, in one array: joined in the end they would be in memory twice."""

    def __init__(self) -> None:
        self._array: Floats | None = None
        self._count = 0

    def add(self, rows: Floats, expected: int) -> None:
        """Some more rows, [n, columns]; ``expected`` is about how many there will be in all."""
        count = self._count + len(rows)
        if self._array is None:
            self._array = np.empty((max(expected, count), rows.shape[1]), np.float32)  # memory is taken as rows come
        elif count > len(self._array):
            more = np.empty((max(count - self._count, self._count // 2), rows.shape[1]), np.float32)
            self._array = np.concatenate([self.rows, more])
        self._array[self._count : count] = rows
        self._count = count

    @property
    def rows(self) -> Floats:
        """All of them so far."""
        assert self._array is not None, "there is at least one batch"
        return self._array[: self._count]


def choose_positions(conv: Conv, size: Sequence[int], images: int, count: int, rng: np.random.Generator) -> Indices:
    """Flat indices of output positions, [images, min(count, all)], without repetition within an image.

    Args:
        conv: the Conv.
        size: spatial sizes of its input; for a linear layer the sizes between batch and channels.
        images: in the batch.
        count: positions per image.
        rng: the same generator state gives the same positions.
    """
    total = math.prod(size if conv.dims == 0 else conv.output_size(size))
    if count >= total:
        return np.tile(np.arange(total), (images, 1))
    return np.sort(np.argpartition(rng.random((images, total)), count, axis=1)[:, :count], axis=1)


def input_sizes(conv: Conv, shape: Sequence[int]) -> tuple[int, ...]:
    """What ``choose_positions`` calls the size, of an input of this shape."""
    return tuple(shape[1:-1]) if conv.dims == 0 else tuple(shape[2:])


def output_shape(conv: Conv, images: int, size: Sequence[int]) -> tuple[int, ...]:
    """Shape of the Conv's output for an input of these sizes, which are those of ``choose_positions``."""
    return (
        (images, *size, conv.out_channels) if conv.dims == 0 else (images, conv.out_channels, *conv.output_size(size))
    )


def gather_patches(conv: Conv, values: NDArray[Any], positions: Indices) -> Floats:
    """The patches under the kernel at output positions.

    Under a tap of a transposed Conv lies the input that it carries there, or nothing: taps are not next to each other.

    Args:
        conv: the Conv.
        values: its input, [images, in_channels, *size]; for a linear layer [images, ..., in_channels].
        positions: [images, n] as ``choose_positions`` gives them.

    Returns:
        [images * n, in_channels * taps], the taps of a channel together, zeros where the kernel hangs over the edge.
    """
    images, count = positions.shape
    if conv.dims == 0:
        entries = values.reshape(images, -1, values.shape[-1])
        return entries[np.arange(images)[:, None], positions].reshape(images * count, -1).astype(np.float32)
    size = values.shape[2:]
    places = np.unravel_index(positions, conv.output_size(size))
    index = np.zeros((images, count, *(1,) * conv.dims), np.int64)
    inside = np.ones(index.shape, bool)
    for axis in range(conv.dims):
        taps = np.arange(conv.kernel_shape[axis]) * conv.dilations[axis]
        before, stride = pad_before(conv, axis, size[axis]), conv.strides[axis]
        if conv.transposed:  # input p meets tap t at p * stride + t - before
            at, left = np.divmod(places[axis][..., None] + before - taps, stride)
            at[left > 0] = -1
        else:
            at = places[axis][..., None] * stride + taps - before  # [images, n, k]
        at = at.reshape(images, count, *(-1 if other == axis else 1 for other in range(conv.dims)))
        inside = inside & (at >= 0) & (at < size[axis])
        index = index * size[axis] + np.clip(at, 0, size[axis] - 1)
    flat = values.reshape(images, values.shape[1], -1)
    patches = flat[np.arange(images)[:, None, None], :, index.reshape(images, count, -1)]  # [images, n, taps, channels]
    if not inside.all():  # in place: with many channels these are hundreds of megabytes
        patches[~inside.reshape(images, count, -1)] = 0
    rows: Floats = patches.transpose(0, 1, 3, 2).reshape(images * count, -1).astype(np.float32, copy=False)
    return rows


def gather_outputs(conv: Conv, values: NDArray[Any], positions: Indices) -> Floats:
    """What a tensor in the shape of the Conv's output holds at output positions, [images * n, out_channels]."""
    images = len(positions)
    if conv.dims == 0:
        rows = values.reshape(images, -1, values.shape[-1])
    else:
        rows = values.reshape(images, values.shape[1], -1).transpose(0, 2, 1)
    return rows[np.arange(images)[:, None], positions].reshape(-1, rows.shape[-1]).astype(np.float32)


def pad_before(conv: Conv, axis: int, size: int) -> int:
    """Padding before the first element of an axis of this size, automatic padding resolved as ONNX says.

    Of a transposed Conv it is what is cut off before the first element of the output.
    """
    if conv.auto_pad == "NOTSET":
        return conv.pads[axis]
    if conv.auto_pad == "VALID":
        return 0
    if conv.transposed:
        return conv.cut(axis)[0]
    total = max(0, (-(-size // conv.strides[axis]) - 1) * conv.strides[axis] + conv.window(axis) - size)
    return total // 2 if conv.auto_pad == "SAME_UPPER" else total - total // 2
