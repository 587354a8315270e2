"""How models are compared: what the user asks for, and the record of a comparison of all outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxsep.options.progress import Progress
from onnxsep.reporting.records import OutputReport, VerificationReport, part_reports
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
    """What ``inputs`` holds, once ``decide`` has read it."""


def full_report(whole: Comparison, notes: Sequence[str], alone: Sequence[Comparison] = ()) -> VerificationReport:
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
        notes=tuple(notes),
    )
