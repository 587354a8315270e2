"""What a search is to reach: budgets of the file that is shipped, and the accuracy that may be lost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxsep.evaluation.report import EvaluatedModel
from onnxsep.planner.targets import Target
from onnxsep.reporting.records import MissedLimit

_ROUNDING = 1e-9
_WHOLE = 1000  # of amounts from here on, digits behind the point say nothing


@dataclass(frozen=True)
class Goals:
    """What the last model of a run is held to.

    Attributes:
        targets: Budgets, as ``--target`` has them.
        max_drop: Points of top-1 accuracy (or of the user's metric) that may be lost; None: not asked for.
    """

    targets: tuple[Target, ...]
    max_drop: float | None

    def missed(self, rows: Sequence[EvaluatedModel]) -> tuple[MissedLimit, ...]:
        """What the last row misses against the first, the original."""
        return tuple(
            MissedLimit(limit=name, allowed=allowed, measured=value, model=rows[-1].name)
            for name, value, allowed in self._measured(rows[0], rows[-1])
            if value > allowed * (1 + _ROUNDING) + _ROUNDING
        )

    def _measured(self, original: EvaluatedModel, row: EvaluatedModel) -> Iterator[tuple[str, float, float]]:
        """Name, figure and limit of each goal that has been measured."""
        for target in self.targets:
            whole, value = _figure(original, target.kind), _figure(row, target.kind)
            if target.kind == "latency" and target.share:  # taken in turns, so that it is better known than its parts
                ratio = None if row.latency is None else row.latency.against_first
                yield target.text, math.inf if ratio is None else ratio.value, target.value
            elif target.share:
                yield target.text, value / whole if whole else math.inf, target.value
            else:
                yield target.text, value, target.value
        if self.max_drop is not None:
            yield "max_drop", drop(row), self.max_drop


def _figure(row: EvaluatedModel, kind: str) -> float:
    """What a budget counts of a model, in its units; infinite where it was not measured."""
    figures: Mapping[str, float | None] = {
        "params": row.parameters,
        "macs": row.macs,
        "size": row.file_bytes,
        "ram": None if row.activations is None else row.activations.best_order,
        "latency": None if row.latency is None else 1e6 * row.latency.median_ms,
    }
    value = figures[kind]
    return math.inf if value is None else value


def drop(row: EvaluatedModel) -> float:
    """How many points a model has lost against the original; infinite where that was not measured."""
    if row.metric is not None:
        return math.inf if row.metric.difference is None else -row.metric.difference
    against = None if row.top1 is None else row.top1.against_first
    return math.inf if against is None else -100 * against.difference


def distance(missed: Sequence[MissedLimit]) -> float:
    """How far a model is from the goals: the sum of what it is over each limit, points or shares of the limit."""
    return sum(
        one.measured - one.allowed if one.limit == "max_drop" else 100 * (one.measured / one.allowed - 1)
        for one in missed
    )


def in_words(missed: Sequence[MissedLimit]) -> str:
    """What is missing, in figures."""
    words = []
    for one in missed:
        if one.limit == "max_drop":
            words.append(f"{one.measured:.2f} points lost, {one.allowed:g} allowed")
        else:
            shown = f"{one.measured:,.0f}" if one.measured >= _WHOLE else f"{one.measured:.4g}"
            words.append(f"{one.limit}: {shown}")
    return "; ".join(words)
