"""What tells a right preprocessing from a wrong one: criteria for what a model gives for the same samples.

All of them compare two ways of preprocessing on the same samples, so that what the samples differ in cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Name = Literal["accuracy", "consistency", "normalization", "likeness"]

_REPEATS = 40  # of the bootstrap
_CLASSES = 200  # classes that are told apart in a mutual information; the others are one
_SAME_CLASS = 0.97  # share of the samples
_TINY = 1e-12


@dataclass(frozen=True)
class Lead:
    """How far one is ahead of another, on the same samples: the difference and its standard error."""

    difference: float
    error: float

    @property
    def deviations(self) -> float:
        """The difference in standard errors."""
        return self.difference / max(self.error, _TINY)


class Criterion(Protocol):
    """A figure of merit of what a model gives; evidence is what was kept of each sample, [samples, ...]."""

    name: Name
    moves: bool
    """Whether moved samples are run too."""
    most: int
    """Samples, more than which say no more."""

    def score(self, evidence: Any) -> float:
        """Higher is better."""

    def lead(self, one: Any, other: Any) -> Lead:
        """How far one is ahead of the other."""

    def alike(self, one: Any, other: Any) -> bool:
        """Whether the two come to the same."""

    def is_strong(self, evidence: Any) -> bool:
        """Whether this looks like a model that gets what it was trained for."""

    def matters(self, lead: Lead) -> bool:
        """Whether the lead is large enough to warn of."""

    def words(self, score: float) -> str:
        """The score for a reader."""


@dataclass(frozen=True)
class Classes:
    """Probabilities of the classes for samples, and for the same samples moved by some pixels: [samples, classes]."""

    first: Floats
    moved: Floats


class Accuracy:
    """With labels: the share of samples whose class is right, and the probability of the right class.

    Args:
        labels: Class of each sample in the order of the trial; it may grow.
    """

    name: Name = "accuracy"
    moves = False
    most = 400

    def __init__(self, labels: Sequence[int]) -> None:
        self._given = labels

    def _labels(self, evidence: Classes) -> npt.NDArray[np.int64]:
        return np.array(self._given[: len(evidence.first)], np.int64)

    def _right(self, evidence: Classes) -> Floats:
        labels = self._labels(evidence)
        hits = evidence.first.argmax(axis=1) == labels
        sure = np.asarray(evidence.first[np.arange(len(labels)), labels], np.float64)
        return np.asarray((hits + sure) / 2)  # less noise than hits alone

    def score(self, evidence: Classes) -> float:
        """The accuracy."""
        return float((evidence.first.argmax(axis=1) == self._labels(evidence)).mean())

    def lead(self, one: Classes, other: Classes) -> Lead:
        """See :class:`Criterion`."""
        apart = self._right(one) - self._right(other)
        return Lead(float(apart.mean()), float(apart.std() + 0.5 / len(apart)) / len(apart) ** 0.5)

    def alike(self, one: Classes, other: Classes) -> bool:
        """See :class:`Criterion`."""
        return _same_classes(one, other)

    def is_strong(self, evidence: Classes) -> bool:
        """Whether it is far above what one class for all samples would give."""
        labels = self._labels(evidence)
        chance = max(np.bincount(labels).max() / len(labels), 1 / evidence.first.shape[1])
        error = (chance * (1 - chance) / len(labels)) ** 0.5
        return bool(self.score(evidence) > chance + max(4 * error, 0.1 * (1 - chance)))

    def matters(self, lead: Lead) -> bool:
        """Five points."""
        return lead.difference >= 0.05

    def words(self, score: float) -> str:
        """See :class:`Criterion`."""
        return f"accuracy {score:.1%}"


class Consistency:
    """Without labels, of classifiers: the mutual information of the class of a sample and of the same sample moved.

    It is high where a model is sure of itself, tells samples apart, and says the same of a sample that is moved by some
    pixels (X. Ji, J. Henriques, A. Vedaldi: Invariant Information Clustering, 2019). A wrong preprocessing costs the
    last first: contrast that is too high leaves a network sure, of one thing here and another there. It is given as
    the share of the most that so many samples and classes can have.
    """

    name: Name = "consistency"
    moves = True
    most = 200

    def score(self, evidence: Classes) -> float:
        """The share, 0 to 1."""
        samples, classes = evidence.first.shape
        most = float(np.log(max(min(samples, classes), 2)))
        return mutual_information(*_few(evidence.first, evidence.moved)) / most

    def lead(self, one: Classes, other: Classes) -> Lead:
        """By the bootstrap, with the same choice of samples for both, and always the same choices."""
        rng, count = np.random.default_rng(0), len(one.first)
        ours, theirs = _few(one.first, one.moved), _few(other.first, other.moved)
        most = float(np.log(max(min(one.first.shape), 2)))
        apart = []
        for _ in range(_REPEATS):
            chosen = rng.integers(0, count, count)
            apart.append(
                mutual_information(*(x[chosen] for x in ours)) - mutual_information(*(x[chosen] for x in theirs))
            )
        return Lead(self.score(one) - self.score(other), float(np.std(apart)) / most)

    def alike(self, one: Classes, other: Classes) -> bool:
        """See :class:`Criterion`."""
        return _same_classes(one, other)

    def is_strong(self, evidence: Classes) -> bool:
        """As measured in benchmarks/preprocessing.py."""
        return self.score(evidence) >= 0.4

    def matters(self, lead: Lead) -> bool:
        """See :class:`Criterion`."""
        return lead.difference >= 0.06

    def words(self, score: float) -> str:
        """See :class:`Criterion`."""
        return f"consistency {score:.2f}"


class Normalization:
    """Of any network that keeps BatchNormalization: how near what reaches the first ones is to what they have stored.

    Evidence is mean and variance of each sample in each channel, [samples, 2, channels], for each of these layers; the
    distance is the divergence (Kullback-Leibler) of normal distributions, the median over channels.

    Args:
        stored: Mean and variance that each layer has stored, [channels].
    """

    name: Name = "normalization"
    moves = False
    most = 8

    def __init__(self, stored: Sequence[tuple[Floats, Floats]]) -> None:
        self._stored = stored

    def score(self, evidence: Sequence[Floats]) -> float:
        """The negative distance, the geometric mean over the layers."""
        logs = [np.log(self._distance(one, *layer) + _TINY) for one, layer in zip(evidence, self._stored, strict=True)]
        return -float(np.exp(np.mean(logs)))

    @staticmethod
    def _distance(moments: Floats, mean: Floats, variance: Floats) -> float:
        own = moments[:, 0].mean(axis=0)
        ratio = (moments[:, 1].mean(axis=0) + moments[:, 0].var(axis=0) + _TINY) / (variance + _TINY)
        return float(np.median(((own - mean) ** 2 / (variance + _TINY) + ratio - 1 - np.log(ratio)) / 2))

    def lead(self, one: Sequence[Floats], other: Sequence[Floats]) -> Lead:
        """In logarithms: samples from elsewhere than the training's make a difference of two or three times."""
        return Lead(float(np.log(self.score(other) / self.score(one))), 0.55)

    def alike(self, one: Sequence[Floats], other: Sequence[Floats]) -> bool:
        """Never: statistics of the first layers do not show that outputs are the same."""
        return False

    def is_strong(self, evidence: Sequence[Floats]) -> bool:
        """See :class:`Criterion`."""
        return self.score(evidence) > -0.5

    def matters(self, lead: Lead) -> bool:
        """Seven times the distance."""
        return lead.difference >= 2

    def words(self, score: float) -> str:
        """See :class:`Criterion`."""
        return f"distance {-score:.3g} from what BatchNormalization has stored"


class Likeness:
    """Of networks that make images of images (super-resolution, denoising): how like what went in the result is.

    A larger result is made small again. Evidence is the error of each sample and its variation, [samples, 2].
    """

    name: Name = "likeness"
    moves = False
    most = 8

    def score(self, evidence: Floats) -> float:
        """1 less the error as a share of the variation."""
        return 1 - float(evidence[:, 0].sum() / max(evidence[:, 1].sum(), _TINY))

    def lead(self, one: Floats, other: Floats) -> Lead:
        """In logarithms of the errors, sample by sample."""
        ours, theirs = (np.log(x[:, 0] + _TINY) - np.log(x[:, 1] + _TINY) for x in (one, other))
        apart = theirs - ours
        return Lead(float(apart.mean()), float(apart.std()) / len(apart) ** 0.5 + 0.05)

    def alike(self, one: Floats, other: Floats) -> bool:
        """Errors within a tenth."""
        return abs(self.lead(one, other).difference) < 0.1

    def is_strong(self, evidence: Floats) -> bool:
        """See :class:`Criterion`."""
        return self.score(evidence) > 0.8

    def matters(self, lead: Lead) -> bool:
        """Three times the error."""
        return lead.difference >= 1.1

    def words(self, score: float) -> str:
        """See :class:`Criterion`."""
        return f"result like the input to {score:.1%}"


def are_probabilities(scores: Floats) -> bool:
    """Whether class scores [samples, classes] are probabilities already."""
    return bool(scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-2))


def probabilities(scores: Floats, *, given: bool | None = None) -> Floats:
    """Class scores [samples, classes] as probabilities: as they are, where they are, else by softmax.

    Args:
        scores: The scores.
        given: Whether they are probabilities; None: as they look.
    """
    scores = np.nan_to_num(scores, nan=0.0, posinf=1e30, neginf=-1e30)
    if are_probabilities(scores) if given is None else given:
        return scores
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def mutual_information(first: Floats, second: Floats) -> float:
    """Of the classes of samples and of what was made of them, in nats; both [samples, classes], rows of sum 1."""
    joint = first.T @ second / len(first)
    joint = (joint + joint.T) / 2
    return float(2 * _entropy(joint.sum(axis=0)) - _entropy(joint.ravel()))


def _entropy(probability: Floats) -> float:
    return -float((probability * np.log(np.maximum(probability, 1e-30))).sum())


def _few(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """The same where there are many classes: those with the most probability, and the rest as one."""
    if first.shape[1] <= _CLASSES:
        return first, second
    kept = np.argsort(-(first.sum(axis=0) + second.sum(axis=0)), kind="stable")[: _CLASSES - 1]
    one, two = (np.column_stack([x[:, kept], 1 - x[:, kept].sum(axis=1)]).clip(0) for x in (first, second))
    return one, two


def _same_classes(one: Classes, other: Classes) -> bool:
    return bool((one.first.argmax(axis=1) == other.first.argmax(axis=1)).mean() >= _SAME_CLASS)
