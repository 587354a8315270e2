"""Errors of arrays whose parts have unlike ranges.

A detector's output may join boxes (0 to 640) and scores (0 to 1) along one axis. Then a single norm says nothing about
the scores: all of them may be lost at a relative error of .01. So sums are kept for every index of the axes that may be
such a one, and where the ranges along an axis fall into a few groups far apart, each group is a part with an error of
its own, and the error of the whole is that of the worst part. Everywhere else there is one part, the array itself.

What a range is: the largest magnitude of the original at an index, over everything that was added. Two neighbours in
the order of ranges are unlike from a factor of ``_UNLIKE`` on: one scale of 8 bits for both would leave the smaller one
32 steps of 256. There are exceptions. Values that all lie in [0, 1] are scores or probabilities, which share a
scale by what they mean: a class that no sample shows is small there and no part of its own. And what is smaller than
rounding in float32 (``_DEAD``) belongs to the smallest part that is larger. Among many indices a few small ones are
mostly features that hardly ever respond: they must be smaller by far (``_UNLIKE_FEW``).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_UNLIKE = 8.0
_UNLIKE_FEW = 64.0
_FEW = 1 / 16  # of the indices
_DEAD = 1e-5  # of the largest range
_FEWEST = 16  # elements at an index, from which on their largest magnitude means something
_CONSTANT = 1e-5  # of the range: a smaller standard deviation may be rounding
_MOST_PARTS = 4
_MOST_INDICES = 2**16
_TOLERANCE = 1e-3  # of the interval [0, 1]
LOST = 0.1  # share of its standard deviation below which a part has lost its variation


@dataclass(frozen=True)
class Part:
    """Indices of one axis whose values have like ranges.

    Attributes:
        axis: The axis.
        indices: The indices along it, ascending.
        low: Smallest value of the original.
        high: Largest value of the original.
        relative: ||a - b|| / ||a|| over the part, a the original; at least 1 where the part has lost its variation.
        max_abs: Largest absolute difference.
        deviation_before: Standard deviation of the original, each index about its own mean.
        deviation_after: The same of the result.
    """

    axis: int
    indices: tuple[int, ...]
    low: float
    high: float
    relative: float
    max_abs: float
    deviation_before: float
    deviation_after: float

    @property
    def lost(self) -> bool:
        """Whether the original varies within the part and the result (nearly) does not."""
        return lost_variation(self.deviation_before, self.deviation_after)

    def __str__(self) -> str:
        return f"axis {self.axis}, {'index' if len(self.indices) == 1 else 'indices'} {show_indices(self.indices)}"


def lost_variation(before: float, after: float) -> bool:
    """Whether a standard deviation has fallen below a tenth of what it was."""
    return before > 0 and after < LOST * before


def ratio(difference: float, original: float) -> float:
    """A relative error from two sums of squares; infinite where only the original's is 0."""
    if difference == 0.0:
        return 0.0
    return math.sqrt(difference / original) if original else math.inf


def show_indices(indices: Sequence[int], most: int = 6) -> str:
    """Ascending indices in runs, such as ``0-3, 6``; of many runs the first ``most``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    return ", ".join(shown) + (f", ... ({len(indices)} in all)" if len(runs) > most else "")


def loss_note(where: str, part: Part) -> str:
    """What a reader must know of a part that has lost its variation."""
    return (
        f"{where} ({part.low:.4g} to {part.high:.4g} in the original) has lost its variation: standard "
        f"deviation {part.deviation_before:.3g} in the original, {part.deviation_after:.3g} in the result"
    )


@dataclass
class _Along:
    """Sums for each index of one axis; of the original (a), the result (b) and their difference (d)."""

    axis: int
    count: Vector
    low: Vector
    high: Vector
    sum_a: Vector
    sum_b: Vector
    squares_a: Vector
    squares_b: Vector
    squares_d: Vector
    largest_d: Vector

    @classmethod
    def empty(cls, axis: int, size: int) -> "_Along":
        zeros = [np.zeros(size) for _ in range(7)]
        return cls(axis, zeros[0], np.full(size, np.inf), np.full(size, -np.inf), *zeros[1:])

    def add(self, a: Vector, b: Vector, d: Vector, known: npt.NDArray[np.bool_] | None) -> None:
        """Add arrays of one shape; unknown elements are 0 in all three."""
        size = a.shape[self.axis]
        before = math.prod(a.shape[: self.axis])

        def fold(values: Any) -> Any:
            return values.reshape(before, size, -1)

        a, b, d = fold(a), fold(b), fold(d)
        if known is None:
            self.count += a.shape[0] * a.shape[2]
            low, high = a.min(axis=(0, 2), initial=np.inf), a.max(axis=(0, 2), initial=-np.inf)
        else:
            mask = fold(known)
            self.count += mask.sum(axis=(0, 2))
            low = a.min(axis=(0, 2), initial=np.inf, where=mask)
            high = a.max(axis=(0, 2), initial=-np.inf, where=mask)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.sum_a += a.sum(axis=(0, 2))
        self.sum_b += b.sum(axis=(0, 2))
        self.squares_a += np.einsum("ikj,ikj->k", a, a)
        self.squares_b += np.einsum("ikj,ikj->k", b, b)
        self.squares_d += np.einsum("ikj,ikj->k", d, d)
        self.largest_d = np.maximum(self.largest_d, np.abs(d).max(axis=(0, 2), initial=0.0))

    @property
    def peaks(self) -> Vector:
        """Largest magnitude of the original at each index."""
        return np.where(self.count > 0, np.maximum(np.abs(self.low), np.abs(self.high)), 0.0)

    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Indices of like ranges, largest first; one group where all are alike."""
        peaks = self.peaks
        if not np.isfinite(self.squares_a).all() or not np.isfinite(self.squares_d).all() or not peaks.max(initial=0):
            return []
        order = np.argsort(-peaks, kind="stable")
        live = order[peaks[order] > _DEAD * peaks.max()]
        if self.count[live].min() < _FEWEST:
            return []
        ratios = peaks[live[:-1]] / peaks[live[1:]]
        # From which place on everything, in order of the ranges, lies in [0, 1].
        inside = (self.low[live] >= -_TOLERANCE) & (self.high[live] <= 1 + _TOLERANCE)
        scores = len(live) - int(np.cumprod(inside[::-1]).sum())
        below = 1 - np.arange(1, len(live)) / len(live)
        unlike = ratios >= np.where(below < _FEW, _UNLIKE_FEW, _UNLIKE)
        cuts = [int(place) + 1 for place in np.flatnonzero(unlike) if place < scores]
        cuts = sorted(sorted(cuts, key=lambda cut: -float(ratios[cut - 1]))[: _MOST_PARTS - 1])
        edges = [0, *cuts, len(order)]
        return [np.sort(order[start:end]) for start, end in itertools.pairwise(edges)]

    def spread(self, groups: Sequence[npt.NDArray[np.int64]]) -> float:
        """The variance of the logarithms of the ranges that the groups explain."""
        levels = [math.log(float(self.peaks[group].max())) for group in groups]
        shares = np.array([len(group) for group in groups], float) / sum(map(len, groups))
        mean = float(shares @ levels)
        return float(shares @ (np.array(levels) - mean) ** 2)

    def part(self, indices: npt.NDArray[np.int64]) -> Part:
        """The figures of one group."""
        number = max(float(self.count[indices].sum()), 1.0)
        before, after = (
            math.sqrt(max(float((squares - sums**2 / np.maximum(self.count, 1))[indices].sum()), 0.0) / number)
            for squares, sums in ((self.squares_a, self.sum_a), (self.squares_b, self.sum_b))
        )
        if before <= _CONSTANT * float(self.peaks[indices].max()):
            before = 0.0
        relative = ratio(float(self.squares_d[indices].sum()), float(self.squares_a[indices].sum()))
        if lost_variation(before, after):
            relative = max(relative, 1.0)
        return Part(
            axis=self.axis,
            indices=tuple(map(int, indices)),
            low=float(self.low[indices].min()),
            high=float(self.high[indices].max()),
            relative=relative,
            max_abs=float(self.largest_d[indices].max()),
            deviation_before=before,
            deviation_after=after,
        )

    def without_gains(self) -> tuple[float, float, float]:
        """The relative error that is left when each index of the result may be divided by a positive factor of its own.

        Returns:
            The error, and the smallest and the largest factor among the indices that matter.
        """
        products = (self.squares_a + self.squares_b - self.squares_d) / 2
        matter = (self.squares_a > 1e-4 * self.squares_a.max(initial=0.0)) & (products > 0)
        if not matter.any():
            return math.inf, 1.0, 1.0
        gains = np.where(matter, products / np.where(matter, self.squares_a, 1.0), 1.0)
        left = np.where(matter, self.squares_b - gains * products, self.squares_d) / gains**2
        error = math.sqrt(max(float(left.sum()), 0.0) / float(self.squares_a.sum()))
        return error, float(gains[matter].min()), float(gains[matter].max())


def channel_axes(shape: Sequence[int], samples: int | None) -> list[int]:
    """The axes along which parts may be joined.

    Not the one that counts samples, and of four axes and more not those in the middle, nor the end that is as long as
    its neighbour: these are places in an image.

    Args:
        shape: The array's shape.
        samples: How many samples it holds, where that is known; None: its first axis counts them.
    """
    rank = len(shape)
    axes = list(range(rank)) if samples is not None and rank and shape[0] != samples else list(range(1, rank))
    if rank >= 4:
        ends = {1, rank - 1} | ({2} if rank == 5 else set())
        if shape[-1] == shape[-2] != shape[1]:
            ends.discard(rank - 1)
        elif shape[1] == shape[2] != shape[-1]:
            ends.discard(1)
        axes = [axis for axis in axes if axis in ends]
    return [axis for axis in axes if 2 <= shape[axis] <= _MOST_INDICES]


@dataclass
class PartTally:
    """Sums over arrays of one name, from which parts are found; arrays are added one after another."""

    _axes: dict[int, _Along] = field(default_factory=dict)
    _rank: int | None = None
    _whole: _Along = field(default_factory=lambda: _Along.empty(0, 1))

    def add(self, original: npt.NDArray[Any], result: npt.NDArray[Any], samples: int | None = None) -> None:
        """Add arrays of the same shape; what is NaN or infinite in one of them does not count.

        An axis whose length changes from one array to the next is none that parts are joined along.
        """
        rank = original.ndim
        axes = channel_axes(original.shape, samples)
        if self._rank is None:
            self._rank = rank
            self._axes = {axis: _Along.empty(axis, original.shape[axis]) for axis in axes}
        elif rank != self._rank:
            self._axes = {}
        self._axes = {
            axis: along
            for axis, along in self._axes.items()
            if axis in axes and len(along.count) == original.shape[axis]
        }
        if not original.size:
            return
        a, b = np.ascontiguousarray(original, np.float64), np.ascontiguousarray(result, np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        known = None if finite.all() else finite
        with np.errstate(over="ignore", invalid="ignore"):
            if known is not None:
                a, b = np.where(known, a, 0.0), np.where(known, b, 0.0)
            d = a - b
            flat = None if known is None else known.reshape(1, -1)
            self._whole.add(a.reshape(1, -1), b.reshape(1, -1), d.reshape(1, -1), flat)
            for along in self._axes.values():
                along.add(a, b, d, known)

    def parts(self) -> tuple[Part, ...]:
        """The parts, where there are several: largest range first, all along the axis that tells them apart best."""
        best: tuple[float, _Along, list[npt.NDArray[np.int64]]] | None = None
        for along in self._axes.values():
            groups = along.groups()
            if len(groups) > 1 and (best is None or along.spread(groups) > best[0]):
                best = along.spread(groups), along, groups
        return () if best is None else tuple(best[1].part(group) for group in best[2])

    def whole(self) -> Part | None:
        """The figures of everything that was added; None where that is too little, or its squares overflow."""
        enough = self._whole.count[0] >= _FEWEST and math.isfinite(self._whole.squares_a[0] + self._whole.squares_d[0])
        return self._whole.part(np.zeros(1, np.int64)) if enough else None

    @property
    def plain(self) -> float:
        """||a - b|| / ||a|| over everything."""
        return ratio(float(self._whole.squares_d[0]), float(self._whole.squares_a[0]))

    @property
    def relative(self) -> float:
        """The error of the worst part, or of the whole where there are no parts."""
        return worst(self.plain, self.parts())

    def losses(self, where: str) -> list[str]:
        """A note for each part, or for the whole, that has lost its variation."""
        parts, whole = self.parts(), self.whole()
        notes = [loss_note(f"{where}, {part}", part) for part in parts if part.lost]
        if not parts and whole is not None and whole.lost:
            notes.append(loss_note(where, whole))
        return notes

    def without_gains(self) -> tuple[float, float, float] | None:
        """The smallest :meth:`_Along.without_gains` of the axes, None where there is no axis."""
        return min((along.without_gains() for along in self._axes.values()), default=None)


def worst(relative: float, parts: Sequence[Part]) -> float:
    """The error that limits judge: that of the worst part, or of the whole where there are no parts."""
    return max((relative, *(part.relative for part in parts)))
