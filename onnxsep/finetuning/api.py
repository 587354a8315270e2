"""``finetune``: load -> open the data -> turn into torch -> train -> write the weights back."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt
import onnx

from onnxsep.data import Preprocessing, Source, open_data
from onnxsep.errors import OptionError
from onnxsep.finetuning import setup
from onnxsep.finetuning.report import FinetuneReport
from onnxsep.finetuning.setup import Augmentation
from onnxsep.io import Model, load
from onnxsep.runtime import RuntimeOptions
from onnxsep.saving import Savable, SavedFiles
from onnxsep.tables import model_info
from onnxsep.training import check_installed, to_torch, write_back
from onnxsep.training.batches import Batches
from onnxsep.training.checkpoint import CheckpointFile
from onnxsep.training.converters import import_torch
from onnxsep.training.figures import BatchNorm, Optimizer, Settings
from onnxsep.training.losses import Loss, LossSettings, TeacherTerm
from onnxsep.training.schedule import Schedule
from onnxsep.training.session import arrays_of, check_conversion, check_outputs, torch_threads
from onnxsep.training.teacher import Teacher
from onnxsep.training.trainer import Told, Trainer


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

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write the model, atomically; the checkpoint then goes, unless the run was interrupted and can be resumed."""
        files = super().save(path)
        if self.checkpoint is not None and self.report.stopped != "interrupted":
            self.checkpoint.unlink(missing_ok=True)
        return files


def finetune(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    data: Source,
    teacher: str | os.PathLike[str] | onnx.ModelProto | Model | None = None,
    labels: str | os.PathLike[str] | npt.ArrayLike | None = None,
    loss: TeacherTerm = "outputs",
    label_weight: float | None = None,
    temperature: float = 4.0,
    output: str | None = None,
    epochs: int = 10,
    batch: int = 64,
    optimizer: Optimizer = "sgd",
    rate: float | None = None,
    schedule: Schedule = "one-cycle",
    weight_decay: float = 1e-4,
    batch_norm: BatchNorm | None = None,
    augment: Augmentation = "auto",
    validation: float = 0.1,
    patience: int = 0,
    keep_zeros: bool | None = None,
    samples: int | None = None,
    preprocessing: Preprocessing | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Told | None = None,
) -> FinetuneResult:
    """Train all weights of a model, which go back into the same graph. Writes nothing but the checkpoint.

    The same seed gives the same result, on the same machine with one thread.

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
            leaves the statistics. By default "train", where there is BatchNormalization and the model takes 8 samples
            at once.
        augment: "crop", "flip", "crop,flip" or "none"; by default both beside a teacher, which sees the same image,
            and crops alone otherwise, as not every class looks the same in a mirror. Images of 16 pixels and more.
        validation: share of the samples that is held out; the weights that do best on it are kept. 0: the last ones.
        patience: stop after so many epochs that brought nothing; 0: never.
        keep_zeros: whether zeros in weights stay; by default where the model is pruned.
        samples: use at most so many samples of the data, drawn at random.
        preprocessing: of images.
        checkpoint: a file that holds the run's state after each epoch.
        resume: go on from ``checkpoint``, where it exists.
        seed: of what is held out, the order of samples, crops and flips.
        follow_links: follow links in the location of external data.
        runtime: threads, provider and custom operators of the teacher; its threads are torch's too.
        progress: told of every step: (words, done, all).

    Raises:
        MissingDependencyError: torch or onnx2torch is not installed.
        ModelLoadError: a model cannot be read.
        UnsupportedModelError: the model has an operator that torch cannot train.
        OptionError: an option cannot be used, or the checkpoint is that of another run.
        DataError: the data or labels do not fit the model.
        FeedError: the data does not fit the teacher.
        ModelSaveError: the checkpoint's file cannot be written.
        TrainingError: the loss is not finite, from the start or before anything was gained.
    """
    started = time.perf_counter()
    check_installed()
    options = runtime or RuntimeOptions()
    rate = setup.default_rate(optimizer) if rate is None else rate
    setup.check_choices(
        loss=loss, optimizer=optimizer, schedule=schedule, batch_norm=batch_norm or "train", augment=augment
    )
    setup.check_numbers(
        label_weight=label_weight,
        temperature=temperature,
        epochs=epochs,
        batch=batch,
        rate=rate,
        weight_decay=weight_decay,
        validation=validation,
        patience=patience,
    )
    if resume and checkpoint is None:
        raise OptionError("there is nothing to resume from; name the checkpoint")
    source = load(model, follow_links=follow_links)
    original = None if teacher is None else load(teacher, follow_links=follow_links)
    dataset = open_data(
        data, source, preprocessing=preprocessing, labels=labels, need_labels=original is None or bool(label_weight)
    )
    weight = setup.label_weight(label_weight, original, dataset)
    setup.fit_batch(dataset, original)
    chosen = dataset.sample(samples, seed)
    batches = Batches(dataset, chosen, batch, validation, seed)
    with torch_threads(options.threads):
        graph = to_torch(source)
        if not graph.parameters:
            raise OptionError("there are no weights to train in the model's main graph")
        first = batches.first()
        ours = arrays_of(graph, first.feeds)
        check_conversion(Teacher(source, options), first.feeds, ours)
        term = None if original is None or weight == 1 else loss
        must = term is None or term == "soft" or bool(label_weight)
        scores = setup.scores(ours, first.size, output, dataset, chosen, needed=must)
        weight = weight if scores is not None else 0.0  # labels that no output answers to: the teacher alone
        runner = None if original is None or term is None else Teacher(original, options)
        reference = [] if runner is None else [runner(item.feeds) for item in setup.reference(batches)]
        objective = Loss(import_torch(), LossSettings(term, weight, temperature, scores), ours, reference)
        if runner is not None:
            check_outputs(objective.outputs, ours, runner(first.feeds))
        norm, notes = setup.batch_norm(graph, dataset, batch_norm)
        augmenter, augmented = setup.augmenter(augment, first.feeds, has_teacher=term is not None)
        zeros = setup.is_pruned(source, graph) if keep_zeros is None else keep_zeros
        settings = Settings(epochs, optimizer, rate, schedule, weight_decay, patience, norm, zeros, seed)
        used: dict[str, bool | int | float | str | None] = {
            "loss": term,
            "label_weight": weight,
            "temperature": temperature if term == "soft" else None,
            "output": scores,
            "epochs": epochs,
            "batch": batch,
            "optimizer": optimizer,
            "rate": rate,
            "schedule": schedule,
            "weight_decay": weight_decay,
            "batch_norm": norm if graph.buffers else None,
            "augment": augmented,
            "validation": validation,
            "patience": patience,
            "keep_zeros": zeros,
            "samples": samples,
            "seed": seed,
        }
        place = None if checkpoint is None else Path(checkpoint)
        file = None
        if place is not None:
            file = CheckpointFile(place, setup.identity(source, original, dataset, chosen, used))
            if not resume and place.exists():
                raise OptionError(f"{place} is there already; add --resume to go on from it, or remove it")
        trainer = Trainer(graph, batches, objective, runner, augmenter, settings, file, progress)
        trained = trainer.run(resume=resume)
    result = write_back(source, trained.arrays) if trained.arrays else source
    report = FinetuneReport(
        source=model_info(source),
        teacher=None if original is None else str(original.path or "a model in memory"),
        options=used,
        training_samples=batches.count,
        held_out_samples=len(batches.held_out),
        weights=sum(value.numel() for value in graph.parameters.values()),
        zeros_kept=trainer.zeros,
        accuracy_of=setup.accuracy_of(dataset, scores, reference),
        before=trained.before,
        epochs=trained.history,
        best_epoch=trained.best_epoch,
        stopped=trained.stopped,
        resumed_after=trained.resumed_after,
        notes=(*dataset.notes, *notes, *trained.notes),
        seconds=time.perf_counter() - started,
    )
    return FinetuneResult(result, report, tuple(trained.arrays), place)
