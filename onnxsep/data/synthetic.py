"""Images for a network of which there are none: dead leaves.

Opaque shapes of random place, colour, form and size fall on each other, most of them small. Such images share with
photographs what trained filters see most of: sharp edges between smooth areas at all scales, channels that go together,
no scale that is special (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001; Baradad et al.,
"Learning to see by looking at noise", NeurIPS 2021, train networks on them). No noise of a chosen spectrum comes as
near: ``benchmarks/synthetic.py`` measures both.

Every image is made from its number alone, in the size that the model takes, when it is read.
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from onnxsep.data.images import Picture
from onnxsep.errors import DataError

SYNTHETIC = "synthetic"
_COUNT, _MOST = 300, 100_000
_LEAVES = 40
_FINE = 2  # drawn at so many times the size: edges are smooth in the result
_SMALLEST, _LARGEST = 1.5, 0.5  # radius: in pixels, and of the shorter side
_MEAN, _LIGHT, _TINT = 0.46, 0.24, 0.11  # of colours: photographs are a little dark, and vary in lightness most


def synthetic_count(source: object) -> int | None:
    """How many images are asked for; None where the source is something else, such as a folder of this name.

    Raises:
        DataError: The number is none, or too large.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    found = re.fullmatch(rf"{SYNTHETIC}(?::(.*))?", os.fspath(source))
    if found is None or Path(source).exists():
        return None
    if found[1] is None:
        return _COUNT
    if not re.fullmatch(r"[0-9]{1,6}", found[1]) or not 1 <= int(found[1]) <= _MOST:
        raise DataError(
            f"the data {os.fspath(source)!r}: behind {SYNTHETIC}: stands a number of images from 1 to {_MOST:,}, as in"
            f" {SYNTHETIC}:{_COUNT}"
        )
    return int(found[1])


def synthetic_images(count: int, size: tuple[int, int]) -> tuple[Picture, ...]:
    """So many images of dead leaves, of this height and width in pixels."""
    return tuple(
        Picture(f"synthetic image {number}", partial(dead_leaves, number, size), made_up=True)
        for number in range(1, count + 1)
    )


def dead_leaves(number: int, size: tuple[int, int]) -> Image.Image:
    """One image in RGB: the same for the same number and size (height, width)."""
    random = np.random.default_rng(number)
    height, width = (_FINE * side for side in size)
    image = Image.new("RGB", (width, height), _colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(_LEAVES):
        outline = _leaf(random, min(size)) + random.uniform((0, 0), (width, height))
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=_colour(random))
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _colour(random: np.random.Generator) -> tuple[int, ...]:
    shades = _MEAN + _LIGHT * random.standard_normal() + _TINT * random.standard_normal(3)
    return tuple(int(shade) for shade in np.clip(255 * shades, 0, 255))


def _leaf(random: np.random.Generator, side: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The corners of an ellipse, a rectangle or a rough polygon around the origin, [corners, 2]."""
    smallest, largest = min(_SMALLEST, _LARGEST * side), _LARGEST * side
    if random.random() < 0.5:  # a density of radius^-3, that of objects at all distances
        radius = (smallest**-2 + (largest**-2 - smallest**-2) * random.random()) ** -0.5
    else:
        radius = random.uniform(smallest, largest)
    kind = random.integers(3)
    corners = (24, 4, int(random.integers(3, 8)))[kind]
    angles = 2 * np.pi * np.arange(corners) / corners
    reach = _FINE * radius * (random.uniform(0.5, 1.2, corners) if kind == 2 else np.ones(corners))
    flat = np.stack([reach * np.cos(angles), random.uniform(0.3, 1) * reach * np.sin(angles)], axis=1)
    turn = random.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(flat @ rotation, np.float64)
