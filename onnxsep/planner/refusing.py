"""Why there is no plan, in words: the least that can be had, what excludes what, and the command for the nearest."""

from collections.abc import Sequence

from onnxsep.errors import TargetError, spelled
from onnxsep.planner.judging import Judge
from onnxsep.planner.report import MeasuredLoss, PlanReport
from onnxsep.planner.targets import as_target, shown_amount


def too_small(report: PlanReport) -> TargetError:
    """No choice keeps within the budgets."""
    asked = [one.target for one in report.targets if one.target]
    if not asked:
        return TargetError("no form pays for any layer, so there is nothing to choose; nothing was written", report)
    together = f"no choice keeps within {' and '.join(asked)} together"
    return TargetError(f"{least_words(report) or together}; nothing was written", report)


def least_words(report: PlanReport) -> str:
    """Budgets that nothing is small enough for, and the least that can be had; "" where each can be kept alone."""
    return "; ".join(
        f"{one.target} allows {shown_amount(one.kind, one.allowed)} of {shown_amount(one.kind, one.before)}, and"
        f" the least that can be had is {shown_amount(one.kind, one.least)}"
        f" ({spelled('target')} {as_target(one.kind, one.least, one.before)})"
        for one in report.targets
        if one.least > one.allowed
    )


def loses_too_much(
    report: PlanReport, judge: Judge, nearest: Sequence[MeasuredLoss], needed: int | None
) -> TargetError:
    """No choice loses so little.

    Args:
        report: What was tried, and of the nearest what it loses.
        judge: What may be lost.
        nearest: What the nearest plan loses.
        needed: What it would cost to lose no more, of the first budget, where that is what is in the way.
    """
    within = " and ".join(one.target for one in report.targets if one.target)
    losses, words = " and ".join(one.text for one in judge.targets), judge.in_words(nearest)
    if not within:
        return TargetError(f"{losses} cannot be met: the nearest plan loses {words}; nothing was written", report)
    first, more = report.targets[0], ""
    if needed is not None:
        more = f"; {losses} needs about {as_target(first.kind, needed, first.before)}"
    head = f"{within} and {losses} exclude each other: the nearest plan within {within} loses {words}{more}"
    return TargetError(f"{head}; nothing was written", report)
