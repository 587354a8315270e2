"""What the error of a weight is worth where nothing is known of the data.

A form that replaces a Conv is chosen for the least |D (W - W') L|, where A = L L^T stands for the second moments of
what the Conv reads and D for what follows. With data they are measured; a plain factorisation takes identities. Here A
is a product of one matrix for the channels and one for the taps of each axis.

- Behind a Relu all channels are positive, so that they share a mean. For a Relu of independent standard normal values
  the mean is 1 / sqrt(2 pi) and the second moment 1 / 2, so that two channels correlate by r = (1 / 2 pi) / (1 / 2) =
  1 / pi, and A = (1 - r) I + r 1 1^T over the channels: the sum of each kernel over the channels is kept better than
  the rest.
- Where a Conv reads what a BatchNormalization gives, scale and shift of that are deviation and mean of each channel,
  over the training data: A = diag(deviation^2) + mean mean^T. With a Relu in between, the moments of rectified normal
  values with these were tried on three networks, and are worth no more than the rule above.
- Neighbours in a map are alike: by .4 to .7 in trained networks, but an error that only rough values show is worth
  more to what follows than its size; .2 is best there. Right behind the first Convs maps are as smooth as the image,
  and share more along the map than between channels.
- Output channels are as large as training made them, and the BatchNormalization that exporters fold into the weights or
  leave behind the Conv, whose statistics are those of the training data. What follows weighs small ones more. D divides
  each kernel by the square root of its norm: half-way between absolute errors, and relative ones that waste the rank
  on channels which hardly count.

``benchmarks/starts.py`` measures what they are worth. A says most; D alone makes low ranks worse. Without the taps
ResNet-8, whose first layers weigh most, got worse by the metric: maps behind its stem correlate by .8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxsep.algebra.linalg import Array

_SHARED, _SHARED_SMOOTH = 1 / np.pi, 0.05  # of channels: behind a Relu, and right behind the first Convs
_ALIKE, _ALIKE_SMOOTH = 0.2, 0.45  # neighbours
_EXPONENT = 0.5
_LEAST = 1e-3  # of the largest gain, or deviation: channels of which next to nothing is left count a little


@dataclass(frozen=True)
class Inputs:
    """What is known of what a Conv reads.

    Attributes:
        smooth: whether it is what the first Convs make of the image, and no other Conv has seen.
        mean: [in_channels], where it is known; else it is taken to stand behind a Relu.
        deviation: the same.
    """

    smooth: bool = False
    mean: Array | None = None
    deviation: Array | None = None


@dataclass(frozen=True)
class WeightMetric:
    """D and L of one Conv.

    Attributes:
        scales: the diagonal of D, [out_channels].
        deviation: [group, channels]; the channels' part of A is that of these deviations and ...
        mean: ... these means.
        taps: the symmetric root of the part of each axis of the kernel, [k, k].
    """

    scales: Array
    deviation: Array
    mean: Array
    taps: tuple[Array, ...]

    @classmethod
    def of(cls, weight: Array, inputs: Inputs, group: int = 1, gains: Array | None = None) -> "WeightMetric":
        """The metric for a Conv.

        Args:
            weight: [out_channels, in_channels / group, *kernel_shape]; its squares do not overflow.
            inputs: what it reads.
            group: its groups.
            gains: what each output channel is multiplied by behind the Conv: as if the weight were so already.
        """
        sizes = _at_least(np.ones(len(weight)) if gains is None else np.abs(gains))
        norms = sizes * np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
        norms[norms == 0] = 1.0
        shared = _SHARED_SMOOTH if inputs.smooth else _SHARED
        channels = group * weight.shape[1]
        mean, deviation = np.full(channels, shared**0.5), np.full(channels, (1 - shared) ** 0.5)
        if inputs.mean is not None and inputs.deviation is not None:
            mean, deviation = inputs.mean, _at_least(inputs.deviation)
        alike = _ALIKE_SMOOTH if inputs.smooth else _ALIKE
        taps = tuple(_root(alike, size) for size in weight.shape[2:])
        return cls(sizes * norms**-_EXPONENT, deviation.reshape(group, -1), mean.reshape(group, -1), taps)

    def scaled_outputs(self, array: Array, axis: int, *, back: bool = False) -> Array:
        """D, or its inverse, along the axis of the output channels."""
        shape = [-1 if place == axis else 1 for place in range(array.ndim)]
        scales = self.scales.reshape(shape)
        return array / scales if back else array * scales

    def stretched(self, array: Array, axis: int, parts: Sequence[int], *, back: bool = False) -> Array:
        """L, or its inverse, along an axis.

        Args:
            array: [group, ...].
            axis: what it counts, from 1 on, are the elements of these parts of a kernel together.
            parts: 0 for the input channels, 1 and more for the taps of each axis, ascending.
            back: the inverse.
        """
        moved = np.moveaxis(array, axis, 1)
        sizes = [self.mean.shape[1] if part == 0 else len(self.taps[part - 1]) for part in parts]
        apart = moved.reshape(len(moved), *sizes, *moved.shape[2:])
        for place, part in enumerate(parts, start=1):
            front = np.moveaxis(apart, place, 1)
            if part == 0:
                front = self._channels(front, back=back)
            else:
                root = np.linalg.inv(self.taps[part - 1]) if back else self.taps[part - 1]
                front = np.moveaxis(np.tensordot(root, front, (1, 1)), 0, 1)
            apart = np.moveaxis(front, 1, place)
        return np.moveaxis(apart.reshape(moved.shape), 1, axis)

    def _channels(self, array: Array, *, back: bool) -> Array:
        """diag(s) (I + u u^T)^(1/2) with s the deviations and u = mean / s, along the axis behind the groups."""
        shape = (*self.mean.shape, *(1,) * (array.ndim - 2))
        u, deviation = (self.mean / self.deviation).reshape(shape), self.deviation.reshape(shape)
        square = np.square(u).sum(axis=1, keepdims=True)
        factor = (1 + square) ** (-0.5 if back else 0.5) - 1
        weights = factor / np.where(square > 0, square, 1.0)
        array = array if back else array * deviation
        array = array + weights * u * (u * array).sum(axis=1, keepdims=True)
        return array / deviation if back else array


def _at_least(sizes: Array) -> Array:
    """With a share of the largest as the least; ones where all are 0."""
    largest = sizes.max(initial=0.0)
    return np.maximum(sizes, _LEAST * largest) if largest > 0 else np.ones(len(sizes))


def _root(alike: float, size: int) -> Array:
    """The symmetric root of the matrix of alike^|k - l|."""
    places = np.arange(size)
    values, vectors = np.linalg.eigh(alike ** np.abs(places[:, None] - places))
    root: Array = (vectors * np.sqrt(values)) @ vectors.T
    return root
