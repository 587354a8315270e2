"""Fine-tuning a model's weights with labels or a teacher; they go back into the same graph."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.finetuning.api import FinetuneResult, finetune
    from onnxsep.finetuning.report import FinetuneReport
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {"onnxsep.finetuning.api": ("FinetuneResult", "finetune"), "onnxsep.finetuning.report": ("FinetuneReport",)},
    )

__all__ = ["FinetuneReport", "FinetuneResult", "finetune"]
