"""A dataset for training: what is held out, the steps of an epoch, and their feeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.data import Dataset
from onnxsep.errors import DataError
from onnxsep.training.samples import Feeds

Step = list[list[int]]
"""Numbers of the samples of each feed of an optimiser step: several feeds where they do not fit into one."""


@dataclass(frozen=True)
class Share:
    """A feed of a step that one process computes.

    Attributes:
        samples: Their numbers.
        start: The place of the first one in the step.
        weight: Share of the step's loss.
    """

    samples: list[int]
    start: int
    weight: float


@dataclass(frozen=True)
class Batch:
    """What is fed at once.

    Attributes:
        feeds: Arrays by input name.
        labels: Classes, [samples], or None.
        size: How many samples.
    """

    feeds: Feeds
    labels: NDArray[np.int64] | None
    size: int


class Batches:
    """The data of a run.

    Args:
        data: The samples; their ``batch`` is the only size that the models take, None where they take any.
        chosen: Numbers of the samples to use.
        size: Samples in a step.
        validation: Share of the samples that is held out; 0 holds out none.
        seed: Of the held-out share and of the order in each epoch.

    Attributes:
        held_out: Numbers of the samples that are not trained on.

    Raises:
        DataError: There are too few samples.
    """

    def __init__(self, data: Dataset, chosen: Sequence[int], size: int, validation: float, seed: int) -> None:
        self._data, self._size, self._seed = data, size, seed
        fixed = data.batch or 1
        order = np.random.default_rng(seed).permutation(np.asarray(chosen, np.int64))
        count = -(-max(1, round(validation * len(order))) // fixed) * fixed if validation else 0
        if len(order) - count < fixed:
            raise DataError(
                f"{data.source}: {len(order)} samples are too few to train on and to hold some out"
                + (f"; the model takes {fixed} at a time" if fixed > 1 else "")
                + "; give more, or hold none out (--validation 0)" * bool(count)
            )
        self.held_out: list[int] = sorted(order[:count].tolist())
        self._training: list[int] = sorted(order[count:].tolist())

    @property
    def count(self) -> int:
        """How many samples are trained on."""
        return len(self._training)

    @property
    def feed_size(self) -> int:
        """The most samples that are fed at once."""
        return self._data.batch or self._size

    @property
    def is_fixed(self) -> bool:
        """Whether the models take no other number of samples at once."""
        return self._data.batch is not None

    def steps(self, random: np.random.Generator) -> list[Step]:
        """The steps of an epoch in a new order; what is left over for a smaller last step waits for the next epoch."""
        order = random.permutation(np.asarray(self._training)).tolist()
        steps: list[Step] = [[]]
        full = 0
        for part in self._data.batches(order, self._size):
            if full >= self._size:
                steps.append([])
                full = 0
            steps[-1].append(part)
            full += len(part)
        if len(steps) > 1 and full < self._size:
            steps.pop()
        return steps

    def read(self, part: Sequence[int], change: Callable[[Feeds], Feeds] | None = None) -> Batch:
        """One feed with its labels.

        Args:
            part: Numbers of the samples.
            change: What is done to the feed: crops and flips.
        """
        feeds: Any = self._data.feed(part)
        labels = None if self._data.labels is None else self._data.labels[list(part)]
        return Batch(feeds if change is None else change(feeds), labels, len(part))

    def shares(self, step: Step, process: int = 0, processes: int = 1) -> list[Share]:
        """The part of a step that a process computes; together they are the whole step.

        A process for which nothing is left computes something that does not count, because all compute together.
        """
        size = sum(map(len, step))
        units = step if self._data.batch is not None else [[sample] for part in step for sample in part]
        first, last = (len(units) * number // processes for number in (process, process + 1))
        if first == last:
            return [Share(units[0], 0, 0.0)]
        start = sum(map(len, units[:first]))
        found = []
        for part in self._data.batches([sample for unit in units[first:last] for sample in unit], self._size):
            found.append(Share(part, start, len(part) / size))
            start += len(part)
        return found

    def validation(self, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """The samples that are held out, feed by feed; those of one process, where several share them."""
        if not self.held_out:
            return
        for index, part in enumerate(self._data.batches(self.held_out, self._size)):
            if index % processes == process:
                yield self.read(part)

    def first(self) -> Batch:
        """Some samples that are trained on."""
        return self.read(next(self._data.batches(self._training, self._size)))

    def some(self, count: int) -> Iterator[Batch]:
        """About so many samples that are trained on, feed by feed."""
        done = 0
        for part in self._data.batches(self._training, self._size):
            yield self.read(part)
            done += len(part)
            if done >= count:
                return
