"""A trial of several ways of preprocessing: the model runs on some samples, and a criterion compares what it gives.

Few samples at first, with all ways; those that are clearly behind fall out, and the others go on to more samples. How
many is decided by the cost of the model, counted and not measured, so that the same data give the same choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.data.criteria import Criterion, Lead
from onnxsep.data.images import ImageReader
from onnxsep.data.probes import Pictures, Probe, moved
from onnxsep.data.usual import Usual, are_near
from onnxsep.graph.counting import count_macs
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model

FEWEST = 8  # samples, below which nothing is tried
MOST = 400  # samples
_MACS = 20e9  # of a stage: about a second of one core
_LARGEST = 30e9  # MACs of one sample, above which nothing is tried
_LARGE = 1e9  # MACs, above which fewer samples must do
_UNKNOWN = 500e6  # MACs of a model that cannot be counted
_BEHIND = 3.5  # standard errors, from which on one falls out
AHEAD = 2.5  # standard errors, from which on the best is sure
_ALARM = 3.0  # standard errors, from which on one that was asked about is wrong
_CERTAIN = 4.5  # standard errors, from which on no more samples are needed to say that
_BETTER = 2.0  # standard errors, from which on the best of several that are near is taken rather than the common one


@dataclass(frozen=True)
class Way:
    """One way of preprocessing in a trial."""

    usual: Usual
    reader: ImageReader


@dataclass(frozen=True)
class Tried:
    """One way and what came of it.

    Attributes:
        way: The way.
        score: By the criterion; higher is better.
        samples: On how many it was tried.
        behind: How far it is behind the best on these samples, in standard errors.
    """

    way: Way
    score: float
    samples: int
    behind: float


@dataclass(frozen=True)
class Outcome:
    """What a trial has found.

    Attributes:
        criterion: What was compared.
        chosen: The best way; of several that come to the same, the most common one.
        rivals: Those that may be as good and do not come to the same, the best first.
        ties: Those that come to the same as the chosen one.
        rows: All ways, the best first.
        strong: Whether the best looks like a model that gets what it was trained for.
        ahead: How far the chosen one is ahead of one that was asked about; None where it is as good.
        enough: Whether the lead over that one is large and certain.
    """

    criterion: Criterion
    chosen: Tried
    rivals: tuple[Tried, ...]
    ties: tuple[Tried, ...]
    rows: tuple[Tried, ...]
    strong: bool
    ahead: Lead | None = None
    enough: bool = False

    @property
    def sure(self) -> bool:
        """Whether there is no doubt."""
        return self.strong and not self.rivals


def macs(model: Model, shapes: dict[str, tuple[int, ...]]) -> float:
    """Multiply-accumulates of one run on inputs of these shapes, as far as they can be counted."""
    total = count_macs(infer_shapes(skeleton(model), shapes)).total
    return float(total) if total else _UNKNOWN


def is_large(cost: float) -> bool:
    """Whether a model is so large that less is tried; ``cost`` is MACs of one sample."""
    return cost > _LARGE


def is_too_large(cost: float) -> bool:
    """Whether a model is too large for a trial; ``cost`` is MACs of one sample."""
    return cost > _LARGEST


class Trial:
    """Compares ways of preprocessing by one probe.

    Args:
        probe: Runs the model.
        ways: What is compared; of two that come to the same the first is taken.
        pictures: The samples.
        cost: MACs of one sample.
        asked: The number of a way that must be clearly worse before anybody is warned of it; it never falls out.
    """

    def __init__(
        self, probe: Probe, ways: Sequence[Way], pictures: Pictures, cost: float, asked: int | None = None
    ) -> None:
        self._probe, self._ways, self._pictures, self._asked = probe, ways, pictures, asked
        self._cost = cost * (2 if probe.criterion.moves else 1)
        self._rows: list[list[list[npt.NDArray[Any]]]] = [[[], []] for _ in ways]
        self._done = [0] * len(ways)
        self._evidence: list[Any] = [None] * len(ways)
        self._leads: dict[tuple[int, int, int], Lead] = {}
        self._behind = [0.0] * len(ways)
        self._twins: list[int] = []

    def __call__(self) -> Outcome:
        """Try them.

        Raises:
            CannotRun: the model cannot be run.
            DataError: a sample cannot be read.
        """
        criterion = self._probe.criterion
        alive = list(range(len(self._ways)))
        for kept, fewest, most, budget in self._stages():
            scores = {one: self._score(one) for one in alive} if self._done[0] else {}
            ranked = sorted(alive, key=lambda one: (-scores.get(one, 0.0), one))
            alive = ranked[:kept] + [one for one in ranked[kept:] if one == self._asked]
            count = self._pictures.load(max(fewest, min(most, int(budget / (self._cost * len(alive))))))
            for one in alive:
                self._extend(one, count)
            best = max(alive, key=lambda one: (self._score(one), -one))
            for one in alive:
                self._behind[one] = 0.0 if one == best else self._lead(best, one).deviations
            if not criterion.is_strong(self._evidence[best]) and count >= 24:
                break
            alive = [one for one in alive if one in (best, self._asked) or self._behind[one] < _BEHIND]
            best = self._without_twins(best, alive)
            if self._is_enough(best, alive):
                break
        return self._outcome(alive, best)

    def _without_twins(self, best: int, alive: list[int]) -> int:
        """Let one stand for the ways that are near the best: the most common of them, unless another one is better."""
        near = sorted(one for one in alive if one == best or self._are_near(best, one))
        kept = next(one for one in near if one == best or self._behind[one] < _BETTER)
        for one in near:
            if one not in (kept, self._asked):
                alive.remove(one)
                self._twins.append(one)
        return kept

    def _stages(self) -> list[tuple[int, int, int, float]]:
        """How many ways go on, the fewest and the most samples that they are tried on, and MACs, for each stage."""
        most = self._probe.criterion.most
        if self._cost > _LARGEST / 5:  # one stage; even so it costs about as much as a hundred samples
            return [(len(self._ways), min(8, most), min(32, most), _MACS)]
        fewest = (8, 12, 20, 20) if self._cost > _LARGE else (10, 16, 64, 64)
        return [
            (kept, min(few, most), min(many, most), budget)
            for kept, few, many, budget in zip(
                (len(self._ways), 5, 3, 2),
                fewest,
                (32, 100, MOST, MOST),
                (_MACS, _MACS, 2 * _MACS, 4 * _MACS),
                strict=True,
            )
        ]

    def _extend(self, one: int, count: int) -> None:
        if count <= self._done[one]:
            return
        pictures = [self._pictures[place] for place in range(self._done[one], count)]
        first, again = self._rows[one]
        _append(first, self._probe.rows(self._ways[one].reader, pictures))
        if self._probe.criterion.moves:
            _append(again, self._probe.rows(self._ways[one].reader, [moved(picture) for picture in pictures]))
        self._done[one] = count
        self._evidence[one] = self._probe.evidence(first, again)

    def _score(self, one: int) -> float:
        return self._probe.criterion.score(self._evidence[one])

    def _lead(self, one: int, other: int) -> Lead:
        """On the samples that both have seen, which are the same number while both are alive."""
        key = (one, other, self._done[one])
        if key not in self._leads:
            self._leads[key] = self._probe.criterion.lead(self._evidence[one], self._evidence[other])
        return self._leads[key]

    def _same(self, one: int, other: int) -> bool:
        return self._are_near(one, other) or self._probe.criterion.alike(self._evidence[one], self._evidence[other])

    def _are_near(self, one: int, other: int) -> bool:
        return are_near(self._ways[one].usual.preprocessing, self._ways[other].usual.preprocessing)

    def _is_enough(self, best: int, alive: Sequence[int]) -> bool:
        """Whether more samples would change nothing that is asked."""
        asked = self._asked
        if asked is not None:
            return asked == best or self._same(best, asked) or self._lead(best, asked).deviations >= _CERTAIN
        return all(one == best or self._same(best, one) for one in alive)

    def _outcome(self, alive: Sequence[int], best: int) -> Outcome:
        criterion = self._probe.criterion
        same = sorted(one for one in alive if one == best or self._same(best, one))
        chosen = next(one for one in same if one == best or self._lead(best, one).deviations < _BETTER)
        others = [one for one in alive if one not in same and self._behind[one] < AHEAD]
        ties = [*same, *(one for one in self._twins if self._are_near(chosen, one))]
        lead = None
        if self._asked is not None and self._asked not in same and self._asked in alive:
            lead = self._lead(best, self._asked)
        enough = lead is not None and lead.deviations >= _ALARM and criterion.matters(lead)
        tried = {
            one: Tried(way, self._score(one), self._done[one], self._behind[one]) for one, way in enumerate(self._ways)
        }
        order = sorted(tried, key=lambda one: (one not in (*alive, *ties), -tried[one].score, one))
        return Outcome(
            criterion,
            tried[chosen],
            tuple(tried[one] for one in order if one in others),
            tuple(tried[one] for one in sorted(ties) if one != chosen),
            tuple(tried[one] for one in order),
            criterion.is_strong(self._evidence[best]),
            lead,
            enough,
        )


def _append(kept: list[npt.NDArray[Any]], new: Sequence[npt.NDArray[Any]]) -> None:
    kept[:] = [np.concatenate(pair) for pair in zip(kept, new, strict=True)] if kept else list(new)
