"""Which samples a fit may see, and which are left to verify its result on: one rule for every command.

Verified on are samples beyond those that a fit takes. Where it would take all there are, a tenth of them, at most
``MOST``, is left out of the fit; of fewer than ``FEWEST`` samples all are used for both, which is said.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxsep.data.dataset import DEFAULT_BATCH, Dataset
from onnxsep.reporting.records import MeasuredOn
from onnxsep.running.feeds import Feeds

MOST = 50  # samples that are verified on: of a relative error more would say no more
FEWEST = 20  # samples; of fewer a tenth says nothing
_SHARE = 10  # one of so many is left out of the fit
_OTHERS = 1  # makes the choice of what is verified on independent of the choice of what is fitted to


@dataclass(frozen=True)
class Partition:
    """The samples of a dataset by their use, as sorted numbers.

    Attributes:
        fitted: What a fit may see.
        verified: What its result is verified on.
        unseen: Whether the two have none in common.
        usable: All that are not reserved.
    """

    fitted: list[int]
    verified: list[int]
    unseen: bool
    usable: list[int]

    @property
    def others(self) -> list[int]:
        """The usable samples that the fit does not see; all of them where it sees all."""
        seen = set(self.fitted)
        return [index for index in self.usable if index not in seen] if self.unseen else self.usable


def partition(data: Dataset, samples: int | None, seed: int, *, together: int = 0) -> Partition:
    """Divide the samples of a dataset.

    Args:
        data: The data. What a run has reserved is verified on, and nothing else is then left out, but with
            ``together``: what is drawn then may also choose between fits, and nothing of that is to see the reserved.
        samples: A fit takes at most so many; None: all.
        seed: Seed of the choice.
        together: Where there are more than ``samples``: draw those of the fit and so many to verify on as one, and then
            divide them, as ``quantize`` does. 0: the fit's samples are ``data.sample``, up to ``MOST`` others are
            verified on.

    Raises:
        OptionError: the number of samples is less than 1, or the seed negative.
    """
    fitted, usable, whole = data.sample(samples, seed), data.sample(None), data.batch or 1
    if data.reserved and not together:
        return Partition(fitted, list(data.reserved), True, usable)
    if len(fitted) < len(usable):
        if together:
            return _drawn_together(data, len(fitted), together, seed)
        chosen = set(fitted)
        others = [index for index in usable if index not in chosen]
        most = max(MOST // whole, 1) * whole
        return Partition(fitted, _some(others, most, seed), True, usable)
    if (held := tenth(data, seed)) is None:
        return Partition(fitted, fitted[: len(fitted) - len(fitted) % whole] or fitted, False, usable)
    left = set(held)
    return Partition([index for index in fitted if index not in left], held, True, usable)


def tenth(data: Dataset, seed: int) -> list[int] | None:
    """What is left out of a fit that would see all samples, in whole batches of the model; None of too few samples."""
    usable, whole = data.sample(None), data.batch or 1
    count = len(usable)
    held = -(-min(MOST, count // _SHARE) // whole) * whole
    return None if count < FEWEST or count - held < whole else _some(usable, held, seed)


def unfitted(data: Dataset, seed: int) -> Partition:
    """The samples for what is fitted to none."""
    if data.reserved:
        return Partition([], list(data.reserved), True, data.sample(None))
    every = data.sample(None)
    return Partition([], _some(every, max(MOST, data.batch or 1), seed), True, every)


def _some(indices: list[int], most: int, seed: int) -> list[int]:
    if len(indices) <= most:
        return indices
    places = np.random.default_rng([seed, _OTHERS]).choice(len(indices), most, replace=False)
    return [indices[place] for place in sorted(places.tolist())]


def _drawn_together(data: Dataset, count: int, held: int, seed: int) -> Partition:
    whole, usable = data.batch or 1, data.sample(None)
    chosen = data.sample(count + held, seed)
    if len(chosen) < whole + held:
        full = chosen[: len(chosen) - len(chosen) % whole]
        return Partition(data.sample(count, seed), full, False, usable)
    places = np.random.default_rng(seed).permutation(len(chosen))[:held].tolist()
    verified = {chosen[place] for place in places}
    return Partition([index for index in chosen if index not in verified], sorted(verified), True, usable)


def measured_on(data: Dataset, parts: Partition) -> MeasuredOn:
    """What is verified on, for a report."""
    kind: Literal["unseen", "seen", "data"] = "unseen" if parts.unseen else "seen"
    if not parts.fitted:
        kind = "data"
    return MeasuredOn(kind=kind, source=data.source, samples=len(parts.verified))


def verification_feeds(data: Dataset, parts: Partition) -> Feeds:
    """The samples to verify on as feeds for the model, read when they are needed.

    A model that takes a fixed number of samples, more than there are, gets some of them again.

    Raises:
        DataError: an image cannot be read.
    """
    batches = list(data.batches(parts.verified, DEFAULT_BATCH, fill=True))

    def others() -> Iterator[Mapping[str, Any]]:
        return map(data.feed, batches[1:])

    more = others if len(batches) > 1 else None
    return Feeds(data.feed(batches[0]), others=more, measured_on=measured_on(data, parts))
