"""Ranges of activations from how their values are distributed: the percentile and the entropy method.

Entropy (S. Migacz, 8-bit Inference with TensorRT, 2017): of the ranges that clip the largest values, the one whose
quantised distribution is nearest to the real one, by the Kullback-Leibler divergence. For that a histogram must have
many more bins than there are levels: with as many, every range is exact, and nothing is ever clipped. Zeros, which
every range holds exactly, do not count, and what a finite number of values adds to a divergence by chance is taken off.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxsep.quantization.settings import Method

_BINS = {"entropy": 8192, "percentile": 8192}
_LEVELS = 256
_CANDIDATES = 128  # ranges that the entropy method compares
_FEWEST = 2 * _LEVELS  # bins of the smallest of them
_MOST_CUT = 0.001  # share of the values
_PERCENTILE = 99.999

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """How the values of one activation are distributed.

    Attributes:
        low: Smallest value.
        high: Largest value.
        counts: Values in each of the equal bins between them, but for zeros.
        zeros: Values that are zero.
    """

    low: float
    high: float
    counts: Counts
    zeros: int = 0

    @classmethod
    def empty(cls, method: Method, low: float, high: float) -> "Histogram":
        """A histogram with as many bins as a method needs, for values from ``low`` to ``high``."""
        return cls(low, high, np.zeros(_BINS[method], np.int64))

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count values; they must lie in the range."""
        bins = len(self.counts)
        if self.high > self.low:
            others = values[values != 0].astype(np.float64)
            self.zeros += values.size - others.size
            places = (others - self.low) * (bins / (self.high - self.low))
            self.counts += np.bincount(np.clip(places, 0, bins - 1).astype(np.int64), minlength=bins)

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / len(self.counts)


def percentile_range(histogram: Histogram, percentile: float | None) -> tuple[float, float]:
    """The range that holds a share of the values, in percent; as many are cut off below as above."""
    if not histogram.width:
        return histogram.low, histogram.high
    counts = histogram.counts.copy()
    if histogram.zeros:
        counts[int(np.clip(-histogram.low / histogram.width, 0, len(counts) - 1))] += histogram.zeros
    total = int(counts.sum())
    cut = total * (1 - (_PERCENTILE if percentile is None else percentile) / 100) / 2
    below = np.concatenate([[0], np.cumsum(counts)])
    edges = np.linspace(histogram.low, histogram.high, len(below))
    # Within a bin values are taken to lie evenly.
    first = int(np.searchsorted(below, cut, side="right")) - 1
    last = int(np.searchsorted(below, total - cut, side="left"))
    low = edges[first] + (cut - below[first]) / max(counts[first], 1) * histogram.width
    high = edges[last] - (below[last] - (total - cut)) / max(counts[last - 1], 1) * histogram.width
    if histogram.zeros:  # they do not lie evenly in their bin
        low = min(low, 0.0) if low < histogram.width else low
        high = max(high, 0.0) if high > -histogram.width else high
    return float(low), float(max(low, high))


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range with the smallest divergence of those that cut off all values larger than some limit."""
    counts, low, high = histogram.counts, histogram.low, histogram.high
    limit = max(abs(low), abs(high))
    if not counts.sum() or histogram.width == 0:
        return low, high
    best, found = np.inf, (low, high)
    edges = np.linspace(low, high, len(counts) + 1)
    for number in range(_CANDIDATES, 0, -1):  # the widest first: it stays where nothing is better
        most = limit * number / _CANDIDATES
        start = int(np.searchsorted(edges, -most, side="right")) - 1 if low < -most else 0
        stop = int(np.searchsorted(edges, most, side="left")) if high > most else len(counts)
        if stop - start < _FEWEST or counts[start:stop].sum() < (1 - _MOST_CUT) * counts.sum():
            break
        divergence = _divergence(counts, start, stop)
        if divergence < best:
            best, found = divergence, (float(edges[start]), float(edges[stop]))
    return found


def _divergence(counts: Counts, start: int, stop: int) -> float:
    """KL divergence of the values, those outside put into the outer bins, from what the levels can tell of them."""
    inside = counts[start:stop].astype(np.float64)
    real = inside.copy()
    real[0] += counts[:start].sum()
    real[-1] += counts[stop:].sum()
    borders = np.arange(_LEVELS) * len(inside) // _LEVELS
    lengths = np.diff(np.append(borders, len(inside)))
    filled = real > 0
    used = np.add.reduceat(filled.astype(np.float64), borders)
    level = np.add.reduceat(inside, borders) / np.maximum(used, 1)
    told = np.where(filled, np.repeat(level, lengths), 0)
    total, told_total = real.sum(), told.sum()
    if not told_total:
        return float("inf")
    # What levels do not tell at all has a small probability instead of none, else the divergence would be infinite.
    share, other = real[filled] / total, np.maximum(told[filled] / told_total, 1e-9)
    chance = (filled.sum() - np.count_nonzero(used)) / (2 * total)
    return float((share * np.log(share / other)).sum() - chance)
