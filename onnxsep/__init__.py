"""onnxsep: a compiler for trained CNNs in ONNX.

Graph in, smaller and faster graph out, whatever framework exported it; nothing of the user's graph is lost.

    import onnxsep

    result = onnxsep.rewrite("in.onnx", mode="depthwise")
    print(result.report.totals)
    result.save("out.onnx")
"""

from typing import TYPE_CHECKING

from onnxsep._version import __version__
from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.checking import CheckResult, check
    from onnxsep.compression import (
        CompressReport,
        CompressResult,
        FineTune,
        Pipeline,
        Prune,
        Quantize,
        Recipe,
        Rewrite,
        compress,
        read_recipe,
        shipped_recipes,
    )
    from onnxsep.errors import OnnxsepError
    from onnxsep.evaluation import EvaluationReport, evaluate
    from onnxsep.finetuning import FinetuneReport, FinetuneResult, finetune
    from onnxsep.model.io import Model, load
    from onnxsep.model.saving import SavedFiles, save
    from onnxsep.modes import BlockMode, Mode, WidthMode, available_modes
    from onnxsep.planner.api import PlanResult, plan
    from onnxsep.planner.plan_file import PlanFile
    from onnxsep.planner.reading import read_plan
    from onnxsep.profiling import ProfileReport, ProfileResult, profile
    from onnxsep.pruning import PruneResult, prune
    from onnxsep.quantization import QuantizeResult, quantize
    from onnxsep.reporting.saved import read_report
    from onnxsep.rewriting.api import Result, rewrite
    from onnxsep.rewriting.inspection import inspect
    from onnxsep.running.runtime import RuntimeOptions
else:
    # An import of all takes a second, in which the command line answers no signal.
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.checking": ("CheckResult", "check"),
            "onnxsep.compression": (
                "CompressReport",
                "CompressResult",
                "FineTune",
                "Pipeline",
                "Prune",
                "Quantize",
                "Recipe",
                "Rewrite",
                "compress",
                "read_recipe",
                "shipped_recipes",
            ),
            "onnxsep.errors": ("OnnxsepError",),
            "onnxsep.evaluation": ("EvaluationReport", "evaluate"),
            "onnxsep.finetuning": ("FinetuneReport", "FinetuneResult", "finetune"),
            "onnxsep.rewriting.inspection": ("inspect",),
            "onnxsep.model.io": ("Model", "load"),
            "onnxsep.modes": ("BlockMode", "Mode", "WidthMode", "available_modes"),
            "onnxsep.rewriting.api": ("Result", "rewrite"),
            "onnxsep.planner.api": ("PlanResult", "plan"),
            "onnxsep.planner.plan_file": ("PlanFile",),
            "onnxsep.planner.reading": ("read_plan",),
            "onnxsep.profiling": ("ProfileReport", "ProfileResult", "profile"),
            "onnxsep.pruning": ("PruneResult", "prune"),
            "onnxsep.quantization": ("QuantizeResult", "quantize"),
            "onnxsep.reporting.saved": ("read_report",),
            "onnxsep.running.runtime": ("RuntimeOptions",),
            "onnxsep.model.saving": ("SavedFiles", "save"),
        },
    )

__all__ = [
    "BlockMode",
    "CheckResult",
    "CompressReport",
    "CompressResult",
    "EvaluationReport",
    "FineTune",
    "FinetuneReport",
    "FinetuneResult",
    "Mode",
    "Model",
    "OnnxsepError",
    "Pipeline",
    "PlanFile",
    "PlanResult",
    "ProfileReport",
    "ProfileResult",
    "Prune",
    "PruneResult",
    "Quantize",
    "QuantizeResult",
    "Recipe",
    "Result",
    "Rewrite",
    "RuntimeOptions",
    "SavedFiles",
    "WidthMode",
    "__version__",
    "available_modes",
    "check",
    "compress",
    "evaluate",
    "finetune",
    "inspect",
    "load",
    "plan",
    "profile",
    "prune",
    "quantize",
    "read_plan",
    "read_recipe",
    "read_report",
    "rewrite",
    "save",
    "shipped_recipes",
]
