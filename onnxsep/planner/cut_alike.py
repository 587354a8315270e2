"""Choices that cut all layers alike: where a search begins when the sum of effects has misled it.

Of many layers that each change the output much, the sum of the effects says little about all together: a choice by sums
ruins a few layers whose effects alone were small. One mode for all layers, at about the same share of their parameters,
spreads the errors. ResNet-20 at .2 of the parameters: KL .76 by sums and two rounds around that, .45 with cp alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from onnxsep.engine.replacements import ConvReplacement
from onnxsep.graph.places import Place
from onnxsep.modes.base import Mode
from onnxsep.planner.grid import SHARES
from onnxsep.planner.measuring import Measured
from onnxsep.planner.selection import Selection

Layers = Mapping[Place, Sequence[Measured]]
LEVELS = (*SHARES, 1.0)
MOST = 4  # choices: each costs a fit of all layers


def cut_alike(measured: Layers, choose: Callable[[Layers], Selection | None]) -> list[Selection]:
    """For every mode, and for the best of each layer: the choice at the largest share that keeps within the budgets.

    Each layer gets the form at this share, or at the next larger one while there is room. A layer that has none of the
    mode gets the best of the others, by the errors of its own output; layers without a kernel stay, but for modes that
    are for these.

    Args:
        measured: The candidates of each layer, the layer left alone first.
        choose: Gives of some candidates the choice within the budgets that loses least by sums; None where none keeps
            within.

    Returns:
        At most ``MOST``, those that lose least by sums.
    """
    rows = (one.row for several in measured.values() for one in several)
    modes = {row.mode for row in rows if isinstance(row, ConvReplacement)}
    found: list[Selection] = []
    for mode in (None, *sorted(modes, key=lambda mode: mode.name)):
        choice = _largest(measured, mode, choose)
        if choice is not None and not any(_same(choice, other) for other in found):
            found.append(choice)
    return sorted(found, key=lambda one: one.loss)[:MOST]


def _largest(measured: Layers, mode: Mode | None, choose: Callable[[Layers], Selection | None]) -> Selection | None:
    low, high = 0, len(LEVELS) - 1
    best = choose(_at(measured, mode, LEVELS[:1]))
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        if choose(_at(measured, mode, (LEVELS[middle],))) is None:
            high = middle
        else:
            low = middle
    return best and choose(_at(measured, mode, (LEVELS[low], LEVELS[high])))


def _at(measured: Layers, mode: Mode | None, levels: Sequence[float]) -> Layers:
    """The candidates at some shares of the parameters; of others the layer left alone cannot be chosen."""
    return {place: list(_usable(several, mode, levels)) for place, several in measured.items()}


def _usable(several: Sequence[Measured], mode: Mode | None, levels: Sequence[float]) -> Iterator[Measured]:
    forms = [_form(several, mode, share) for share in levels]
    alone = several[0]
    yield alone if any(one is alone for one in forms) else replace(alone, effect=math.inf, deciding=None)
    yield from {id(one): one for one in forms if one is not alone}.values()


def _form(several: Sequence[Measured], mode: Mode | None, share: float) -> Measured:
    alone = several[0]
    own = [(one, one.row.mode) for one in several if isinstance(one.row, ConvReplacement)]  # without blocks
    forms = [one for one, its in own if its is mode or not its.linear_layers]
    if share == 1 or not forms:
        return alone
    small = [one for one in forms if one.parameters <= share * alone.parameters]
    of_mode = [one for one in small if one.row and one.row.mode is mode]
    if of_mode:
        return max(of_mode, key=lambda one: one.parameters)
    return min(small, key=lambda one: one.held_out) if small else min(forms, key=lambda one: one.parameters)


def _same(one: Selection, other: Selection) -> bool:
    return all(now.is_like(then) for now, then in zip(one.chosen, other.chosen, strict=True))
