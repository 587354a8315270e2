"""Images of shapes with the class of each pixel, drawn from a seed.

    python models/shapes/shapes_data.py train.npz test.npz

writes 500 training images (x), and 200 test images (x) with the classes of their pixels (y), for `onnxsep rewrite
--data` and the like. Every image is a smooth background with one to three shapes on it, which may cover one another,
in colours of their own, and noise over all. Discs, squares and triangles are turned at random; what tells them apart is
their outline alone.
"""

import sys
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

CLASSES = ("background", "disc", "square", "triangle")
SIZE = 32  # pixels, height and width
MOST_SHAPES = 3
SMALLEST, LARGEST = 5.0, 9.0  # pixels from the middle of a shape to its outline or corners
NOISE = 0.06  # standard deviation
CONTRAST = 0.35  # in at least one colour, between a shape and the mean of the background

Part = Literal["train", "test"]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Shapes(NamedTuple):
    """Labelled images.

    Attributes:
        images: [n, 3, 32, 32], float32, about 0 to 1.
        labels: [n, 32, 32], int64: the class of each pixel, its place in CLASSES.
    """

    images: Floats
    labels: npt.NDArray[np.int64]


def draw(part: Part, count: int, seed: int = 0) -> Shapes:
    """Draw images; the first ones of a part are the same whatever their number.

    Args:
        part: The two parts are drawn independently.
        count: How many.
        seed: Of what is drawn.
    """
    images, labels = zip(*(_one(np.random.default_rng([seed, part == "test", n])) for n in range(count)), strict=True)
    return Shapes(np.stack(images), np.stack(labels))


def _one(source: np.random.Generator) -> tuple[Floats, npt.NDArray[np.int64]]:
    image = _background(source)
    mean = image.mean(axis=(1, 2))
    labels = np.zeros((SIZE, SIZE), np.int64)
    for _ in range(source.integers(1, MOST_SHAPES + 1)):
        kind = int(source.integers(1, len(CLASSES)))
        covered = _mask(source, kind)
        colour = source.random(3)
        while np.abs(colour - mean).max() < CONTRAST:
            colour = source.random(3)
        image[:, covered] = colour[:, None]
        labels[covered] = kind
    return (image + source.normal(0, NOISE, image.shape)).astype(np.float32), labels


def _background(source: np.random.Generator) -> npt.NDArray[np.float64]:
    """A colour at each corner, and between them a mixture: [3, 32, 32]."""
    corners = source.random((3, 2, 2))
    ramp = np.stack([np.linspace(1, 0, SIZE), np.linspace(0, 1, SIZE)])
    mixed: npt.NDArray[np.float64] = np.einsum("cab,ay,bx->cyx", corners, ramp, ramp)
    return mixed


def _mask(source: np.random.Generator, kind: int) -> Mask:
    """The pixels of a shape, [32, 32]."""
    radius = source.uniform(SMALLEST, LARGEST)
    middle = source.uniform(radius / 2, SIZE - radius / 2, 2)
    y, x = np.mgrid[:SIZE, :SIZE] - middle[:, None, None]
    angle = source.uniform(0, 2 * np.pi)
    if CLASSES[kind] == "disc":
        return np.asarray(np.hypot(x, y) <= 0.9 * radius)
    sides = 4 if CLASSES[kind] == "square" else 3
    normals = angle + 2 * np.pi * np.arange(sides) / sides
    beyond = np.cos(normals)[:, None, None] * x + np.sin(normals)[:, None, None] * y
    return np.asarray((beyond <= 1.15 * radius * np.cos(np.pi / sides)).all(axis=0))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python models/shapes/shapes_data.py TRAIN.npz TEST.npz")
    train, test = draw("train", 500), draw("test", 200)
    np.savez(sys.argv[1], x=train.images)
    np.savez(sys.argv[2], x=test.images, y=test.labels)
    print(f"{sys.argv[1]}: {len(train.images)} images; {sys.argv[2]}: {len(test.images)} images")
