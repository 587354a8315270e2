"""How far outputs are from those of the original network, as one number.

A classifier's: the mean over samples of KL(p || q) in nats, p and q being the distributions over classes of the
original and of the changed network. What is one is decided as everywhere (``running.scores.find_scores``): a single
output [samples, classes]. Of all other networks: ||a - b|| / ||a||, a the original's, of the worst output and, where
parts of an output have unlike ranges, of its worst part (``algebra.output_parts``). Where the user has a metric, what
it falls by; of changes that it does not tell apart, those distances decide.

Among forms of a classifier's layers another figure decides: KL of the distributions that a temperature T has softened,
T^2 times (Hinton et al. 2015; for a large T half of the squared error of the logits). A trained network is so sure of
most samples that KL itself is almost nothing until a layer errs much, and then rises with the fourth to tenth power of
its error, on a few samples: neither does it add up, nor do a hundred samples tell two forms apart.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxsep.algebra.output_parts import PartTally
from onnxsep.data.criteria import are_probabilities, probabilities
from onnxsep.errors import CalibrationError
from onnxsep.reporting.records import EffectReport
from onnxsep.running.scores import as_scores, find_scores

Kind = Literal["kl", "relative", "metric"]
Outputs = Mapping[str, Any]
Score = Callable[[Sequence[Outputs], Sequence[int]], float]
"""A metric of outputs by name for each feed, and how many samples each feed holds; higher is better."""
_TIES = 1e-3  # of a metric's own value: what a distance of 1 counts
_LEAST = 1e-30  # a probability
TEMPERATURE = 3.0
"""ResNet-20, plans for .148 of the parameters by T = 1, 2, 3, 4, infinity: 84.3, 85.4, 85.7, 85.5, 84.8 % of 3,000
other images right. On 100 samples T = 3 gives about what it gives on 500."""


@dataclass(frozen=True)
class Effect:
    """How far a changed network's outputs are from the original's.

    Attributes:
        kind: "kl": mean Kullback-Leibler divergence, in nats; "relative": relative error; "metric": what the user's
            metric falls by.
        value: Infinite where the changed network gives NaN or infinity.
        samples: On how many.
        tie: Of a metric, what is added to tell apart changes that it does not.
        softened: Of "kl", that of softened distributions, T^2 times.
    """

    kind: Kind
    value: float
    samples: int
    tie: float = 0.0
    softened: float | None = None

    @property
    def deciding(self) -> float:
        """What decides between changes, and adds up better: the softened divergence where there is one."""
        return self.additive if self.softened is None else self.softened

    @property
    def finite_softened(self) -> float | None:
        """For reports, which hold no infinity."""
        return None if self.softened is None or not math.isfinite(self.softened) else self.softened

    @property
    def additive(self) -> float:
        """What adds up over layers whose errors have nothing to do with one another: KL, or the relative error squared.

        KL is a square already: of small changes of the logits. What a metric falls by adds up as it is; what it rises
        by is chance.
        """
        if self.kind == "metric":
            return max(self.value, 0.0) + self.tie
        return self.value if self.kind == "kl" else self.value**2

    @property
    def report(self) -> EffectReport:
        """The record of it."""
        return EffectReport(
            kind=self.kind,
            value=self.value if math.isfinite(self.value) else None,
            samples=self.samples,
        )

    def __str__(self) -> str:
        return str(self.report)


def from_additive(kind: Kind, value: float) -> float:
    """An effect from what adds up; of a sum that is below 0, which only differences can be, a negative one."""
    return value if kind != "relative" else math.copysign(math.sqrt(abs(value)), value)


class Original:
    """What the original network gives for some samples.

    Args:
        outputs: By name, for each feed.
        samples: How many samples each feed holds.
        score: The user's metric.
        as_error: Measure the relative error of classifiers too.

    Raises:
        CalibrationError: None of the outputs holds numbers.
    """

    def __init__(
        self, outputs: Sequence[Outputs], samples: Sequence[int], score: Score | None = None, *, as_error: bool = False
    ) -> None:
        self._as_error = as_error
        self._outputs, self._samples, self._score = outputs, samples, score
        self._own = 0.0 if score is None else score(outputs, samples)
        self.samples = sum(samples)
        self._names = [name for name in outputs[0] if all(_is_numbers(one[name]) for one in outputs)]
        if not self._names:
            raise CalibrationError("no output holds numbers, so that the effect of a change cannot be measured")
        name, self.no_classes = find_scores(outputs[0], samples[0], None)
        scores = [as_scores(one[name], count) for one, count in zip(outputs, samples, strict=True)] if name else []
        self._scores: list[npt.NDArray[np.float64]] = [found for found in scores if found is not None]
        usable = bool(scores) and len(self._scores) == len(scores)
        self._classes = name if usable and all(np.isfinite(found).all() for found in self._scores) else None

    @property
    def kind(self) -> Kind:
        """Which measure it is."""
        if self._score is not None:
            return "metric"
        return "kl" if self._by_classes else "relative"

    @property
    def _by_classes(self) -> bool:
        return self.is_classifier and not self._as_error

    @property
    def is_classifier(self) -> bool:
        """Whether an output holds class scores; ``no_classes`` says why not."""
        return self._classes is not None

    def effect(self, outputs: Iterable[Outputs]) -> Effect:
        """How far the outputs of a changed network are.

        Args:
            outputs: By name, for each feed; what is left out is what the original gives.
        """
        if self._score is not None:
            return self._fall([{**before, **found} for found, before in zip(outputs, self._outputs, strict=True)])
        if self._by_classes:
            value, softened = self._divergences(outputs, (1.0, TEMPERATURE))
            return Effect(self.kind, value, self.samples, softened=softened)
        return Effect(self.kind, self.relative(outputs), self.samples)

    def fall(self, outputs: Sequence[Outputs]) -> float:
        """What the metric falls by; ``outputs`` holds all of them for each feed."""
        assert self._score is not None
        return self._own - self._score(outputs, self._samples)

    def _fall(self, outputs: Sequence[Outputs]) -> Effect:
        distance = self._distance(outputs)
        if not math.isfinite(distance):
            return Effect(self.kind, math.inf, self.samples)
        tie = _TIES * (abs(self._own) or 1.0) * (distance if self._by_classes else distance**2)
        return Effect(self.kind, self.fall(outputs), self.samples, tie)

    def _distance(self, outputs: Iterable[Outputs]) -> float:
        return self._divergences(outputs, (TEMPERATURE,))[0] if self._by_classes else self.relative(outputs)

    def divergence(self, outputs: Iterable[Outputs]) -> float:
        """KL of a classifier, in nats."""
        return self._divergences(outputs, (1.0,))[0]

    def _divergences(self, outputs: Iterable[Outputs], temperatures: Sequence[float]) -> list[float]:
        """KL of the distributions that each temperature softens, times its square."""
        name, totals = self._classes, [0.0] * len(temperatures)
        assert name is not None
        for found, before, count in zip(outputs, self._scores, self._samples, strict=True):
            after = as_scores(found[name], count) if name in found else before
            if after is None or after.shape != before.shape or not np.isfinite(after).all():
                return [math.inf] * len(temperatures)
            # The original says whether these are probabilities or what softmax is still to be taken of.
            sure = [np.maximum(x, _LEAST) for x in _as_probabilities(before, after)]
            for place, temperature in enumerate(temperatures):
                p, q = (_softened(x, temperature) for x in sure)
                totals[place] += temperature**2 * float((p * np.log(p / q)).sum())
        return [max(total / self.samples, 0.0) for total in totals]

    def relative(self, outputs: Iterable[Outputs]) -> float:
        """The relative error of the worst output, of any network."""
        tallies = {name: PartTally() for name in self._names}
        for found, before, count in zip(outputs, self._outputs, self._samples, strict=True):
            for name, tally in tallies.items():
                a, b = before[name], found.get(name, before[name])
                if a.shape != b.shape or not np.isfinite(b[np.isfinite(a)]).all():
                    return math.inf
                tally.add(a, b, count)
        return max(tally.relative for tally in tallies.values())


def _is_numbers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _softened(given: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities, above 0, [samples, classes], as a temperature makes them."""
    if temperature == 1:
        return given
    powers: npt.NDArray[np.float64] = given ** (1 / temperature)
    probable: npt.NDArray[np.float64] = np.maximum(powers / powers.sum(axis=1, keepdims=True), _LEAST)
    return probable


def _as_probabilities(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if not are_probabilities(before):
        return probabilities(before, given=False), probabilities(after, given=False)
    after = np.maximum(after, 0.0)
    return before, after / np.maximum(after.sum(axis=1, keepdims=True), _LEAST)
