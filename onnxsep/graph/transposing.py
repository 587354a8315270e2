"""Weights that are stored input channels first: those of MatMul, of ConvTranspose, and of Gemm without transB."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Kind = TypeVar("_Kind", bound=np.generic)


def turned(weight: NDArray[_Kind], group: int = 1) -> NDArray[_Kind]:
    """[out_channels, in_channels / group, *kernel] as [in_channels, out_channels / group, *kernel], and the other way.

    Args:
        weight: either form.
        group: the number of groups, each of which is turned by itself.
    """
    first, second, *kernel = weight.shape
    groups = weight.reshape(group, first // group, second, *kernel).swapaxes(1, 2)
    return np.ascontiguousarray(groups.reshape(group * second, first // group, *kernel))


def turned_shape(shape: Sequence[int], group: int = 1) -> tuple[int, ...]:
    """The shape that ``turned`` gives."""
    first, second, *kernel = shape
    return (group * second, first // group, *kernel)
