"""The options of ``inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsep.layers.rank import RankPolicy
from onnxsep.options.lazy import lazy
from onnxsep.options.proposals import MODES
from onnxsep.options.specs import option, record
from onnxsep.rewriting.options import RANKS
from onnxsep.running.options import Opening, Shaped, Telling

if TYPE_CHECKING:
    from onnxsep.modes import BlockMode, Mode
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.modes": ("BlockMode", "Mode")})


@record
class InspectOptions(Opening, Shaped, Telling):
    """What ``inspect`` is asked for."""

    modes: Sequence[str | Mode | BlockMode] = option(
        default=(),
        flag="--mode",
        short="-m",
        typed=list[str],
        proposed=MODES,
        help="Only these modes; all by default.",
        doc="the modes to show; all installed ones by default.",
    )
    rank: RankPolicy | str | float = option(
        default="paper",
        typed=str,
        short="-r",
        proposed=RANKS,
        help="The rank to count at, as for rewrite.",
        doc="as for ``rewrite``.",
    )

    def check(self) -> None:
        """Refuse a rank that cannot be used, and modes that are not there.

        Raises:
            OptionError: the rank, or the list of modes, cannot be used.
            ModeNotFoundError: there is no such mode.
        """
        from onnxsep.modes.base import find_mode

        super().check()
        RankPolicy.parse(self.rank)
        for mode in self.modes:
            find_mode(mode)
