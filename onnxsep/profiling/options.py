"""The options of ``profile``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy
from onnxsep.options.proposals import MODES
from onnxsep.options.specs import option, record
from onnxsep.planner.which_layers import WhichLayers
from onnxsep.running.options import Opening, Seeded, Shaped, Telling

if TYPE_CHECKING:
    from onnxsep.modes import BlockMode, Mode
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.modes": ("BlockMode", "Mode")})


@record
class ProfileOptions(WhichLayers, Opening, Shaped, Seeded, Telling):
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

    def check(self) -> None:
        """Refuse modes that are not there.

        Raises:
            OptionError: An option cannot be used.
            ModeNotFoundError: There is no such mode.
        """
        from onnxsep.planner.forms import forms

        super().check()
        forms(self.modes)
