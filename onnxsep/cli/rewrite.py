"""onnxsep rewrite."""

import typer

import onnxsep
from onnxsep.cli.derived import OPTIONAL_OUT, Given, command, model_to
from onnxsep.cli.options import failure_shown, progress_bar, saved, shower, target_of
from onnxsep.errors import OptionError
from onnxsep.model.paths import RESULT
from onnxsep.modes.ranks import check_rounding
from onnxsep.rewriting.options import RewriteOptions


@command(RewriteOptions, model_to("rewrite"), OPTIONAL_OUT)
def rewrite(given: Given[RewriteOptions]) -> None:
    """Replace Convs by separable ones, initialised from the trained weights, and compare the outputs."""
    options, shown = given.options, given.shown
    target = target_of(given.arguments["target"], dry_run=options.dry_run)
    try:
        check_rounding(options.round_ranks)
    except OptionError as error:  # wrong usage, as --verify
        raise typer.BadParameter(str(error)) from None
    given.check_paths({RESULT: target})
    show = shower(shown)
    with failure_shown(show), progress_bar(shown.silent) as progress:
        result = onnxsep.rewrite(given.arguments["model"], **given.keywords(progress=progress))
    show(saved(result, target))
