"""The images and the one split that training and evaluation share.

    python models/digits/data.py train.npz test.npz

writes the training and the test images (x) with their classes (y), for `onnxsep rewrite --data` and `onnxsep evaluate`.
"""

import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 0
TEST_SHARE = 0.25
LARGEST_PIXEL = 16.0


class Digits(NamedTuple):
    """Labelled images.

    Attributes:
        images: [n, 1, 8, 8], float32, from 0 (paper) to 1 (ink).
        labels: [n], int64, from 0 to 9.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load_split() -> tuple[Digits, Digits]:
    """Load scikit-learn's digits, which ship with the library.

    Returns:
        The training images (1347) and the test images (450). The split is stratified: each digit has the same share
        in both. The same people wrote the images of both parts.
    """
    digits = load_digits()
    images = (digits.images[:, np.newaxis] / LARGEST_PIXEL).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return Digits(train_images, train_labels), Digits(test_images, test_labels)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python models/digits/data.py TRAIN.npz TEST.npz")
    for path, part in zip(sys.argv[1:], load_split(), strict=True):
        np.savez(path, x=part.images, y=part.labels)
        print(f"{path}: {len(part.images):,} images")
