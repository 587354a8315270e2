"""Limits that ``evaluate`` holds models to, so that a build can fail where a model is too bad, large or slow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsep.errors import DataError, OptionError, spelled
from onnxsep.options.specs import Options, option, record

if TYPE_CHECKING:
    from onnxsep.evaluation.report import EvaluatedModel
    from onnxsep.reporting.records import MissedLimit

_GROUP = "Limits (exit status 3)"
_ROUNDING = 1e-9  # points or ratios: 92 % less 91 % is 1 point, and in floats a little more
_OF_OTHERS = ("max_drop", "max_latency_ratio", "max_size_ratio")


@record
class Limits(Options):
    """What models are held to."""

    min_accuracy: float | None = option(
        default=None,
        group=_GROUP,
        metavar="PERCENT",
        help="Fail where the top-1 accuracy of a model is lower: 91 for 91 %.",
        doc="the lowest top-1 accuracy of every model, in percent of the samples; it needs labels.",
    )
    max_drop: float | None = option(
        default=None,
        group=_GROUP,
        metavar="POINTS",
        help="Fail where a model loses more points of top-1 accuracy against the first one.",
        doc="how many points of top-1 accuracy (percent of the samples) a model may lose against the first one.",
    )
    max_latency_ratio: float | None = option(
        default=None,
        group=_GROUP,
        metavar="RATIO",
        help="Fail where a model takes longer than this share of the first one's time, such as 0.8.",
        doc="how long a model may take, as a share of the first one's time.",
    )
    max_size_ratio: float | None = option(
        default=None,
        group=_GROUP,
        metavar="RATIO",
        help="Fail where a file is larger than this share of the first one, such as 0.3.",
        doc="how large a file (with its external data) may be, as a share of the first one's.",
    )

    def check(self) -> None:
        """Refuse limits that cannot be meant.

        Raises:
            OptionError: one is out of range.
        """
        super().check()
        if self.min_accuracy is not None and not 1 < self.min_accuracy <= 100:
            also = f"; {self.min_accuracy:g} as a share is {spelled('min_accuracy', 100 * self.min_accuracy)}"
            raise OptionError(
                f"{spelled('min_accuracy')} must be a percentage above 1 and at most 100, not {self.min_accuracy:g}"
                + (also if 0 < self.min_accuracy <= 1 else "")
            )
        if self.max_drop is not None and not 0 <= self.max_drop < 100:
            raise OptionError(
                f"{spelled('max_drop')} {self.max_drop:g} is no loss of accuracy in points; use one such as 0.5"
            )
        for name in ("max_latency_ratio", "max_size_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{spelled(name)} {value:g} is no ratio above 0; use one such as 0.8")

    def check_possible(self, models: int, *, labels: bool, source: str) -> None:
        """Refuse limits that cannot be measured, before anything is.

        Raises:
            OptionError: there is no second model.
            DataError: there are no labels.
        """
        asked = [name for name in _OF_OTHERS if getattr(self, name) is not None]
        if asked and models < 2:
            raise OptionError(
                f"{spelled(asked[0])} compares models with the first one, and there is one only; give the original too,"
                " as the first"
            )
        for name in ("min_accuracy", "max_drop"):
            if getattr(self, name) is not None and not labels:
                raise DataError(
                    f"{spelled(name)} needs labels, and {source} has none: put the images into one folder for each"
                    " class, or integers into the array 'y' of an .npz file, or give a CSV file of names and classes"
                    f" ({spelled('labels')})"
                )

    def missed(self, rows: Sequence[EvaluatedModel]) -> tuple[MissedLimit, ...]:
        """What the models miss, in their order."""
        from onnxsep.reporting.records import MissedLimit

        found: list[MissedLimit] = []
        for row in rows:
            top1, ratios = row.top1, row.ratios
            against = None if top1 is None else top1.against_first
            measured = {
                "min_accuracy": None if top1 is None else 100 * top1.share.value,
                "max_drop": None if against is None else -100 * against.difference,
                "max_latency_ratio": None if ratios is None else ratios.latency,
                "max_size_ratio": None if ratios is None else ratios.file_bytes,
            }
            for name, value in measured.items():
                allowed = getattr(self, name)
                if allowed is None or value is None:
                    continue
                over = allowed - value if name == "min_accuracy" else value - allowed
                if over > _ROUNDING:
                    found.append(MissedLimit(limit=name, allowed=allowed, measured=value, model=row.name))
        return tuple(found)
