"""What calibration data tell about one Conv: the second-order statistics that its factors are fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxsep.algebra.gram import DenseGram, Gram, Mixed
from onnxsep.algebra.linalg import Array


class Statistics:
    """Averages over sampled output positions, one matrix for each group of the Conv.

    A position's input x is the patch under the kernel, [in_channels / group, *kernel_shape] flattened to d values,
    zeros where it hangs over the edge; its target y is the output [out_channels / group] that the original network has
    there. Where the replacement has a bias both are centred, for the mean goes into the bias.

    Attributes:
        grams: for each group the mean of x x^T, [d, d], x as the rewritten network delivers it.
        cross: [group, out_channels / group, d], the mean of y x^T.
        mixes: for each group the mean of x0 x^T, [d, d], x0 as the original network has it; None where they are the
            same.
    """

    def __init__(
        self,
        gram: Array | Sequence[Gram],
        cross: Array,
        mixed: Array | Sequence[Mixed] | None = None,
    ) -> None:
        """Take the matrices as arrays [group, d, d], or in another form."""
        self.grams: tuple[Gram, ...] = tuple(one if isinstance(one, Gram) else DenseGram(one) for one in gram)
        self.cross = cross
        self.mixes: tuple[Mixed, ...] | None = None
        if mixed is not None:
            self.mixes = tuple(one if isinstance(one, Mixed) else Mixed(None, one) for one in mixed)

    @property
    def gram(self) -> Array:
        """All Gram matrices, [group, d, d]; for a Conv with a large d ``grams`` takes far less memory."""
        return np.stack([gram.dense() for gram in self.grams])

    @property
    def mixed(self) -> Array | None:
        """All of ``mixes``, [group, d, d]."""
        return None if self.mixes is None else np.stack([one.dense() for one in self.mixes])

    def with_prior(self, weight: Array, strength: float) -> "Statistics":
        """Add ``strength`` times the mean diagonal of the Gram matrix, as if unit inputs gave the weight's outputs.

        So directions that the data do not see (dead channels, taps that meet only padding, fewer positions than
        unknowns) are fitted to the original weight, as the weights alone would be, and not to zero.

        Args:
            weight: [out_channels, in_channels / group, *kernel_shape] of the original Conv.
            strength: relative to the data.
        """
        matrix = weight.reshape(self.cross.shape)
        ridge = prior_ridge(self.grams, strength)
        grams = [gram.with_ridge(float(added)) for gram, added in zip(self.grams, ridge, strict=True)]
        cross = self.cross + ridge[:, None, None] * matrix
        if self.mixes is None:
            return Statistics(grams, cross)
        mixed = [replace(one, ridge=one.ridge + float(added)) for one, added in zip(self.mixes, ridge, strict=True)]
        return Statistics(grams, cross, mixed)


def prior_ridge(grams: Sequence[Gram], strength: float) -> Array:
    """What ``Statistics.with_prior`` adds to the diagonal of each group's matrix, [group]."""
    mean = np.array([gram.mean_diagonal for gram in grams])
    # A group that is dead altogether: the weight is all we have.
    ridge: Array = np.where(mean > 0, strength * mean, 1.0)
    return ridge


@dataclass(frozen=True)
class Moments:
    """Mean [group, d] of patches x, and for each group the covariance [d, d]."""

    mean: Array
    centred: tuple[Gram, ...]

    def square(self) -> tuple[Gram, ...]:
        """For each group the mean square x x^T, [d, d]."""
        return tuple(gram.with_mean(mean) for gram, mean in zip(self.centred, self.mean, strict=True))


@dataclass(frozen=True)
class SiteMoments:
    """What one Conv reads: on the positions for fitting, and on the held-out ones."""

    fit: Moments
    held_out: Moments
