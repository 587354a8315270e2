"""What the error of a weight is worth where nothing is known of the data.

A form that replaces a Conv is chosen for the least |D (W - W') A^(1/2)|, where A stands for the second moments of what
the Conv reads and D for what follows. With data they are measured; a plain factorisation takes identities. Of what
stands behind a Relu more is known:

- It is positive, so that all channels share a mean. For a Relu of independent standard normal values the mean is
  1 / sqrt(2 pi) and the second moment 1 / 2, so that two channels correlate by r = (1 / 2 pi) / (1 / 2) = 1 / pi, and
  A = (1 - r) I + r 1 1^T over the channels: the sum of each kernel over the channels is kept better than the rest.
- Output channels are as large as training made them, and the BatchNormalization that exporters fold into the weights or
  leave behind the Conv, whose statistics are those of the training data. What follows weighs small ones more. D divides
  each kernel by the square root of its norm: half-way between absolute errors, and relative ones that waste the rank
  on channels which hardly count.

A says most; D alone makes low ranks worse. ``benchmarks/starts.py`` measures what they are worth.
"""

from dataclasses import dataclass

import numpy as np

from onnxsep.algebra.linalg import Array

_SHARED = 1 / np.pi
_EXPONENT = 0.5
_LEAST = 1e-3  # of the largest gain: channels of which next to nothing is left count a little


@dataclass(frozen=True)
class WeightMetric:
    """D and A of one Conv.

    Attributes:
        scales: the diagonal of D, [out_channels].
        channels: input channels of each group.
        stretch: A^(1/2), but for a factor, multiplies the mean over the channels by this.
    """

    scales: Array
    channels: int
    stretch: float

    @classmethod
    def behind_relu(cls, weight: Array, gains: Array | None = None) -> "WeightMetric":
        """The metric for a Conv.

        Args:
            weight: [out_channels, in_channels / group, *kernel_shape]; its squares do not overflow.
            gains: what each output channel is multiplied by behind the Conv: as if the weight were so already.
        """
        sizes = np.ones(len(weight)) if gains is None else np.abs(gains)
        sizes = np.maximum(sizes, _LEAST * sizes.max(initial=0.0)) if sizes.any() else np.ones(len(weight))
        norms = sizes * np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
        norms[norms == 0] = 1.0
        channels = weight.shape[1]
        return cls(sizes * norms**-_EXPONENT, channels, float(np.sqrt(1 + _SHARED * channels / (1 - _SHARED))))

    def scaled_outputs(self, array: Array, axis: int, *, back: bool = False) -> Array:
        """D, or its inverse, along the axis of the output channels."""
        shape = [-1 if place == axis else 1 for place in range(array.ndim)]
        scales = self.scales.reshape(shape)
        return array / scales if back else array * scales

    def stretched_inputs(self, array: Array, axis: int, *, back: bool = False) -> Array:
        """A^(1/2), or its inverse, along the axis of the input channels, or of (input channels, taps)."""
        moved = np.moveaxis(array, axis, 0)
        parts = moved.reshape(self.channels, -1, *moved.shape[1:])
        factor = 1 / self.stretch if back else self.stretch
        parts = parts + (factor - 1) * parts.mean(axis=0)
        return np.moveaxis(parts.reshape(moved.shape), 0, axis)
