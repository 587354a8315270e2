"""A run of fine-tuning: load -> open the data -> turn into torch -> train -> write the weights back."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxsep.data import ImageJudge, Preprocessing, PreprocessingReport, open_data
from onnxsep.errors import TrainingError, spelled
from onnxsep.finetuning import setup
from onnxsep.finetuning.options import FinetuneOptions
from onnxsep.finetuning.report import FinetuneReport
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import Reads, check_paths
from onnxsep.options.progress import announce
from onnxsep.reporting.model_info import model_info
from onnxsep.training import TorchGraph, write_back
from onnxsep.training.augment import augmenter
from onnxsep.training.batches import Batches
from onnxsep.training.checkpoint import CheckpointFile, check_new
from onnxsep.training.learner import Learner
from onnxsep.training.losses import LossSettings
from onnxsep.training.parallel import Group, told
from onnxsep.training.preparing import lesson, torch_copy
from onnxsep.training.run_records import Settings, Trained
from onnxsep.training.trainer import Trainer

Used = dict[str, bool | int | float | str | None]


@dataclass(frozen=True)
class Given:
    """The model, what was asked for, and how images are read."""

    model: AnyModel
    options: FinetuneOptions
    preprocessing: Preprocessing | None

    @property
    def checkpoint(self) -> Path | None:
        """The file that holds the run's state."""
        return None if self.options.checkpoint is None else Path(self.options.checkpoint)

    def reads(self) -> Reads:
        """The files that are read."""
        return Reads.of(self.model, self.options.reads())


@dataclass(frozen=True)
class _Prepared:
    """All that is known before the first step."""

    source: Model
    original: Model | None
    graph: TorchGraph
    learner: Learner
    batches: Batches
    trainer: Trainer
    used: Used
    accuracy_of: setup.AccuracyOf
    preprocessing: PreprocessingReport | None
    notes: tuple[str, ...]


def run(given: Given, group: Group) -> tuple[Model, tuple[str, ...], FinetuneReport]:
    """Train; the errors are those of ``onnxsep.finetune``.

    Returns:
        The model, the names of the weights that are new in it, and the report; the same in every process.
    """
    started = time.perf_counter()
    ready = group.alike(lambda: _prepare(given, group))
    trained = ready.trainer.run(resume=given.options.resume)
    if trained.problem and not trained.best_epoch:
        raise told(
            TrainingError(f"{trained.problem}; lower the learning rate ({spelled('rate')}). Nothing was written")
        )
    changed = write_back(ready.source, trained.arrays) if trained.arrays else ready.source
    result = changed.ordered_as(ready.source)
    return result, tuple(trained.arrays), _report(given, ready, trained, time.perf_counter() - started)


def _prepare(given: Given, group: Group) -> _Prepared:
    options = given.options
    if group.leads:
        check_paths(given.reads(), options.writes())
        check_new(given.checkpoint, resume=options.resume)
    announce(options.teller, "preparing the training")
    source = load(given.model, follow_links=options.follow_links)
    original = None if options.teacher is None else load(options.teacher, follow_links=options.follow_links)
    dataset = open_data(
        options.data,
        source,
        preprocessing=given.preprocessing,
        labels=options.labels,
        judge=ImageJudge(source if original is None else original, options.run_with, options.output),
        skip_bad=options.skip_bad,
    )
    setup.check_labels_there(options, original, dataset)
    weight = setup.label_weight(options.label_weight, original, dataset)
    setup.fit_batch(dataset, original)
    chosen = dataset.sample(options.samples, options.seed)
    none = f", or hold none out ({spelled('validation', 0)})"
    batches = Batches(dataset, chosen, options.batch, options.validation, options.seed, otherwise=none)
    copy = torch_copy(source, batches, group.device, options.run_with)
    graph = copy.graph
    term = None if original is None or weight == 1 else options.loss
    must = term is None or term == "soft" or bool(options.label_weight)
    scores = setup.scores(copy.outputs, copy.samples, options.output, dataset, chosen, needed=must)
    weight = weight if scores is not None else 0.0  # labels that no output answers to: the teacher alone
    losses = LossSettings(term, weight, options.temperature, scores)
    learnt = lesson(copy, batches, losses, original, options.run_with, options.precision)
    moves, augmented = augmenter(options.augment, batches.first().feeds, has_teacher=term is not None)
    norm, norms, found = setup.batch_norm(graph, batches, options, group.count, has_scores=scores is not None)
    zeros = setup.is_pruned(source, graph) if options.keep_zeros is None else options.keep_zeros
    learner = Learner(
        graph,
        batch_norm=norm,
        precision=options.precision,
        keep_zeros=zeros,
        norms=norms,
        group=group,
        outputs=learnt.loss.reads,
    )
    setup.check_precision(learner, batches, options.precision)
    used: Used = {
        "loss": term,
        "label_weight": weight,
        "temperature": options.temperature if term == "soft" else None,
        "output": scores,
        "epochs": options.epochs,
        "batch": options.batch,
        "optimizer": options.optimizer,
        "rate": options.largest_rate,
        "schedule": options.schedule,
        "weight_decay": options.weight_decay,
        "batch_norm": norm if graph.buffers or norms else None,
        "precision": options.precision,
        "augment": augmented,
        "validation": options.validation,
        "patience": options.patience,
        "keep_zeros": zeros,
        "samples": options.samples,
        "seed": options.seed,
    }
    file = None
    if given.checkpoint is not None and group.leads:
        file = CheckpointFile(given.checkpoint, setup.identity(source, original, dataset, chosen, used))
    settings = Settings(
        options.epochs,
        options.optimizer,
        options.largest_rate,
        options.schedule,
        options.weight_decay,
        options.patience,
        options.seed,
    )
    trainer = Trainer(
        learner, batches, learnt.loss, learnt.teacher, moves, settings, file, options.teller, learnt.reference
    )
    counted = setup.accuracy_of(dataset, scores, learnt.loss)
    notes = (*dataset.notes, *learnt.notes, *found)
    where: Mapping[str, str | int] = {"device": str(group.device), "processes": group.count}
    return _Prepared(
        source, original, graph, learner, batches, trainer, {**used, **where}, counted, dataset.preprocessing, notes
    )


def _report(given: Given, ready: _Prepared, trained: Trained, seconds: float) -> FinetuneReport:
    return FinetuneReport(
        source=model_info(ready.source),
        teacher=None if ready.original is None else str(ready.original.path or "a model in memory"),
        options=given.options.as_json(model=given.model),
        used=ready.used,
        preprocessing=ready.preprocessing,
        training_samples=ready.batches.count,
        held_out_samples=len(ready.batches.held_out),
        weights=sum(value.numel() for value in ready.graph.parameters.values()),
        zeros_kept=ready.learner.zeros,
        accuracy_of=ready.accuracy_of,
        before=trained.before,
        epochs=trained.history,
        best_epoch=trained.best_epoch,
        stopped=trained.stopped,
        resumed_after=trained.resumed_after,
        notes=(*ready.notes, *trained.notes),
        seconds=seconds,
    )
