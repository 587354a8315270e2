"""Which channels go: importance of filters, families of channels, and how many until enough weights are gone."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.places import Constant, Place
from onnxsep.pruning.channels import Channels, Cut, Ids
from onnxsep.pruning.options import Norm, Scope

Gone = NDArray[np.bool_]
"""For every number of a channel whether it goes."""


def filter_norms(weight: NDArray[np.generic], norm: Norm) -> tuple[NDArray[np.float64], float]:
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


class Counter:
    """Counts the weights of all Convs, each stored tensor once, when some channels are gone."""

    def __init__(self, sites: Sites, channels: Channels) -> None:
        cuts: dict[Constant, Cut] = {cut.constant: cut for cut in channels.cuts}
        self._weights: dict[Constant, tuple[tuple[int, ...], Mapping[int, Ids]]] = {}
        for item in sites.found:
            if isinstance(item, ConvSite):
                cut = cuts.get(item.weight)
                self._weights[item.weight] = item.conv.weight_shape, cut.axes if cut else {}

    def shape(self, weight: Constant, gone: Gone) -> tuple[int, ...]:
        """The shape of a Conv's weight then."""
        shape, axes = self._weights[weight]
        return tuple(
            int(np.count_nonzero(~gone[axes[axis]])) if axis in axes else size for axis, size in enumerate(shape)
        )

    def weights(self, gone: Gone) -> int:
        """Elements of all weights then."""
        return sum(int(np.prod(self.shape(weight, gone), dtype=np.int64)) for weight in self._weights)


def search(
    found: Sequence[Family],
    scope: Scope,
    importance: NDArray[np.float64],
    multiple: int,
    most: int,
    count: Callable[[set[int]], int],
) -> set[int]:
    """The fewest classes whose going leaves at most ``most`` weights.

    Args:
        found: the families.
        scope: "global" takes classes in the order of their importance, "layer" the same share of each family.
        importance: by class.
        multiple: each family keeps a multiple of so many, where it has as many; 0 for any number.
        most: weights that may stay.
        count: how many weights stay when these classes go.

    Raises:
        OptionError: more would stay, whatever goes.
    """
    order = []
    for number, family in enumerate(found):
        for rank, member in enumerate(family.free):
            key = (rank + 1) / family.size if scope == "layer" else importance[member]
            order.append((key, member, number))
    order.sort()
    owners = np.array([number for _, _, number in order], np.int64)

    def gone(taken: int) -> set[int]:
        wanted = np.bincount(owners[:taken], minlength=len(found))
        return {
            member
            for family, number in zip(found, wanted.tolist(), strict=True)
            for member in family.gone(number, multiple)
        }

    low, high = 0, len(order)
    least = count(gone(high))
    if least > most:
        raise OptionError(_unreachable(least, count(set()), most))
    while low < high:
        middle = (low + high) // 2
        if count(gone(middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return gone(high)


def _unreachable(least: int, total: int, most: int) -> str:
    return (
        f"of the {total:,} weights of the Convs {most:,} were to stay, but at least {least:,} do: only whole channels "
        "that can be followed go, and every Conv keeps one; ask for a sparsity of at most "
        f"{int((1 - least / total) * 1000) / 1000:g} ({spelled('dry_run', True)} at that sparsity tells why"
        " channels stay)"
    )
