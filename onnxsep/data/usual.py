"""The usual ways in which images become values, and what they are called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxsep.data.preprocessing import Color, Preprocessing

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision and timm
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
_CAFFE = (103.939, 116.779, 123.68)  # means in BGR, subtracted from 0 to 255; of VGG's authors and Keras
_NEAR_MEAN, _NEAR_STD = 0.2, 1.2  # of one std; as a factor


@dataclass(frozen=True)
class Usual:
    """A way of preprocessing and its name."""

    name: str
    preprocessing: Preprocessing


def _plain(scale: float | None = None, mean: float = 0.0, color: Color | None = None) -> Preprocessing:
    return Preprocessing(scale=scale, mean=(mean,), color=color)


_COLOUR = (
    Usual("0 to 1", _plain()),
    Usual("ImageNet's mean and std", Preprocessing(mean=IMAGENET[0], std=IMAGENET[1])),
    Usual("0 to 255", _plain(1.0)),
    Usual("-1 to 1", _plain(1 / 127.5, 1.0)),
    Usual("CIFAR's mean and std", Preprocessing(mean=_CIFAR[0], std=_CIFAR[1])),
    Usual("Caffe's means, BGR", Preprocessing(scale=1.0, mean=_CAFFE, color="BGR")),
    Usual("ImageNet's mean and std, BGR", Preprocessing(mean=IMAGENET[0][::-1], std=IMAGENET[1][::-1], color="BGR")),
    Usual("0 to 255, BGR", _plain(1.0, color="BGR")),
    Usual("-1 to 1, BGR", _plain(1 / 127.5, 1.0, color="BGR")),
    Usual("0 to 1, BGR", _plain(color="BGR")),
    Usual("Caffe's means, RGB", Preprocessing(scale=1.0, mean=_CAFFE[::-1])),
)
_GREY = (
    Usual("0 to 1", _plain()),
    Usual("0 to 255", _plain(1.0)),
    Usual("-1 to 1", _plain(1 / 127.5, 1.0)),
    Usual("MNIST's mean and std", Preprocessing(mean=(0.1307,), std=(0.3081,))),
    Usual("ImageNet's grey mean and std", Preprocessing(mean=(0.449,), std=(0.226,))),
)


_LESS = {"CIFAR's mean and std", "0 to 255, BGR", "-1 to 1, BGR", "0 to 1, BGR", "Caffe's means, RGB"}


def usual(channels: int, *, few: bool = False) -> tuple[Usual, ...]:
    """The usual ones for so many channels (1 or 3); of two that are as good the first is the more common one.

    Args:
        channels: Of the input.
        few: Leave out those that large networks hardly have.
    """
    found = _GREY if channels == 1 else _COLOUR
    return tuple(one for one in found if not few or one.name not in _LESS)


def name_of(preprocessing: Preprocessing, channels: int) -> str:
    """What it is called; "" where it has no name."""
    values = _values(preprocessing)
    for one in usual(channels):
        alike = [np.allclose(*pair, rtol=1e-3) for pair in zip(values, _values(one.preprocessing), strict=True)]
        if all(alike) and (preprocessing.color == "BGR") == (one.preprocessing.color == "BGR"):
            return one.name
    return ""


def are_near(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether a network can hardly tell the two apart, as ImageNet's and CIFAR's constants."""
    (first_mean, first_std), (second_mean, second_std) = _values(one), _values(other)
    if (one.color == "BGR") != (other.color == "BGR"):
        return False
    apart = np.abs(first_mean - second_mean) / np.minimum(first_std, second_std)
    return bool((apart <= _NEAR_MEAN).all() and (np.abs(np.log(first_std / second_std)) <= np.log(_NEAR_STD)).all())


def _values(preprocessing: Preprocessing) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and std for pixels from 0 to 1."""
    scale = 255 * (1 / 255 if preprocessing.scale is None else preprocessing.scale)
    mean, std = (np.broadcast_to(np.array(one, float), 3) / scale for one in (preprocessing.mean, preprocessing.std))
    return mean, std


def with_form(found: Sequence[Usual], form: Preprocessing) -> list[Usual]:
    """The same values in the layout, size and way of resizing that the user has said."""
    return [
        Usual(
            one.name,
            replace(one.preprocessing, layout=form.layout, size=form.size, resize=form.resize, crop=form.crop),
        )
        for one in found
    ]
