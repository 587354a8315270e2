"""What calibration data tell about one Conv: the second-order statistics that its factors are fitted to."""

from dataclasses import dataclass, replace

import numpy as np

from onnxsep.linalg import Array


@dataclass(frozen=True)
class Statistics:
    """Averages over sampled output positions, one matrix for each group of the Conv.

    A position's input x is the patch under the kernel, [in_channels / group, *kernel_shape] flattened to d values,
    zeros where it hangs over the edge; its target y is the output [out_channels / group] that the original network has
    there. Where the replacement has a bias both are centred, for the mean goes into the bias.

    Attributes:
        gram: [group, d, d], the mean of x x^T, x as the rewritten network delivers it.
        cross: [group, out_channels / group, d], the mean of y x^T.
        mixed: [group, d, d], the mean of x0 x^T, x0 as the original network has it; None where they are the same.
    """

    gram: Array
    cross: Array
    mixed: Array | None = None

    def with_prior(self, weight: Array, strength: float) -> "Statistics":
        """Add ``strength`` times the mean diagonal of the Gram matrix, as if unit inputs gave the weight's outputs.

        So directions that the data do not see (dead channels, taps that meet only padding, fewer positions than
        unknowns) are fitted to the original weight, as the weights alone would be, and not to zero.

        Args:
            weight: [out_channels, in_channels / group, *kernel_shape] of the original Conv.
            strength: relative to the data.
        """
        group, size = self.gram.shape[:2]
        matrix = weight.reshape(group, -1, size)
        index = np.arange(size)
        mean = np.trace(self.gram, axis1=1, axis2=2) / size
        ridge = np.where(mean > 0, strength * mean, 1.0)  # a group that is dead altogether: the weight is all we have
        gram, cross = self.gram.copy(), self.cross + ridge[:, None, None] * matrix
        gram[:, index, index] += ridge[:, None]
        if self.mixed is None:
            return replace(self, gram=gram, cross=cross)
        mixed = self.mixed.copy()
        mixed[:, index, index] += ridge[:, None]
        return Statistics(gram, cross, mixed)


@dataclass(frozen=True)
class Moments:
    """Mean [group, d] and mean square x x^T [group, d, d] of patches x."""

    mean: Array
    square: Array

    def centred(self) -> Array:
        """The covariance [group, d, d]."""
        return self.square - self.mean[:, :, None] * self.mean[:, None, :]


@dataclass(frozen=True)
class SiteMoments:
    """What one Conv reads: on the positions for fitting, and on the held-out ones."""

    fit: Moments
    held_out: Moments
