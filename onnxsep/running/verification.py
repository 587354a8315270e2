"""How models are compared: what the user asks for, and the record of a comparison of all outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxsep.errors import spelled
from onnxsep.options.progress import Progress
from onnxsep.reporting.blocks import rounded_up
from onnxsep.reporting.records import MeasuredOn, MissedLimit, OutputReport, VerificationReport, part_reports
from onnxsep.running.comparison import Comparison
from onnxsep.running.feeds import Feeds
from onnxsep.running.options import Verify
from onnxsep.running.runtime import RuntimeOptions

FULL_BELOW = 10**9  # bytes; a full verification holds the model several times


@dataclass(frozen=True)
class Settings:
    """What does not concern the choice of Convs: inputs, runtime, verification."""

    verify: Verify = "auto"
    inputs: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    max_error: float | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    progress: Progress | None = None
    given: Feeds | None = None
    """What ``inputs`` holds, once it has been read; else what the data give."""


def missed_error(relative: float | None, limit: float | None) -> tuple[MissedLimit, ...]:
    """Whether a relative error misses ``max_error``, and the limit with which the result would be written."""
    if limit is None or relative is None or not relative > limit:
        return ()
    nearest = rounded_up(relative) if math.isfinite(relative) else None
    return (MissedLimit(limit="max_error", allowed=limit, measured=relative, nearest=nearest),)


def too_far(relative: float, limit: float) -> str:
    """What an error says of a result that misses ``max_error``."""
    words = f"the relative error {relative:.3g} is above {spelled('max_error', limit)}"
    if not math.isfinite(relative):
        return words
    return f"{words} (the nearest: {spelled('max_error', rounded_up(relative))})"


def full_report(
    whole: Comparison, notes: Sequence[str], measured_on: MeasuredOn | None, alone: Sequence[Comparison] = ()
) -> VerificationReport:
    """The record of a comparison of all outputs, and of pieces that these say nothing about."""
    return VerificationReport(
        kind="full",
        ran=True,
        max_abs=max(one.max_abs for one in (whole, *alone)),
        mean_abs=max(one.mean_abs for one in (whole, *alone)),
        relative=max(one.relative for one in (whole, *alone)),
        outputs=tuple(
            OutputReport(
                name=one.name,
                max_abs=one.max_abs,
                mean_abs=one.mean_abs,
                relative=one.relative,
                parts=part_reports(one.parts),
            )
            for one in whole.outputs
        ),
        measured_on=measured_on,
        notes=tuple(notes),
    )
