"""onnxsep profile."""

import onnxsep
from onnxsep.cli.derived import Argument, Given, command, model_to
from onnxsep.cli.interrupts import saying
from onnxsep.cli.options import progress_bar, shower
from onnxsep.profiling.options import ProfileOptions

_KIT = Argument("out", "The folder that goes to the device.", "KIT")


@command(ProfileOptions, model_to("cut into pieces"), _KIT, example="onnxsep profile in.onnx kit")
def profile(given: Given[ProfileOptions]) -> None:
    """Write a folder that times the layers of a model, in every form that they may get, on another device.

    On the device, `python measure.py` in the folder needs onnxruntime and numpy only, and writes latency.json.
    """
    from onnxsep.profiling.kit import KIT

    given.check_paths({KIT: given.arguments["out"]})
    with progress_bar(given.shown.silent) as progress:
        result = onnxsep.profile(given.arguments["model"], **given.keywords(progress=progress))
        with saying(lambda: "the kit is not complete; the same command makes it anew"):
            report = result.save(given.arguments["out"])
    shower(given.shown)(report)
