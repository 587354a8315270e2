"""The options of ``profile``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy
from onnxsep.options.proposals import MODES
from onnxsep.options.specs import option, record
from onnxsep.running.options import Opening, Seeded, Shaped, Telling

if TYPE_CHECKING:
    from onnxsep.modes import BlockMode, Mode
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.modes": ("BlockMode", "Mode")})

_CONVS = "Which Convs"


@record
class ProfileOptions(Opening, Shaped, Seeded, Telling):
    """What ``profile`` is asked for."""

    modes: Sequence[str | Mode | BlockMode] = option(
        default=(),
        flag="--mode",
        short="-m",
        typed=list[str],
        proposed=MODES,
        help="The forms that layers may get; by default those that `plan` chooses from.",
        doc="the forms that layers may get; by default those that ``plan`` chooses from.",
    )
    include_first: bool = option(default=False, group=_CONVS, help="First Convs too (reached straight from an input).")
    recurse: bool = option(default=False, group=_CONVS, help="Convs that onnxsep made too.")
    only: str | Sequence[str] = option(
        default=(),
        group=_CONVS,
        help="Only Convs whose name matches (glob).",
        doc="glob patterns; a Conv whose name matches none is left out.",
    )
    skip: str | Sequence[str] = option(
        default=(),
        group=_CONVS,
        help="Not the Convs whose name matches (glob).",
        doc="glob patterns; a Conv whose name matches one is left out.",
    )
    round_ranks: int = option(
        default=0,
        help="Make channels in between multiples of this, 8 or 16, as `plan` is to.",
        doc="make channel counts multiples of this, 8 or 16, as ``plan`` is to; 0: as they are.",
    )

    def check(self) -> None:
        """Refuse modes that are not there, and a rounding that is none.

        Raises:
            OptionError: An option cannot be used.
            ModeNotFoundError: There is no such mode.
        """
        from onnxsep.modes.ranks import check_rounding
        from onnxsep.planner.forms import forms

        super().check()
        check_rounding(self.round_ranks)
        forms(self.modes)
