"""A dataset for training: what is held out, the steps of an epoch, and their feeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.data import Dataset
from onnxsep.errors import DataError

Feeds = Mapping[str, NDArray[Any]]
"""Arrays by input name."""
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
    """The data of a run: which samples are fed together. They are read when they are asked for, and not kept.

    Args:
        data: The samples; their ``batch`` is the only size that the models take, None where they take any.
        chosen: Numbers of the samples to use.
        size: Samples in a step.
        validation: Share of the samples that is held out; 0 holds out none.
        seed: Of the held-out share and of the order in each epoch.
        otherwise: Ends the message where there are too few samples: what can be done but to give more.

    Attributes:
        held_out: Numbers of the samples that are not trained on.

    Raises:
        DataError: There are too few samples.
    """

    def __init__(
        self, data: Dataset, chosen: Sequence[int], size: int, validation: float, seed: int, otherwise: str = ""
    ) -> None:
        self._data, self._size, self._seed = data, size, seed
        fixed = data.batch or 1
        order = np.random.default_rng(seed).permutation(np.asarray(chosen, np.int64))
        count = -(-max(1, round(validation * len(order))) // fixed) * fixed if validation else 0
        if len(order) - count < fixed:
            raise DataError(
                f"{data.source}: {len(order)} samples are too few to train on and to hold some out"
                + (f"; the model takes {fixed} at a time" if fixed > 1 else "")
                + f"; give more{otherwise}" * bool(count)
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

    def steps(self, random: np.random.Generator, count: int | None = None) -> list[Step]:
        """The steps of an epoch, in a new order.

        Args:
            random: Decides on the order.
            count: How many steps; as many as it takes are made of one pass over the data after another, each in an
                order of its own. None: one pass.
        """
        if count is None:
            return self._pass(random)
        steps: list[Step] = []
        while len(steps) < count:
            steps += self._pass(random)
        return steps[:count]

    def _pass(self, random: np.random.Generator) -> list[Step]:
        """The steps of a pass; what is left over for a smaller last step waits for the next one."""
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

    def validation(self, process: int = 0, processes: int = 1) -> Iterator[list[int]]:
        """Numbers of the samples of each feed that is held out; of those of one process, where several share them."""
        if not self.held_out:
            return
        for index, part in enumerate(self._data.batches(self.held_out, self._size)):
            if index % processes == process:
                yield part

    def first(self) -> Batch:
        """Some samples that are trained on."""
        return self.read(next(self._data.batches(self._training, self._size)))

    def some(self, count: int) -> Iterator[Feeds]:
        """About so many samples that are trained on, feed by feed."""
        return self._about(self._data.batches(self._training, self._size), count)

    def examples(self, count: int) -> Iterator[Feeds]:
        """About so many samples that are held out, feed by feed; where none are, the first ones that are trained on."""
        return self._about(self.validation(), count) if self.held_out else iter([self.first().feeds])

    def _about(self, parts: Iterator[list[int]], count: int) -> Iterator[Feeds]:
        done = 0
        for part in parts:
            done += len(part)
            yield self.read(part).feeds
            if done >= count:
                return
