"""``evaluate``: models side by side in one run."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from onnxsep.data import Dataset, ImageJudge, Preprocessing, open_data
from onnxsep.errors import DataError, OptionError, VerificationError, spelled
from onnxsep.evaluation.latency import measure_latency
from onnxsep.evaluation.memory import measure_memory
from onnxsep.evaluation.options import EvaluateOptions
from onnxsep.evaluation.quality import Found, Quality, Task, run_over
from onnxsep.evaluation.report import EvaluatedModel, EvaluationReport, Latency, Memory, Ratios
from onnxsep.evaluation.sessions import Candidate, Session, check_same_interface, most_fixed, named
from onnxsep.graph.counting import Operations
from onnxsep.graph.parameters import count_nonzero_parameters, count_parameters
from onnxsep.graph.shapes import skeleton
from onnxsep.model.files import printable
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.options.progress import Progress, announce
from onnxsep.options.taking import takes
from onnxsep.reporting.blocks import missed_text
from onnxsep.reporting.model_info import sha256, size_bytes
from onnxsep.reporting.records import ActivationMemory
from onnxsep.running.feeds import Feeds
from onnxsep.running.integer_io import integer_io, quantized_feed
from onnxsep.running.metric import Metric, load_metric
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.sizes import find_sizes

_FEW = 50  # samples, of which an accuracy has a standard error of 7 points
_TIMED_FEEDS = 8  # different inputs for the timed runs


@takes(EvaluateOptions)
def evaluate(models: AnyModel | Sequence[AnyModel], options: EvaluateOptions) -> EvaluationReport:
    """Measure models on the same data: how good, how large, how fast; each as a share of the first.

    With labels: top-1 accuracy, and top-5 where there are more than 5 classes, or ``metric``. With a reference model:
    agreement with it and the error of the outputs. Without labels, metric and reference the first of several models is
    the reference.

    Args:
        models: One or more models, each a file, a ModelProto or what ``load`` gave. They have the same inputs and
            outputs.
        options: each by its name.

    Raises:
        ModelLoadError: a model cannot be read.
        DataError: the data or its labels cannot be used, or do not fit the models.
        OptionError: an option cannot be used; the metric cannot be found.
        EvaluationError: a model cannot be run, the models do not go together, or the metric fails.
        VerificationError: a model misses a limit; its ``report`` says what was measured.
    """
    begin = time.perf_counter()
    runtime, reference, metric, output = options.run_with, options.reference, options.metric, options.output
    batch, runs, progress = options.batch, options.runs, options.teller
    images = Preprocessing.of(options.preprocessing)
    sources = [models] if isinstance(models, str | os.PathLike | onnx.ModelProto | Model) else list(models)
    if not sources:
        raise OptionError("there is no model to evaluate")
    function = load_metric(metric) if isinstance(metric, str) else metric
    given = [*sources, *([] if reference is None else [reference])]
    together = named([load(source, follow_links=options.follow_links) for source in given])
    candidates = together[: len(sources)]
    other = None if reference is None else together[-1]
    check_same_interface(together)
    judge = ImageJudge((together[0] if reference is None else together[-1]).model, runtime, output)
    dataset = open_data(
        options.data,
        most_fixed(together),
        preprocessing=images,
        labels=options.labels,
        judge=judge,
        skip_bad=options.skip_bad,
    )
    options.check_possible(len(candidates), labels=dataset.labels is not None, source=dataset.source)
    task, notes = _task(dataset, function, metric, output, other is not None, len(candidates))
    batches = list(dataset.batches(dataset.sample(options.samples, options.seed), batch))
    feeds, size = _timed_feeds(dataset, batches, batch)

    announce(progress, "opening the models")
    sessions = [Session(candidate, runtime) for candidate in candidates]
    against = None if other is None else Session(other, runtime)
    if against is None and function is None and not task.accuracy:
        against = sessions[0]
    found = run_over(sessions, against, dataset, batches, task, progress)
    calls = [session.timed(feeds) for session in sessions] if runs != 0 else []
    latencies = measure_latency(calls, feeds, runs, progress) if calls else None
    del sessions, against, calls
    memories = _memories(candidates, feeds[0], runtime, progress) if options.memory else None
    announce(progress, "counting")
    sample = dataset.feed(batches[0] if dataset.batch else batches[0][:1])
    rows: list[EvaluatedModel] = []
    for number, (candidate, quality) in enumerate(zip(candidates, found.models, strict=True)):
        latency = latencies[number] if latencies else None
        peak = memories[number] if memories else None
        rows.append(_row(candidate, quality, latency, peak, _Sizing(sample, runtime), rows[0] if rows else None))
    report = EvaluationReport(
        options=options.as_json(models=sources),
        data=dataset.source,
        preprocessing=dataset.preprocessing,
        samples=found.samples,
        classes=found.classes,
        output=found.output,
        metric=task.metric_name or None,
        reference=_reference_name(candidates[0], other, found),
        models=tuple(rows),
        latency_batch=size,
        threads=runtime.threads,
        cores=_cores(),
        provider=runtime.provider,
        missed=options.missed(rows),
        notes=(
            *dataset.notes,
            *_few(found.samples, task),
            *_integer_notes(together),
            *notes,
            *found.notes,
            *_memory_notes(rows),
        ),
        seconds=time.perf_counter() - begin,
    )
    if report.missed:
        raise VerificationError("; ".join(map(missed_text, report.missed)), report)
    return report


def _few(samples: int, task: Task) -> tuple[str, ...]:
    """A warning where an accuracy is worth little."""
    if not task.accuracy or samples >= _FEW:
        return ()
    points = 50 / samples**0.5
    return (f"warning: {samples} samples are few: the standard error of an accuracy is up to {points:.0f} points",)


def _reference_name(first: Candidate, other: Candidate | None, found: Found) -> str | None:
    if other is not None:
        return other.name if other.model.path is not None else "a model in memory"
    return first.name if any(quality.against_reference for quality in found.models) else None


def _task(
    data: Dataset,
    function: Metric | None,
    metric: str | Metric | None,
    output: str | None,
    has_reference: bool,
    models: int,
) -> tuple[Task, tuple[str, ...]]:
    """What is measured, and a note where that was not the user's choice."""
    if function is not None:
        name = metric if isinstance(metric, str) else getattr(function, "__name__", type(function).__name__)
        return Task(function, name, output, accuracy=False), ()
    if data.labels is not None:
        return Task(None, "", output, accuracy=True), ()
    if has_reference:
        return Task(None, "", output, accuracy=False), ()
    if models == 1:
        raise DataError(
            f"{data.source} has no labels, so that accuracy cannot be measured: put the images into one folder for each"
            " class, or integers into the array 'y' of an .npz file, or give a CSV file of names and classes"
            f" ({spelled('labels')}); or give a model to compare with ({spelled('reference')}), or a metric of your own"
            f" ({spelled('metric')})"
        )
    return Task(None, "", output, accuracy=False), ("the data has no labels: the first model is the reference",)


def _timed_feeds(
    data: Dataset, batches: Sequence[list[int]], batch: int | None
) -> tuple[list[dict[str, np.ndarray]], int]:
    """A few feeds of equal size for the timed runs, and how many samples each holds."""
    used = [index for indices in batches for index in indices]
    size = data.batch or batch or 1
    if size > len(used):
        raise OptionError(f"a batch of {size} was asked for, and only {len(used)} samples are used; take a smaller one")
    parts = list(data.batches(used, size))
    largest = max(map(len, parts))  # samples of different shapes share no feed
    chosen = [part for part in parts if len(part) == largest][:_TIMED_FEEDS]
    return [data.feed(part) for part in chosen], largest


def _memories(
    candidates: Sequence[Candidate],
    feed: Mapping[str, np.ndarray],
    runtime: RuntimeOptions,
    progress: Progress | None,
) -> list[Memory]:
    found = []
    for number, candidate in enumerate(candidates, start=1):
        announce(progress, f"memory: {candidate.name}", number - 1, len(candidates))
        own = quantized_feed(feed, integer_io(candidate.model.proto))
        found.append(measure_memory(candidate.model, own, runtime))
        if progress is not None:
            progress("memory", number, len(candidates))
    return found


def _integer_notes(candidates: Sequence[Candidate]) -> list[str]:
    return [
        f"{candidate.name}: it exchanges integers; data and outputs are real numbers, by the scales in its metadata"
        for candidate in candidates
        if integer_io(candidate.model.proto)
    ]


def _memory_notes(rows: Sequence[EvaluatedModel]) -> list[str]:
    reasons = [(row.name, row.memory.reason) for row in rows if row.memory is not None and row.memory.reason]
    return [f"{name}: {reason}" for name, reason in reasons]


@dataclass(frozen=True)
class _Sizing:
    """One sample, or the batch that the models insist on, for figures that follow from sizes; how models are run."""

    sample: Mapping[str, np.ndarray]
    runtime: RuntimeOptions

    def figures(self, model: Model) -> tuple[Operations, ActivationMemory]:
        """MACs and peak activation memory."""
        feeds = Feeds(quantized_feed(self.sample, integer_io(model.proto)))
        sizes, light = find_sizes(model, runtime=self.runtime, feeds=feeds), skeleton(model)
        return sizes.macs(light), ActivationMemory(**asdict(sizes.activation_memory(light)))


def _row(
    candidate: Candidate,
    quality: Quality,
    latency: Latency | None,
    memory: Memory | None,
    sizing: _Sizing,
    first: EvaluatedModel | None,
) -> EvaluatedModel:
    model = candidate.model
    macs, activations = sizing.figures(model)
    row = EvaluatedModel(
        name=candidate.name,
        path=None if model.path is None else printable(model.path),
        file_bytes=size_bytes(model),
        sha256=sha256(model),
        parameters=count_parameters(model.proto),
        nonzero_parameters=count_nonzero_parameters(model),
        macs=macs.total,
        macs_unknown=macs.unknown,
        activations=activations,
        top1=quality.top1,
        top5=quality.top5,
        metric=quality.metric,
        against_reference=quality.against_reference,
        latency=latency,
        memory=memory,
    )
    return row if first is None else row.model_copy(update={"ratios": _ratios(row, first)})


def _ratios(row: EvaluatedModel, first: EvaluatedModel) -> Ratios:
    def ratio(figure: Callable[[EvaluatedModel], float | None]) -> float | None:
        own, other = figure(row), figure(first)
        return None if own is None or not other else own / other

    return Ratios(
        file_bytes=ratio(lambda model: model.file_bytes),
        parameters=ratio(lambda model: model.parameters),
        nonzero_parameters=ratio(lambda model: model.nonzero_parameters),
        macs=ratio(lambda model: None if model.macs_unknown else model.macs),
        latency=row.latency.against_first.value if row.latency and row.latency.against_first else None,
        peak_memory=ratio(lambda model: model.memory.peak_bytes if model.memory else None),
        activations=ratio(lambda model: model.activations.best_order if model.activations else None),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
