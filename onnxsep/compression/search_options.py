"""The options of ``compress``: those of a run, and the goals of a search for its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.compression.given import CompressOptions
from onnxsep.errors import OptionError, spelled
from onnxsep.options.proposals import TARGETS
from onnxsep.options.specs import option, record
from onnxsep.planner.targets import budgets_of, losses_of, parse_targets

if TYPE_CHECKING:
    from onnxsep.compression.goals import Goals

_GOALS = "Goals, instead of a recipe"


@record
class SearchOptions(CompressOptions):
    """What ``compress`` is asked for."""

    target: str | Sequence[str] = option(
        default=(),
        group=_GOALS,
        typed=list[str],
        proposed=TARGETS,
        help="What the file may cost: size=0.07, size=80kB, params=0.1, macs=0.5, latency=0.6; several will do.",
        doc='what the result may cost, instead of a recipe: "size=0.07", "size=80kB", "params=0.1", "macs=0.5",'
        ' "latency=0.6"; several are all kept. Ways are tried from the quickest to prepare upwards.',
    )
    max_drop: float | None = option(
        default=None,
        group=_GOALS,
        metavar="POINTS",
        help="Points of top-1 accuracy that may be lost, on {test}.",
        doc="how many points of top-1 accuracy (or of the metric) may be lost, on the samples that are measured on.",
    )

    @property
    def goals(self) -> Goals | None:
        """What a search is to reach; None where none is asked for."""
        from onnxsep.compression.goals import Goals

        texts = [self.target] if isinstance(self.target, str | Path) else list(self.target)
        asked = parse_targets(map(str, texts))
        if losses := losses_of(asked):
            raise OptionError(
                f"{spelled('target')} {losses[0].text} is no goal of a search: {spelled('max_drop')} says what may be"
                " lost, on the samples that are measured on"
            )
        return Goals(budgets_of(asked), self.max_drop) if asked else None

    def check(self) -> None:
        """Refuse goals that cannot be read or meant.

        Raises:
            OptionError: One of them.
        """
        super().check()
        if self.goals is None and self.max_drop is not None:
            raise OptionError(f"{spelled('max_drop')} goes with {spelled('target')}: how small the result is to be")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise OptionError(f"{spelled('max_drop')} {self.max_drop:g} is no loss in points; use one such as 1")
