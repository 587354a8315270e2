"""Resize and Upsample in all their forms, and grids of positions.

Every interpolation of ONNX works along one axis after the other, and gives each new element as a weighted sum of a few
old ones (taps). Which ones they are, and their weights, is computed in numpy for each axis; torch then only picks and
adds. So one piece of code serves all modes, and any number of axes.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from onnxsep.training.attributes import Attributes, Builder, Call

_COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
    "half_pixel_symmetric",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")


@dataclass(frozen=True)
class _How:
    """The attributes of a Resize that say which elements make a new one.

    ``nearest`` is "simple" in opset 10 and older, whose runtime takes the next element where it makes smaller.
    """

    mode: str
    coordinates: str = "asymmetric"
    nearest: str = "simple"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


def _positions(how: _How, size: int, new: int, scale: float, roi: tuple[float, float]) -> Any:
    """Where each new element lies among the old ones, in float32 as the runtime computes it."""
    place: Any = np.arange(new, dtype=np.float32)
    factor, half = np.float32(scale), np.float32(0.5)
    start, end = np.float32(roi[0]), np.float32(roi[1])
    middle = np.full(new, half * (start + end) * np.float32(size - 1), np.float32)
    stretched = (place + half) / factor - half
    if how.coordinates == "half_pixel":
        return stretched
    if how.coordinates == "pytorch_half_pixel":
        return stretched if new > 1 else np.zeros_like(place)
    if how.coordinates == "align_corners":
        return place * np.float32(size - 1) / np.float32(new - 1) if new > 1 else np.zeros_like(place)
    if how.coordinates == "asymmetric":
        return place / factor
    if how.coordinates == "tf_half_pixel_for_nn":
        return (place + half) / factor
    if how.coordinates == "tf_crop_and_resize":
        step = (end - start) * np.float32(size - 1) / np.float32(max(new - 1, 1))
        return start * np.float32(size - 1) + place * step if new > 1 else middle
    adjustment = np.float32(new) / (factor * np.float32(size))
    return np.float32(size / 2) * (1 - adjustment) + stretched


def _nearest(how: _How, at: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    if how.nearest == "simple":
        found = np.ceil(at) if scale < 1 else np.trunc(at)
    elif how.nearest == "floor":
        found = np.floor(at)
    elif how.nearest == "ceil":
        found = np.ceil(at)
    elif how.nearest == "round_prefer_floor":
        found = np.ceil(at - np.float32(0.5))
    else:
        found = np.floor(at + np.float32(0.5))
    return found.astype(np.int64)


def _kernel(how: _How, distance: NDArray[np.float64]) -> Any:
    """The weight of an element at some distance: a triangle, or R. Keys' cubic convolution."""
    x, a = np.abs(distance), how.cubic
    if how.mode == "linear":
        return np.maximum(1 - x, 0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def _taps(
    how: _How, size: int, new: int, scale: float, roi: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    """For each new element: the old ones [new, taps], their weights, and whether it lies outside; None where all are 1.

    An outside element is one that tf_crop_and_resize fills.
    """
    at = _positions(how, size, new, scale, roi)
    outside = None
    if how.coordinates == "tf_crop_and_resize":
        outside = (at < 0) | (at > size - 1)
    if how.mode == "nearest":
        return _nearest(how, at, scale).clip(0, size - 1)[:, None], None, outside
    wide = at.astype(np.float64)
    stretch = max(1.0, 1 / scale) if how.antialias else 1.0
    if how.mode == "linear" and not how.antialias:
        wide = wide.clip(0, size - 1)
    reach = (1 if how.mode == "linear" else 2) * stretch
    first = np.floor(wide - reach).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2 * reach) + 1)
    weights = _kernel(how, (taps - wide[:, None]) / stretch)
    if how.exclude_outside:
        weights = np.where((taps < 0) | (taps >= size), 0.0, weights)
    if how.exclude_outside or how.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    used = np.abs(weights).max(0) > 0
    return taps[:, used].clip(0, size - 1), weights[:, used].astype(np.float32), outside


def _along(x: Any, axis: int, how: _How, new: int, scale: float, roi: tuple[float, float]) -> Any:
    places, weights, outside = _taps(how, x.shape[axis], new, scale, roi)
    column = [-1 if index == axis else 1 for index in range(x.dim())]
    y: Any = None
    for tap in range(places.shape[1]):
        part = x.index_select(axis, torch.from_numpy(places[:, tap].copy()).to(x.device))
        if weights is not None:
            part = part * torch.from_numpy(weights[:, tap].copy()).to(x.device, x.dtype).reshape(column)
        y = part if y is None else y + part
    if outside is not None and outside.any():
        y = torch.where(torch.from_numpy(outside).to(x.device).reshape(column), how.extrapolation, y)
    return y


def _is_of_torch(x: Any, how: _How, sizes: Sequence[int], scales: Sequence[float]) -> bool:
    """Whether torch's own interpolation of images is the same: its code for that is faster."""
    if x.dim() != 4 or any(new != old * scale for new, old, scale in zip(sizes, x.shape, scales, strict=True)):
        return False
    if tuple(sizes[:2]) != tuple(x.shape[:2]) or how.antialias or min(sizes) < 2:
        return False
    if how.mode == "nearest":
        grows = all(scale >= 1 for scale in scales)
        return how.coordinates == "asymmetric" and (how.nearest == "floor" or (how.nearest == "simple" and grows))
    half = how.coordinates in ("half_pixel", "pytorch_half_pixel")
    return how.mode == "linear" and (half or how.coordinates == "align_corners")


def _resized(x: Any, how: _How, sizes: Sequence[int], scales: Sequence[float], roi: Sequence[float]) -> Any:
    if _is_of_torch(x, how, sizes, scales):
        if how.mode == "nearest":
            return functional.interpolate(x, list(sizes[2:]), mode="nearest")
        corners = how.coordinates == "align_corners"
        return functional.interpolate(x, list(sizes[2:]), mode="bilinear", align_corners=corners)
    crops = how.coordinates == "tf_crop_and_resize"
    for axis, (new, scale) in enumerate(zip(sizes, scales, strict=True)):
        window = (float(roi[axis]), float(roi[axis + len(sizes)])) if crops else (0.0, 1.0)
        if scale != 1 or new != x.shape[axis] or window != (0.0, 1.0):
            x = _along(x, axis, how, new, scale, window)
    return x


def _resize(attributes: Attributes) -> Call:
    mode = attributes.choice("mode", ("nearest", "linear", "cubic"))
    if attributes.opset < 11:
        how = _How(mode)
    else:
        how = _How(
            mode,
            attributes.choice("coordinate_transformation_mode", _COORDINATES),
            attributes.choice("nearest_mode", _NEAREST),
            attributes.get("cubic_coeff_a", -0.75),
            attributes.flag("antialias"),
            attributes.flag("exclude_outside"),
            attributes.get("extrapolation_value", 0.0),
        )
    policy = attributes.choice("keep_aspect_ratio_policy", ("stretch", "not_larger", "not_smaller"))
    chosen = attributes.ints("axes")

    def call(x: Any, *inputs: Any) -> Any:
        roi, factors, sizes = (*([None] if attributes.opset < 11 else []), *inputs, None, None, None)[:3]
        axes = list(range(x.dim())) if chosen is None else [axis % x.dim() for axis in chosen]
        scales, shape = [1.0] * x.dim(), list(x.shape)
        window = [0.0] * x.dim() + [1.0] * x.dim()
        if how.coordinates == "tf_crop_and_resize" and roi is not None:
            for index, axis in enumerate(axes):
                window[axis], window[axis + x.dim()] = float(roi[index]), float(roi[index + len(axes)])
        if factors is not None and factors.numel():
            for axis, factor in zip(axes, factors.tolist(), strict=True):
                scales[axis], shape[axis] = factor, math.floor(np.float32(factor) * np.float32(x.shape[axis]))
        else:
            wanted = [int(size) for size in sizes.tolist()]
            ratios = [size / x.shape[axis] for axis, size in zip(axes, wanted, strict=True)]
            if policy != "stretch":
                one = min(ratios) if policy == "not_larger" else max(ratios)
                ratios = [one] * len(axes)
                wanted = [math.floor(one * x.shape[axis] + 0.5) for axis in axes]
            for axis, ratio, size in zip(axes, ratios, wanted, strict=True):
                scales[axis], shape[axis] = ratio, size
        return _resized(x, how, shape, scales, window)

    return call


def _upsample(attributes: Attributes) -> Call:
    mode = attributes.choice("mode", ("nearest", "linear", "bilinear"))
    how = _How("linear" if mode == "bilinear" else mode)
    fixed = attributes.get("scales")
    high, wide = attributes.get("height_scale"), attributes.get("width_scale")  # of version 1
    if fixed is None and high is not None:
        fixed = [1.0, 1.0, high, wide]

    def call(x: Any, scales: Any = None) -> Any:
        factors = [float(factor) for factor in (fixed if scales is None else scales.tolist())]
        shape = [math.floor(np.float32(f) * np.float32(size)) for f, size in zip(factors, x.shape, strict=True)]
        return _resized(x, how, shape, factors, [])

    return call


def _grid_sample(attributes: Attributes) -> Call:
    mode = attributes.choice("mode", ("bilinear", "nearest", "bicubic", "linear", "cubic"))
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding = attributes.choice("padding_mode", ("zeros", "border", "reflection"))
    corners = attributes.flag("align_corners")
    return lambda x, grid: functional.grid_sample(x, grid.to(x.dtype), mode, padding, corners)


def _affine_grid(attributes: Attributes) -> Call:
    corners = attributes.flag("align_corners")
    return lambda theta, size: functional.affine_grid(theta, size.tolist(), corners)


TABLE: dict[str, Builder] = {
    "Resize": _resize,
    "Upsample": _upsample,
    "GridSample": _grid_sample,
    "AffineGrid": _affine_grid,
}
