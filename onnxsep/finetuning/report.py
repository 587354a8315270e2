"""What ``finetune`` did: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from pydantic import Field

from onnxsep.data import PreprocessingReport
from onnxsep.reporting.records import ModelInfo, Report, WrittenFiles
from onnxsep.training.run_records import EpochFigures, Figures, Stopped


class FinetuneReport(WrittenFiles, Report):
    """One run of ``onnxsep finetune``."""

    row_field = "epochs"
    command: Literal["finetune"] = "finetune"
    source: ModelInfo
    teacher: str | None
    options: dict[str, Any]
    """What was asked for: the model, and every option."""
    used: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Options as they were used: defaults that depend on the model or the data are resolved. Empty in reports of older
    versions, whose ``options`` are these."""
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged."""
    training_samples: int
    held_out_samples: int
    weights: int
    """Elements that were trained."""
    zeros_kept: int
    """Weights that were zero and stayed so."""
    accuracy_of: Literal["labels", "teacher", "nothing"]
    """What the accuracy counts: right labels, or the same class as the teacher's."""
    before: Figures | None
    """On the held-out samples, with the weights at the start."""
    epochs: tuple[EpochFigures, ...]
    best_epoch: int
    """The epoch whose weights were kept; 0: the weights are those at the start."""
    stopped: Stopped
    resumed_after: int | None
    notes: tuple[str, ...]
    seconds: float
