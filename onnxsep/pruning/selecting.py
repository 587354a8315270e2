"""Which channels go: how many of each family, until enough weights are gone."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.families import Family
from onnxsep.errors import OptionError, spelled
from onnxsep.pruning.options import Scope


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
