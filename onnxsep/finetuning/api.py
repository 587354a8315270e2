"""``finetune`` of the Python API."""

import os
from dataclasses import dataclass
from pathlib import Path

from onnxsep.data import Preprocessing
from onnxsep.finetuning.options import FinetuneOptions
from onnxsep.finetuning.report import FinetuneReport
from onnxsep.finetuning.run import Given, run
from onnxsep.model.io import AnyModel, Model
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable, SavedFiles
from onnxsep.options.taking import takes
from onnxsep.training.checkpoint import is_checkpoint
from onnxsep.training.conversion_checks import torch_threads
from onnxsep.training.converters import import_torch
from onnxsep.training.parallel import joined


@dataclass(frozen=True, repr=False)
class FinetuneResult(Savable):
    """A trained model and the report of what was done.

    ``model`` is the source's own object where training found nothing better. ``new_initializers`` are the changed
    tensors that ``save`` puts into the data file, where the source has one.
    """

    model: Model
    report: FinetuneReport
    new_initializers: tuple[str, ...] = ()
    checkpoint: Path | None = None
    reads: Reads = NOTHING

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write the model, atomically; the checkpoint then goes, unless the run was interrupted and can be resumed."""
        files = super().save(path)
        if self.checkpoint is not None and self.report.stopped != "interrupted" and is_checkpoint(self.checkpoint):
            self.checkpoint.unlink(missing_ok=True)
        return files


@takes(FinetuneOptions)
def finetune(model: AnyModel, options: FinetuneOptions) -> FinetuneResult:
    """Train all weights of a model, which go back into the same graph. Writes nothing but the checkpoint.

    The same seed gives the same result, on the same machine with one thread.

    Started by torchrun, each process computes its share of every batch. All get the same result; the one with rank 0
    alone keeps the checkpoint and is told of steps, and should be the one that saves.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        MissingDependencyError: torch is not installed.
        ModelLoadError: a model cannot be read.
        UnsupportedModelError: the model has an operator that torch cannot train.
        OptionError: an option cannot be used, the checkpoint is that of another run, or would overwrite another file.
        DataError: the data or labels do not fit the model.
        FeedError: the data does not fit the teacher.
        ModelSaveError: the checkpoint's file cannot be written.
        TrainingError: the loss is not finite, from the start or before anything was gained.
    """
    given = Given(model, options, Preprocessing.of(options.preprocessing))
    with torch_threads(options.run_with.threads), joined(import_torch(), options.device) as group:
        result, new_initializers, report = run(given, group)
    return FinetuneResult(result, report, new_initializers, given.checkpoint, given.reads())
