"""The pass over the data: what all models give for the same samples, and how good it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.data import Dataset, check_labels
from onnxsep.errors import DataError, EvaluationError, spelled
from onnxsep.evaluation.metrics import OutputDistance, share, top
from onnxsep.evaluation.report import Accuracy, AgainstReference, MetricValue
from onnxsep.evaluation.sessions import Session
from onnxsep.options.progress import Progress, announce
from onnxsep.running.metric import Metric, call_metric, join
from onnxsep.running.scores import as_scores, choices, find_scores, ranks

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What is asked about the models.

    Attributes:
        metric: The user's own metric instead of accuracy.
        metric_name: What messages call it.
        output: The output that holds the class scores, where the user named one.
        accuracy: The data has labels that are classes, and accuracy is wanted.
    """

    metric: Metric | None
    metric_name: str
    output: str | None
    accuracy: bool


@dataclass
class Quality:
    """What one model gave.

    Attributes:
        top1: Top-1 accuracy, where it was asked for.
        top5: Top-5 accuracy, where there are more than 5 classes.
        metric: The user's metric.
        against_reference: The comparison with the reference model.
    """

    top1: Accuracy | None = None
    top5: Accuracy | None = None
    metric: MetricValue | None = None
    against_reference: AgainstReference | None = None


@dataclass
class Found:
    """The result of the pass.

    Attributes:
        models: In the order of the sessions.
        samples: How many were run: those left over by a fixed batch size are not.
        output: The output that holds class scores, where there is one.
        classes: How many classes it has.
        notes: What the reader must know.
    """

    models: list[Quality]
    samples: int
    output: str | None
    classes: int | None
    notes: tuple[str, ...]


@dataclass
class _Tally:
    """What is kept of one model's outputs."""

    session: Session
    ranks: list[Integers] = field(default_factory=list)
    agrees: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    distances: dict[str, OutputDistance] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    unordered: int = 0  # samples with a NaN among the scores


def run_over(
    sessions: Sequence[Session],
    reference: Session | None,
    data: Dataset,
    batches: Sequence[list[int]],
    task: Task,
    progress: Progress | None = None,
) -> Found:
    """Run all models over the data, batch by batch; each sample is read once.

    Args:
        sessions: The models, the first of which the others are compared with.
        reference: The reference model; it may be one of the sessions, which is then not compared with itself.
        data: The data.
        batches: Numbers of the samples of each feed, at least one.
        task: What is measured.
        progress: Called after each batch.

    Raises:
        DataError: labels are no classes of the models, or an image cannot be read.
        EvaluationError: a model does not run, its outputs do not fit the others', or the metric fails.
        OptionError: the named output cannot be used.
    """
    tallies = [_Tally(session) for session in sessions]
    output: str | None = None
    why_none = ""
    classes: int | None = None
    for number, indices in enumerate(batches):
        announce(progress, "running the models", number, len(batches))
        feed = data.feed(indices)
        results = [session(feed) for session in sessions]
        expected = _expected(reference, sessions, results, feed)
        if number == 0:
            output, why_none = find_scores(expected or results[0], len(indices), task.output)
            if output is not None:
                scores = as_scores(results[0][output], len(indices))
                classes = None if scores is None else scores.shape[1]
            _check(task, data, batches, output, why_none, classes)
        labels = data.labels[indices] if task.accuracy and data.labels is not None else None
        for tally, values in zip(tallies, results, strict=True):
            _add(tally, values, expected, labels, len(indices), output, classes)
            if task.metric is not None:
                tally.outputs.append(values)
        if progress is not None:
            progress("running the models", number + 1, len(batches))
    notes = _notes(tallies, data, task, classes, why_none if reference is not None else "")
    used = [index for batch in batches for index in batch]
    models = [_quality(tally, tallies[0], tally.session is reference, classes) for tally in tallies]
    if task.metric is not None:
        _apply_metric(task, tallies, models, [len(batch) for batch in batches], data, used)
    return Found(models, len(used), output, classes, notes)


def _expected(
    reference: Session | None, sessions: Sequence[Session], results: Sequence[dict[str, Any]], feed: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What the reference gives, which may have been run already."""
    if reference is None:
        return None
    ran = (values for session, values in zip(sessions, results, strict=True) if session is reference)
    found = next(ran, None)
    return reference(feed) if found is None else found


def _check(
    task: Task,
    data: Dataset,
    batches: Sequence[list[int]],
    output: str | None,
    why_none: str,
    classes: int | None,
) -> None:
    """Refuse labels and outputs that do not go together; once, when the first outputs are there."""
    if not task.accuracy:
        return
    if output is None:
        raise EvaluationError(
            f"accuracy cannot be measured: {why_none}; for other models give a metric of your own ({spelled('metric')}"
            f" module:function) or compare outputs with a reference model ({spelled('reference')}, and data"
            " without labels)"
        )
    assert data.labels is not None
    assert classes is not None
    used = sorted(index for batch in batches for index in batch)
    names = None if data.names is None else [data.names[index] for index in used]
    if len(used) == len(data):
        check_labels(data.labels, classes, names)
    else:
        try:
            check_labels(data.labels[used], classes, names)
        except DataError as error:
            raise DataError(f"among the {len(used)} samples that are used, {error}") from None


def _add(
    tally: _Tally,
    values: Mapping[str, Any],
    expected: Mapping[str, Any] | None,
    labels: Integers | None,
    samples: int,
    output: str | None,
    classes: int | None,
) -> None:
    scores = None if output is None else as_scores(values[output], samples)
    if output is not None and (scores is None or scores.shape[1] != classes):
        shape = list(getattr(values[output], "shape", ()))
        raise EvaluationError(
            f"{tally.session.name}: the output {output!r} has shape {shape} for {samples} samples,"
            f" and the first model's has scores for {classes} classes"
        )
    if scores is not None:
        tally.unordered += int(np.isnan(scores).any(axis=1).sum())
        if labels is not None:
            tally.ranks.append(ranks(scores, labels))
    if expected is None:
        return
    if scores is not None and output is not None:
        wanted = as_scores(expected[output], samples)
        if wanted is None or wanted.shape != scores.shape:
            shape = list(getattr(expected[output], "shape", ()))
            raise EvaluationError(
                f"the reference model's output {output!r} has shape {shape} for {samples} samples,"
                f" and {tally.session.name} has scores for {classes} classes"
            )
        ours, theirs = choices(scores), choices(wanted)
        tally.agrees.append((ours == theirs) & (ours >= 0))
    for name, value in expected.items():
        tally.distances.setdefault(name, OutputDistance(name)).add(value, values[name], samples)


def _quality(tally: _Tally, first: _Tally, is_reference: bool, classes: int | None) -> Quality:
    found = Quality()
    if tally.ranks:
        own = np.concatenate(tally.ranks)
        other = None if tally is first else np.concatenate(first.ranks)
        found.top1 = top(1, own, other)
        found.top5 = top(5, own, other) if classes is not None and classes > 5 else None
    if tally.distances and not is_reference:
        found.against_reference = AgainstReference(
            agreement=share(np.concatenate(tally.agrees)) if tally.agrees else None,
            outputs=tuple(distance.result() for distance in tally.distances.values()),
        )
    return found


def _apply_metric(
    task: Task,
    tallies: Sequence[_Tally],
    models: Sequence[Quality],
    sizes: Sequence[int],
    data: Dataset,
    used: Sequence[int],
) -> None:
    """The user's metric of each model; a model's outputs are let go as soon as they are used."""
    assert task.metric is not None
    first: float | None = None
    for tally, found in zip(tallies, models, strict=True):
        joined = join(tally.outputs, sizes)
        tally.outputs = []
        labels = None if data.labels is None else data.labels[used]  # a copy for each: a metric may change it
        value = call_metric(task.metric, task.metric_name, tally.session.name, joined, labels)
        found.metric = MetricValue(value=value, difference=None if first is None else value - first)
        first = value if first is None else first


def _notes(
    tallies: Sequence[_Tally], data: Dataset, task: Task, classes: int | None, why_no_agreement: str
) -> tuple[str, ...]:
    notes = []
    if task.accuracy and data.classes is not None and classes is not None and len(data.classes) != classes:
        notes.append(
            f"the data names {len(data.classes)} classes and the model tells {classes} apart: a class's number is its"
            " place among the sorted names, which must be the model's numbering too"
        )
    notes += [
        f"{tally.session.name}: {tally.unordered} samples have NaN among their scores and count as wrong"
        for tally in tallies
        if tally.unordered
    ]
    if why_no_agreement:
        notes.append(f"agreement is not measured: {why_no_agreement}")
    for tally in tallies:
        notes += [
            f"{tally.session.name}: {note}"
            for found in tally.distances.values()
            for note in (*found.notes, *found.losses())
        ]
    return tuple(notes)
