"""onnxsep: a compiler for trained CNNs in ONNX.

Graph in, smaller and faster graph out, whatever framework exported it; nothing of the user's graph is lost.

    import onnxsep

    result = onnxsep.rewrite("in.onnx", mode="depthwise")
    print(result.report.totals)
    result.save("out.onnx")
"""

from onnxsep._version import __version__
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
from onnxsep.inspection import inspect
from onnxsep.io import Model, load
from onnxsep.modes import Mode, available_modes
from onnxsep.pipeline import Result, rewrite
from onnxsep.pruning import PruneResult, prune
from onnxsep.quantization import QuantizeResult, quantize
from onnxsep.runtime import RuntimeOptions
from onnxsep.saving import SavedFiles, save

__all__ = [
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
    "Prune",
    "PruneResult",
    "Quantize",
    "QuantizeResult",
    "Recipe",
    "Result",
    "Rewrite",
    "RuntimeOptions",
    "SavedFiles",
    "__version__",
    "available_modes",
    "check",
    "compress",
    "evaluate",
    "finetune",
    "inspect",
    "load",
    "prune",
    "quantize",
    "read_recipe",
    "rewrite",
    "save",
    "shipped_recipes",
]
