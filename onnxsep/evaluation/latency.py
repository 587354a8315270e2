"""Latency of whole models, as the reports have it: ``onnxsep.running.timing`` in milliseconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from onnxsep.evaluation.report import Latency, LatencyRatio
from onnxsep.options.progress import Progress
from onnxsep.running.timing import THOROUGH, Call, Effort, Timed, measure_times

_MS = 1000  # in a second


def measure_latency(
    calls: Sequence[Call],
    feeds: Sequence[Mapping[str, Any]],
    runs: int | None = None,
    progress: Progress | None = None,
    effort: Effort = THOROUGH,
) -> list[Latency]:
    """Time each model on the same inputs; the arguments are those of ``onnxsep.running.timing.measure_times``."""
    return list(map(_record, measure_times(calls, feeds, runs, progress, effort)))


def _record(found: Timed) -> Latency:
    ratio, error = found.against_first, found.standard_error
    return Latency(
        median_ms=found.median * _MS,
        lower_quartile_ms=found.lower_quartile * _MS,
        upper_quartile_ms=found.upper_quartile * _MS,
        runs=found.runs,
        standard_error_ms=None if error is None else error * _MS,
        against_first=None if ratio is None else LatencyRatio(value=ratio.value, standard_error=ratio.standard_error),
    )
