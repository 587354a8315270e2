"""The last word on a rewritten model: what it loses as it will be written."""

from onnxsep.model.io import Model
from onnxsep.planner.api import PlanResult
from onnxsep.planner.report import PlanReport


def judged(planned: PlanResult, result: Model, *, dry_run: bool = False) -> tuple[PlanReport, str]:
    """The report of a plan with what the model loses that was made by it, and what it misses, in words.

    Args:
        planned: The plan.
        result: The model as it will be written.
        dry_run: Nothing was made.
    """
    judge = planned.judge
    if judge is None or dry_run:
        return planned.report, ""
    losses = judge.verdict(result)
    words = ""
    if not judge.meets(losses):
        asked = " and ".join(one.text for one in judge.targets)
        words = f"the model that was made by a plan for {asked} loses {judge.in_words(losses)}"
    return planned.report.model_copy(update={"losses": judge.report(losses)}), words
