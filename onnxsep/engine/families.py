"""Families of channels: those that filters of the same Convs make, the least important first."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.channels import Channels, Cut, Ids
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Constant, Place

Gone = NDArray[np.bool_]
"""For every number of a channel whether it goes."""


def filter_norms(weight: NDArray[np.generic], norm: Literal["l1", "l2"]) -> tuple[NDArray[np.float64], float]:
    """The norm of each filter, and that of a filter of ones.

    Args:
        weight: [out_channels, in_channels / group, *kernel_shape].
        norm: "l1" (sum of magnitudes) or "l2" (Euclidean).
    """
    flat = np.abs(weight.reshape(len(weight), -1).astype(np.float64))
    if norm == "l1":
        return flat.sum(axis=1), float(flat.shape[1])
    return np.sqrt((flat**2).sum(axis=1)), float(np.sqrt(flat.shape[1]))


class Importance:
    """Norms added up over the filters of each class of channels, and divided by what filters of ones would give.

    Within the Convs whose channels stand or fall together the order is that of the sum; the division lets Convs of
    different sizes compare.
    """

    def __init__(self, count: int) -> None:
        self._sums, self._ones = np.zeros(count), np.zeros(count)

    def add(self, classes: Ids, norms: NDArray[np.float64], ones: float) -> None:
        """Add the filters of one Conv, whose output channels belong to these classes."""
        np.add.at(self._sums, classes, norms)
        np.add.at(self._ones, classes, ones)

    def values(self) -> NDArray[np.float64]:
        """By class; 0 where it has no filters."""
        return np.divide(self._sums, self._ones, out=np.zeros_like(self._sums), where=self._ones > 0)


@dataclass(frozen=True)
class Family:
    """Classes of channels that are filters of the same Convs.

    ``free`` are those that may go, the least important first; ``size`` counts those that stay too.
    """

    free: tuple[int, ...]
    size: int

    def gone(self, wanted: int, multiple: int) -> tuple[int, ...]:
        """The classes that go when ``wanted`` should: one channel stays at least, and a multiple where asked for."""
        kept = max(self.size - wanted, 1)
        if multiple:
            kept = min(-(-kept // multiple) * multiple, self.size)
        return self.free[: self.size - kept]


def families(channels: Channels, every: Ids, frozen: Iterable[int], importance: NDArray[np.float64]) -> list[Family]:
    """The families of a model's channels.

    Args:
        channels: what was followed.
        every: the class of every number.
        frozen: classes that stay.
        importance: by class.
    """
    convs: dict[int, set[Place]] = defaultdict(set)
    for place, ids in channels.filters.items():
        for number in np.unique(every[ids]):
            convs[int(number)].add(place)
    members: dict[frozenset[Place], list[int]] = defaultdict(list)
    for number in sorted(convs):
        members[frozenset(convs[number])].append(number)
    stay = set(frozen)
    return [
        Family(tuple(sorted(set(found) - stay, key=lambda number: (importance[number], number))), len(found))
        for found in members.values()
    ]


class WeightCounter:
    """Counts the weights of all Convs, each stored tensor once, when some channels are gone."""

    def __init__(self, sites: Sites, channels: Channels) -> None:
        cuts: dict[Constant, Cut] = {cut.constant: cut for cut in channels.cuts}
        self._weights: dict[Constant, tuple[tuple[int, ...], Mapping[int, Ids]]] = {}
        for item in sites.found:
            if isinstance(item, ConvSite):
                cut = cuts.get(item.weight)
                axes = dict(cut.axes) if cut else {}
                if item.transposed:  # the shape is that of outputs and inputs, the cut that of what is stored
                    axes = {1 - axis: ids for axis, ids in axes.items()}
                self._weights[item.weight] = item.conv.weight_shape, axes

    def shape(self, weight: Constant, gone: Gone) -> tuple[int, ...]:
        """The shape of a Conv's weight then."""
        shape, axes = self._weights[weight]
        return tuple(
            int(np.count_nonzero(~gone[axes[axis]])) if axis in axes else size for axis, size in enumerate(shape)
        )

    def weights(self, gone: Gone) -> int:
        """Elements of all weights then."""
        return sum(int(np.prod(self.shape(weight, gone), dtype=np.int64)) for weight in self._weights)
