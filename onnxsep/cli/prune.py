"""onnxsep prune."""

import onnxsep
from onnxsep.cli.derived import OPTIONAL_OUT, Given, command, model_to
from onnxsep.cli.options import failure_shown, progress_bar, saved, shower, target_of
from onnxsep.model.paths import RESULT
from onnxsep.pruning.options import PruneOptions


@command(
    PruneOptions, model_to("prune"), OPTIONAL_OUT, example="onnxsep prune in.onnx out.onnx --sparsity 0.3 --channels"
)
def prune(given: Given[PruneOptions]) -> None:
    """Set the smallest weights to zero, or take whole channels out (--channels).

    Give one of --sparsity, --step and --pattern. Zeros alone give no speed in ONNX Runtime, which computes with them as
    with any number, and no smaller file until it is zipped; --channels gives both. The network has to be fine-tuned
    afterwards.
    """
    shown = given.shown
    target = target_of(given.arguments["out"], dry_run=given.options.dry_run)
    given.check_paths({RESULT: target})
    show = shower(shown)
    with failure_shown(show), progress_bar(shown.silent) as progress:
        result = onnxsep.prune(given.arguments["model"], **given.keywords(progress=progress))
    show(saved(result, target))
