"""Random crops and flips of image inputs; the teacher sees the same pixels, so labels are not needed."""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import OptionError, spelled
from onnxsep.training.batches import Feeds
from onnxsep.training.choices import Augmentation

_CHANNELS = (1, 3, 4)
_MARGIN = 8  # the image is moved by up to 1/8 of its size: 4 pixels of 32
_SMALLEST = 16  # below that, moving an image changes too much of it


def image_layout(feeds: Feeds) -> tuple[str, tuple[int, int]] | None:
    """The input that is an image and its height and width axes; None where it is not the only input."""
    if len(feeds) != 1:
        return None
    ((name, values),) = feeds.items()
    if values.ndim != 4 or values.dtype.kind not in "fu":
        return None
    for channels, axes in ((1, (2, 3)), (3, (1, 2))):
        if values.shape[channels] in _CHANNELS and min(values.shape[axis] for axis in axes) >= _SMALLEST:
            return name, axes
    return None


class Augment:
    """Crops of the image after reflecting its borders outwards, and mirrored images, for each sample anew.

    Borders are reflected because nobody knows which value stands for black after the preprocessing.
    """

    def __init__(
        self,
        name: str,
        axes: tuple[int, int],
        random: np.random.Generator,
        *,
        crop: bool = True,
        flip: bool = True,
    ) -> None:
        self._name, self._axes, self._random = name, axes, random
        self._crop, self._flip = crop, flip

    def draw(self, count: int) -> NDArray[np.float64]:
        """What decides about the crops and flips of so many images: numbers from 0 to 1, [count, 3]."""
        return self._random.random((count, 3))

    def __call__(self, feeds: Feeds, drawn: NDArray[np.float64] | None = None) -> Feeds:
        """Moved and mirrored copies of the images.

        Args:
            feeds: The images.
            drawn: What :meth:`draw` gave; by default it is drawn now.
        """
        images = feeds[self._name]
        if drawn is None:
            drawn = self.draw(len(images))
        moved = np.empty_like(images)
        height, width = (images.shape[axis] for axis in self._axes)
        for index, image in enumerate(images):
            rows, columns = self._picked(height, drawn[index, 0]), self._picked(width, drawn[index, 1])
            if self._flip and drawn[index, 2] < 0.5:
                columns = columns[::-1]
            first, second = (axis - 1 for axis in self._axes)
            moved[index] = image.take(rows, first).take(columns, second)
        return {self._name: moved}

    def _picked(self, size: int, drawn: float) -> NDArray[np.int64]:
        """Which rows (or columns) of the image the moved one has."""
        margin = size // _MARGIN if self._crop else 0
        start = int(drawn * (2 * margin + 1))
        return np.pad(np.arange(size), margin, "reflect")[start : start + size]


Augmenter = Callable[[np.random.Generator], Augment]


def augmenter(given: Augmentation, feeds: Feeds, *, has_teacher: bool) -> tuple[Augmenter | None, Augmentation]:
    """What makes crops and flips, and which ones they are.

    Args:
        given: Which ones are asked for. "auto": both beside a teacher, which sees the same image; crops alone without,
            as not every class looks the same in a mirror.
        feeds: Some inputs.
        has_teacher: What is learnt are a teacher's outputs.

    Raises:
        OptionError: They were asked for and the input is no image that can be moved.
    """
    layout = image_layout(feeds)
    if given == "none" or (layout is None and given == "auto"):
        return None, "none"
    if layout is None:
        raise OptionError(
            f"{spelled('augment', given)} needs one image as the only input, with 1, 3 or 4 channels and 16"
            " or more pixels along"
            f" each side; use {spelled('augment', 'none')}"
        )
    chosen: Augmentation = given
    if given == "auto":
        chosen = "crop,flip" if has_teacher else "crop"
    return functools.partial(_make, layout, crop="crop" in chosen, flip="flip" in chosen), chosen


def _make(layout: tuple[str, tuple[int, int]], random: np.random.Generator, *, crop: bool, flip: bool) -> Augment:
    return Augment(*layout, random, crop=crop, flip=flip)
