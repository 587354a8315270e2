"""What is left of a budget of bytes, once the real ones are known, goes into larger ranks.

Candidates lie on a grid of ranks, and what a plan costs as a whole is known only when it is put together. Where its
file would be clearly smaller than asked for, layers get larger ranks of the forms that were chosen, those first that
change the output most; each as large as still fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from onnxsep.engine.planning import does_not_pay
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.planner.grid import row_at
from onnxsep.planner.measuring import Measured
from onnxsep.planner.selection import Selection
from onnxsep.planner.targets import Budget

FULL = 0.97
"""Of the budget: so much should be used."""
_HALVINGS = 8  # of the interval of shares in which a rank is sought
Costs = Callable[[Sequence[Measured]], Mapping[Budget, int]]


def filled(selection: Selection, budgets: Mapping[Budget, int], costs: Costs, round_ranks: int = 0) -> Selection:
    """A choice with larger ranks, where its file is clearly smaller than the budget of bytes.

    Args:
        selection: The choice.
        budgets: What it keeps within; other kinds than "size" are kept as well.
        costs: What a choice costs as a whole.
        round_ranks: As for ``onnxsep.rewrite``.
    """
    most = budgets.get("size")
    if most is None or costs(selection.chosen)["size"] >= FULL * most:
        return selection
    chosen = list(selection.chosen)

    def fits(other: Measured, place: int) -> bool:
        found = costs([*chosen[:place], other, *chosen[place + 1 :]])
        return all(found[kind] <= allowed for kind, allowed in budgets.items())

    for place in sorted(range(len(chosen)), key=lambda place: -chosen[place].loss):
        chosen[place] = _grown(chosen[place], partial(fits, place=place), round_ranks)
        if costs(chosen)["size"] >= FULL * most:
            break
    return replace(selection, chosen=tuple(chosen))


def _grown(one: Measured, fits: Callable[[Measured], bool], round_ranks: int) -> Measured:
    """A layer in the largest rank of its form that fits, or left alone where that does."""
    if not isinstance(one.row, ConvReplacement):
        return one
    alone = Measured.as_it_is(one.site)
    if fits(alone):
        return alone
    best, low, high = one, one.parameters / one.site.conv.parameters, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        row = row_at(one.site, one.row.mode, middle, round_ranks)
        if row is None or does_not_pay(row) or not fits(larger := _with(one, row)):
            high = middle
        else:
            low, best = middle, larger
    return best if best.parameters > one.parameters else one


def _with(one: Measured, row: ConvReplacement) -> Measured:
    """The same layer at another rank of its form; what was measured stays that of the smaller one."""
    if one.row is None or row.rank == one.row.rank:
        return one
    return replace(one, row=row, parameters=row.parameters, macs=row.macs, instead=one.instead or one.words)
