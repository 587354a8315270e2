"""Which of the samples that a fit may see are kept out of it, to measure what candidates do to the output."""

from dataclasses import dataclass

import numpy as np

from onnxsep.data import Dataset
from onnxsep.data.partitioning import FEWEST, Partition

MOST = 100  # samples; candidates are compared on the same ones, so that more would hardly change their order
_SHARE = 5  # one of so many
_OTHERS = 2  # makes the choice independent of others with the same seed


@dataclass(frozen=True)
class Divided:
    """Samples by their use, as sorted numbers.

    Attributes:
        fitted: Candidates are fitted to these.
        measured: Their effect is measured on these.
        unseen: Whether the two have none in common.
    """

    fitted: list[int]
    measured: list[int]
    unseen: bool

    def __str__(self) -> str:
        return f"{len(self.measured)} {'held-out samples' if self.unseen else 'samples that the fit has seen too'}"


def divide(data: Dataset, parts: Partition, seed: int) -> Divided:
    """A fifth of the samples of a fit, at most ``MOST``, in whole batches; of too few, all are used for both."""
    whole, every = data.batch or 1, parts.fitted
    count = -(-min(MOST, len(every) // _SHARE) // whole) * whole
    if len(every) < FEWEST or len(every) - count < whole:
        return Divided(every, every[: max(MOST // whole, 1) * whole], False)
    places = np.random.default_rng([seed, _OTHERS]).permutation(len(every))[:count].tolist()
    measured = {every[place] for place in places}
    return Divided([index for index in every if index not in measured], sorted(measured), True)
