"""Fine-tuning a model's weights with labels or a teacher; they go back into the same graph."""

from onnxsep.finetuning.api import FinetuneResult, finetune
from onnxsep.finetuning.report import FinetuneReport

__all__ = ["FinetuneReport", "FinetuneResult", "finetune"]
