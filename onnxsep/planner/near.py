"""Forms near to one that a plan has chosen: what a further round measures."""

from collections.abc import Sequence

from onnxsep.engine.replacements import ConvReplacement
from onnxsep.modes.base import Mode
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured

_NEAR = (0.6, 0.8, 1.0, 1.25, 1.6)  # times the parameters of what was chosen
_WHOLE = 0.45  # of the parameters of a layer that was left alone
_FAR = 1.7  # times the parameters: forms that were worth measuring there are tried again


def near(one: Measured, measured: Sequence[Measured], modes: Sequence[Mode], round_ranks: int) -> list[ConvReplacement]:
    """Forms of a layer that are worth measuring around a plan.

    Args:
        one: What the plan has of the layer.
        measured: The first round, which says what forms are of use at about that cost.
        modes: All that may be tried.
        round_ranks: As for ``onnxsep.rewrite``.
    """
    whole = one.site.conv.parameters
    rows = [(other.row, other.parameters) for other in measured if isinstance(other.row, ConvReplacement)]
    if not isinstance(one.row, ConvReplacement):
        large = [row for row, parameters in rows if parameters >= _WHOLE * whole]
        return large or [row for row, _ in rows[-1:]]
    close = [row for row, parameters in rows if 1 / _FAR < parameters / one.parameters < _FAR]
    wanted = [mode for mode in modes if any(row.mode is mode for row in [one.row, *close])]
    shares = sorted({min(one.parameters / whole * factor, 1.0) for factor in _NEAR})
    found = list(candidates(one.site, wanted, shares, round_ranks))
    known = any(row.mode is one.row.mode and row.rank == one.row.rank for row in found)
    return found if known else [one.row, *found]
