"""Evaluation: accuracy, size, work, latency and memory of models side by side, on the user's own data."""

from onnxsep.evaluation.api import evaluate
from onnxsep.evaluation.errors import EvaluationError
from onnxsep.evaluation.report import EvaluationReport

__all__ = ["EvaluationError", "EvaluationReport", "evaluate"]
