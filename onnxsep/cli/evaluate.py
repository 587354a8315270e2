"""onnxsep evaluate."""

import onnxsep
from onnxsep.cli.derived import Argument, Given, command
from onnxsep.cli.options import failure_shown, progress_bar, shower
from onnxsep.evaluation.options import EvaluateOptions
from onnxsep.model.paths import MODEL

_MODELS = Argument(
    "models",
    "The models; the first is what the others are compared with.",
    "MODEL.onnx",
    several=True,
    reads=MODEL,
)


@command(EvaluateOptions, _MODELS, example="onnxsep evaluate in.onnx out.onnx --data images")
def evaluate(given: Given[EvaluateOptions]) -> None:
    """Measure models side by side: accuracy or agreement, size, parameters, MACs, latency, memory.

    Exit status 3 where a model misses a limit.
    """
    given.check_paths({})
    show = shower(given.shown)
    with failure_shown(show), progress_bar(given.shown.silent) as progress:
        report = onnxsep.evaluate(given.arguments["models"], **given.keywords(progress=progress))
    show(report)
