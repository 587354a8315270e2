"""onnxsep plan."""

from dataclasses import replace

import onnxsep
from onnxsep.cli.caches import cache_beside, going_on
from onnxsep.cli.derived import Argument, Given, command, model_to
from onnxsep.cli.options import failure_shown, progress_bar, shower
from onnxsep.cli.words import following
from onnxsep.model.files import printable
from onnxsep.options.lazy import loaded
from onnxsep.planner.options import PlanOptions

_PLAN = Argument("out", "Where the plan goes.", "PLAN.toml")


@command(
    PlanOptions,
    model_to("plan for"),
    _PLAN,
    example="onnxsep plan in.onnx plan.toml --data images --target params=0.4",
)
def plan(given: Given[PlanOptions]) -> None:
    """Choose a form for each layer, by measurement, that keeps within a budget and loses least.

    `onnxsep rewrite IN.onnx OUT.onnx --plan PLAN.toml --data DATA` carries it out.
    """
    target, shown, options = given.arguments["out"], given.shown, given.options
    if options.cache is None:
        options = replace(options, cache=cache_beside(target))
    given.check_paths({loaded("onnxsep.planner.plan_file:PLAN_TARGET"): target}, options=options)
    show = shower(shown)
    with failure_shown(show), progress_bar(shown.silent) as progress, going_on(options.cache):
        result = onnxsep.plan(given.arguments["model"], **given.keywords(progress=progress, cache=options.cache))
    result.save(target)
    follow = following(options, given.arguments["model"], None, target)
    show(result.report.model_copy(update={"output": printable(target), "follow": follow}))
