"""Evaluation: accuracy, size, work, latency and memory of models side by side, on the user's own data."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.errors import EvaluationError
    from onnxsep.evaluation.api import evaluate
    from onnxsep.evaluation.report import EvaluationReport
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.errors": ("EvaluationError",),
            "onnxsep.evaluation.api": ("evaluate",),
            "onnxsep.evaluation.report": ("EvaluationReport",),
        },
    )

__all__ = ["EvaluationError", "EvaluationReport", "evaluate"]
