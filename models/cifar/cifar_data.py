"""CIFAR-10 as the network takes it: floats with the mean and the spread of each colour removed.

    python models/cifar/cifar_data.py cifar.npz train.npz test.npz

reads the images (x_train, x_test: uint8 [n, 32, 32, 3], RGB) and their classes (y_train, y_test) and writes both parts
as x, float32 [n, 3, 32, 32], with y, for `onnxsep finetune --data`, `onnxsep evaluate --data` and the like.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Images(NamedTuple):
    """Labelled images.

    Attributes:
        pixels: [n, 32, 32, 3], uint8, RGB.
        labels: [n], int64, from 0 to 9.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def load(path: Path) -> tuple[Images, Images]:
    """Load the training and the test images of a file with x_train, y_train, x_test and y_test.

    Raises:
        OSError: The file cannot be read.
        KeyError: An array is missing.
        ValueError: The file is no archive of arrays, or an array has the wrong type or shape.
    """
    with np.load(path, allow_pickle=False) as arrays:
        parts = []
        for part in ("train", "test"):
            pixels, labels = arrays[f"x_{part}"], arrays[f"y_{part}"].ravel()
            if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 32, 32, 3):
                raise ValueError(f"x_{part} is {pixels.dtype} {list(pixels.shape)}; uint8 [n, 32, 32, 3] is needed")
            parts.append(Images(pixels, labels.astype(np.int64)))
    return parts[0], parts[1]


def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pixels [n, 32, 32, 3] as the network takes them: [n, 3, 32, 32]."""
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python models/cifar/cifar_data.py CIFAR.npz TRAIN.npz TEST.npz")
    for file, images in zip(sys.argv[2:], load(Path(sys.argv[1])), strict=True):
        np.savez(file, x=normalised(images.pixels), y=images.labels)
        print(f"{file}: {len(images.labels):,} images")
