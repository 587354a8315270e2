"""``finetune`` of the Python API."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt

from onnxsep.data import AnyPreprocessing, Preprocessing, Source
from onnxsep.errors import OptionError
from onnxsep.finetuning.options import TEMPERATURE, Options
from onnxsep.finetuning.report import FinetuneReport
from onnxsep.finetuning.run import AnyModel, Given, run
from onnxsep.model.io import Model
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable, SavedFiles
from onnxsep.options.hints import checks_types
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training import check_installed
from onnxsep.training.augment import Augmentation
from onnxsep.training.checkpoint import is_checkpoint
from onnxsep.training.conversion_checks import torch_threads
from onnxsep.training.converters import import_torch
from onnxsep.training.losses import TeacherTerm
from onnxsep.training.parallel import joined
from onnxsep.training.run_records import BatchNorm, Optimizer, Precision
from onnxsep.training.schedule import Schedule
from onnxsep.training.trainer import Told


@dataclass(frozen=True)
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


@checks_types
def finetune(
    model: AnyModel,
    *,
    data: Source,
    teacher: AnyModel | None = None,
    labels: str | os.PathLike[str] | npt.ArrayLike | None = None,
    loss: TeacherTerm = "outputs",
    label_weight: float | None = None,
    temperature: float = TEMPERATURE,
    output: str | None = None,
    epochs: int = 10,
    batch: int = 64,
    optimizer: Optimizer = "sgd",
    rate: float | None = None,
    schedule: Schedule = "one-cycle",
    weight_decay: float = 1e-4,
    batch_norm: BatchNorm | None = None,
    precision: Precision = "float32",
    augment: Augmentation = "auto",
    validation: float = 0.1,
    patience: int = 0,
    keep_zeros: bool | None = None,
    samples: int | None = None,
    preprocessing: AnyPreprocessing | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str = "auto",
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Told | None = None,
) -> FinetuneResult:
    """Train all weights of a model, which go back into the same graph. Writes nothing but the checkpoint.

    The same seed gives the same result, on the same machine with one thread.

    Started by torchrun, each process computes its share of every batch. All get the same result; the one with rank 0
    alone keeps the checkpoint and is told of steps, and should be the one that saves.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        data: a folder of images, an .npy or .npz file, arrays, or an iterable of feeds (``onnxsep.data``).
        teacher: a model whose outputs are to be learnt: usually the original of a rewritten or pruned one.
        labels: a CSV file of names and classes, or classes, instead of the data's own.
        loss: with a teacher: "outputs" compares outputs as they are, of any network; "soft" the probabilities of
            classes, softened by the temperature.
        label_weight: share of the cross-entropy with the labels, 0 to 1. By default 0.1 beside a teacher where there
            are labels, and 1 without a teacher.
        temperature: of "soft".
        output: the output that holds the class scores, where several look like it.
        epochs: passes over the data.
        batch: samples in a step.
        optimizer: "sgd" (with momentum) or "adam".
        rate: the largest learning rate; by default 0.05 for SGD, 0.001 for Adam.
        schedule: "one-cycle": up over a tenth of the steps and down along a cosine to zero; or "constant".
        weight_decay: of the weights of layers; biases and norms have none.
        batch_norm: "train" uses each batch's statistics and moves the running ones, and lets Dropout drop; "frozen"
            leaves the statistics. "insert" is "train", and puts BatchNormalization behind the Convs that have none, for
            training only: it is folded into their weights at the end. By default "insert" for classifiers with 8 Convs
            or more and no BatchNormalization, "train" where there is some, and "frozen" where that cannot be done: the
            model takes fewer than 8 samples at once.
        precision: "float32", or "bfloat16" for the layers in training: faster where the processor has it. Weights, the
            loss and what is measured stay in float32.
        augment: "crop", "flip", "crop,flip" or "none"; by default both beside a teacher, which sees the same image,
            and crops alone otherwise, as not every class looks the same in a mirror. Images of 16 pixels and more.
        validation: share of the samples that is held out; the weights that do best on it are kept. 0: the last ones.
        patience: stop after so many epochs that brought nothing; 0: never.
        keep_zeros: whether zeros in weights stay; by default where the model is pruned.
        samples: use at most so many samples of the data, drawn at random.
        preprocessing: of images: a Preprocessing, the path of a TOML file, or a dict with its keys.
        checkpoint: a file that holds the run's state after each epoch.
        resume: go on from ``checkpoint``, where it exists.
        seed: of what is held out, the order of samples, crops and flips.
        device: "auto" (a GPU where torch has one, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
        follow_links: follow links in the location of external data.
        runtime: threads, provider and custom operators of the teacher; its threads are torch's too.
        progress: told of every step: (words, done, all).

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
    check_installed()
    given_runtime = runtime or RuntimeOptions()
    given_runtime.check()
    options = Options(
        loss=loss,
        label_weight=label_weight,
        temperature=temperature,
        output=output,
        epochs=epochs,
        batch=batch,
        optimizer=optimizer,
        rate=rate,
        schedule=schedule,
        weight_decay=weight_decay,
        batch_norm=batch_norm,
        precision=precision,
        augment=augment,
        validation=validation,
        patience=patience,
        keep_zeros=keep_zeros,
        samples=samples,
        seed=seed,
        device=device,
    )
    if teacher is None and loss == "soft":
        raise OptionError("--loss soft compares with a teacher; add --teacher, or leave it out")
    if resume and checkpoint is None:
        raise OptionError("there is nothing to resume from; name the checkpoint")
    place = None if checkpoint is None else Path(checkpoint)
    given = Given(
        model,
        teacher,
        data,
        labels,
        Preprocessing.of(preprocessing),
        place,
        resume,
        follow_links,
        given_runtime,
        progress,
    )
    with torch_threads(given.runtime.threads), joined(import_torch(), device) as group:
        result, new_initializers, report = run(given, options, group)
    return FinetuneResult(result, report, new_initializers, place, given.reads())
