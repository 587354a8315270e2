"""onnxsep quantize."""

import onnxsep
from onnxsep.cli.derived import OUT, Given, command, model_to
from onnxsep.cli.options import failure_shown, progress_bar, saved, shower
from onnxsep.model.paths import RESULT
from onnxsep.quantization.options import QuantizeOptions


@command(QuantizeOptions, model_to("quantise"), OUT, example="onnxsep quantize in.onnx int8.onnx --data images")
def quantize(given: Given[QuantizeOptions]) -> None:
    """Quantise weights and activations to 8 bits with ONNX Runtime's static quantiser; only --max-drop needs labels."""
    target, shown = given.arguments["out"], given.shown
    given.check_paths({RESULT: target})
    show = shower(shown)
    with failure_shown(show), progress_bar(shown.silent) as progress:
        result = onnxsep.quantize(given.arguments["model"], **given.keywords(progress=progress))
    show(saved(result, target))
