"""Operators of detectors that read regions of a feature map."""

from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call


def _roi_align(attributes: Attributes) -> Call:
    """RoiAlign by averages (He et al., Mask R-CNN, 2017).

    Bilinear samples on a regular grid, and their means over bins, are linear along each axis by itself: a region is
    A F B', with one matrix for its rows and one for its columns.
    """
    high, wide = attributes.get("output_height", 1), attributes.get("output_width", 1)
    ratio, scale = attributes.get("sampling_ratio", 0), attributes.get("spatial_scale", 1.0)
    attributes.choice("mode", ("avg",))
    modes = ("half_pixel", "output_half_pixel") if attributes.opset >= 16 else ("output_half_pixel", "half_pixel")
    aligned = attributes.choice("coordinate_transformation_mode", modes) == "half_pixel"

    def means(first: Any, last: Any, bins: int, size: int) -> Any:
        """[bins, size]: what each of ``size`` pixels has of the mean in each bin between two corners."""
        first, last = (corner * scale - 0.5 * aligned for corner in (first, last))
        length = last - first if aligned else (last - first).clamp(min=1)
        each = ratio if ratio > 0 else int((length / bins).ceil())
        if each < 1:  # a region without extent
            return first.new_zeros((bins, size))
        steps = torch.arange(bins * each, device=first.device, dtype=first.dtype)
        at = first + (steps + 0.5) * (length / (bins * each))
        inside = (at >= -1) & (at <= size)
        pixels = torch.arange(size, device=first.device, dtype=first.dtype)
        shares = (1 - (at.clamp(0, size - 1)[:, None] - pixels).abs()).clamp(min=0) * inside[:, None]
        return shares.reshape(bins, each, size).mean(1)

    def call(x: Any, regions: Any, batch: Any) -> Any:
        found = []
        for (left, top, right, bottom), sample in zip(regions, batch.tolist(), strict=True):
            rows, columns = means(top, bottom, high, x.shape[2]), means(left, right, wide, x.shape[3])
            found.append(rows @ x[sample] @ columns.t())
        return torch.stack(found) if found else x.new_zeros((0, x.shape[1], high, wide))

    return call


TABLE: dict[str, Builder] = {"RoiAlign": _roi_align}
