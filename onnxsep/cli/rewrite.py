"""onnxsep rewrite."""

from dataclasses import replace
from pathlib import Path

import typer

import onnxsep
from onnxsep.cli.caches import cache_beside, going_on
from onnxsep.cli.derived import OPTIONAL_OUT, Given, command, model_to
from onnxsep.cli.options import failure_shown, progress_bar, saved, shower, target_of
from onnxsep.cli.words import following
from onnxsep.errors import OptionError
from onnxsep.model.files import printable
from onnxsep.model.paths import RESULT
from onnxsep.options.specs import option, record
from onnxsep.rewriting.options import RewriteOptions


@record
class RewriteCommand(RewriteOptions):
    """What ``rewrite`` is asked for, with the plan that it writes."""

    plan_out: Path | None = option(
        default=None,
        group="Output",
        writes="onnxsep.planner.plan_file:PLAN",
        help="Write the plan that is carried out to this TOML file.",
    )

    def check_usage(self) -> None:
        """Refuse no mode and no plan, and ranks that cannot be rounded so, as the parser refuses other words."""
        from onnxsep.modes.ranks import check_rounding

        if self.mode is None and self.plan is None and not self.target:
            raise typer.BadParameter(
                "give --mode NAME (`onnxsep modes` lists them), --plan FILE, or --target params=0.4"
            )
        try:
            check_rounding(self.round_ranks)
        except OptionError as error:
            raise typer.BadParameter(str(error)) from None


@command(RewriteCommand, model_to("rewrite"), OPTIONAL_OUT, example="onnxsep rewrite in.onnx out.onnx --mode depthwise")
def rewrite(given: Given[RewriteCommand]) -> None:
    """Replace Convs by separable ones, initialised from the trained weights, and compare the outputs."""
    options, shown = given.options, given.shown
    options.check_usage()
    target = target_of(given.arguments["out"], dry_run=options.dry_run)
    if options.target and options.cache is None and target is not None:
        options = replace(options, cache=cache_beside(target))
    given.check_paths({RESULT: target}, options=options)
    show = shower(shown)
    with failure_shown(show), progress_bar(shown.silent) as progress, going_on(options.cache):
        asked = given.keywords(progress=progress, cache=options.cache)
        del asked["plan_out"]
        result = onnxsep.rewrite(given.arguments["model"], **asked)
    written = None if options.plan_out is None else result.plan  # it reads the source, whose place the result may take
    done = saved(result, target)
    if written is not None and options.plan_out is not None:
        written.save(options.plan_out)
        done = done.model_copy(update={"plan_output": printable(options.plan_out)})
    if follow := following(options, given.arguments["model"], target):
        done = done.model_copy(update={"follow": follow})
    show(done)
