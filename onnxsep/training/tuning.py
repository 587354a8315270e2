"""Label-free tuning: a rewritten model learns to give what the original gives, on the calibration inputs.

What it does
    The loop of ``onnxsep.training.trainer`` over the named weights only: Adam with rates relative to each tensor's
    values, BatchNormalization frozen, the squared error of every output relative to its variance. The teacher runs in
    ONNX Runtime on the same, randomly cropped and flipped inputs. A share of the inputs is held out: the weights that
    do best on it are returned, and those at the start are among the candidates, so tuning never makes the held-out
    loss worse. The rate is the one of three that does best in a sixth of the steps: a step of .02 of each factor suits
    depthwise (ResNet-20, one term: 71.5 -> 75.4 % of other images right in 120 steps), but terms of cp that nearly
    cancel each other bear a tenth of it (.132 of the parameters: nothing gained at .02, 83.2 -> 84.5 % at .0015).

Why
    A rewrite fits each layer alone. A few hundred steps on a few hundred images let the layers correct one another.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from onnxsep.data import Dataset
from onnxsep.errors import OptionError
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training.augment import augmenter
from onnxsep.training.batches import Batches
from onnxsep.training.conversion_checks import torch_threads
from onnxsep.training.converters import import_torch
from onnxsep.training.learner import Learner
from onnxsep.training.losses import LossSettings
from onnxsep.training.preparing import lesson, torch_copy
from onnxsep.training.run_records import Settings, Trained
from onnxsep.training.trainer import Told, Trainer

_LOSS = LossSettings("outputs", 0.0, 1.0, None)
_HELD_OUT = 0.1  # share of the samples
_MEASUREMENTS = 15
_LARGEST_RATE = 1e30  # above, Adam's own arithmetic overflows
_RATES = (0.00125, 0.005, 0.02)
_TRIAL = 6  # one of so many steps
_LEAST_TRIAL = 20  # steps; a shorter one says nothing, and the largest rate is taken


@dataclass(frozen=True)
class TuneResult:
    """What tuning found.

    Attributes:
        arrays: The tuned weights by name, in the model's layout and types, for ``write_back``; none where tuning did
            not help.
        held_out_before: The loss on the inputs that were held out, at the start.
        held_out_after: The same with ``arrays``; never larger than ``held_out_before``.
        steps: Steps that were done.
        best_step: The step whose weights ``arrays`` are; 0 where tuning did not help.
        rate: The learning rate.
        seconds: Time that it took.
        notes: Why it stopped early or changed nothing.
    """

    arrays: dict[str, NDArray[Any]]
    held_out_before: float
    held_out_after: float
    steps: int
    best_step: int
    rate: float
    seconds: float
    notes: tuple[str, ...] = ()


def tune(
    student: Model,
    teacher: Model,
    data: Dataset,
    names: Collection[str] | None = None,
    *,
    chosen: Sequence[int] | None = None,
    steps: int,
    seed: int = 0,
    learning_rate: float | None = None,
    batch_size: int = 64,
    augment: bool = True,
    runtime: RuntimeOptions | None = None,
    progress: Told | None = None,
) -> TuneResult:
    """Tune weights of the student until it gives what the teacher gives.

    The same seed gives the same result, on the same machine with the same number of threads.

    Args:
        student: The model to tune; it is not changed.
        teacher: A model with the same inputs and outputs.
        data: The inputs; no more than those of a step are in memory at a time.
        names: Names of the weights to tune (initialisers or outputs of Constant nodes); None tunes all of them.
        chosen: Numbers of the samples to use; None: all.
        steps: Number of optimiser steps.
        seed: Of the held-out share, the order of the samples, crops and flips.
        learning_rate: Largest step of Adam, relative to the root mean square of each tensor's values. It rises over a
            tenth of the steps and falls along a cosine to zero. None: one of three, found by trial; where there are
            few steps the largest, 0.02.
        batch_size: Samples in a step.
        augment: Crop and flip where the only input is an image (4 axes, 1, 3 or 4 channels, first or last).
        runtime: How the teacher is run; its threads are torch's threads too.
        progress: Told of every step: (words, done, all).

    Raises:
        MissingDependencyError: torch is not installed.
        UnsupportedModelError: The student has an operator that torch cannot train.
        FeedError: The data do not fit the models.
        DataError: There are too few samples, or one cannot be read.
        OptionError: A name or a number cannot be used.
        TrainingError: The outputs of the student are not finite at the start.
    """
    started = time.perf_counter()
    if steps < 0 or batch_size < 1:
        raise OptionError(f"tuning needs 0 or more steps of 1 or more samples, not {steps} of {batch_size}")
    if learning_rate is not None and not 0 < learning_rate <= _LARGEST_RATE:
        raise OptionError(f"tuning needs a learning rate above 0 (and up to {_LARGEST_RATE:g}), not {learning_rate}")
    options = runtime or RuntimeOptions()
    samples = range(len(data)) if chosen is None else chosen

    def run(rate: float, count: int, told: Told | None) -> Trained:
        batches = Batches(data, samples, batch_size, _HELD_OUT, seed)
        copy = torch_copy(student, batches, torch.device("cpu"), options, names)
        learnt = lesson(copy, batches, _LOSS, teacher, options)
        moves, _ = augmenter("auto" if augment else "none", batches.first().feeds, has_teacher=True)
        learner = Learner(copy.graph, batch_norm="frozen")
        return Trainer(
            learner, batches, learnt.loss, learnt.teacher, moves, _settings(rate, count, seed), told=told
        ).run()

    torch = import_torch()
    with torch_threads(options.threads):
        rate = _found_rate(run, steps // _TRIAL, progress) if learning_rate is None else learning_rate
        trained = run(rate, steps, progress)
    before, after = _losses(trained)
    return TuneResult(
        trained.arrays,
        before,
        after,
        trained.steps,
        _settings(rate, steps, seed).steps_until(trained.best_epoch),
        rate,
        time.perf_counter() - started,
        trained.notes,
    )


def _settings(rate: float, steps: int, seed: int) -> Settings:
    return Settings(
        epochs=min(_MEASUREMENTS, steps),
        optimizer="adam",
        rate=rate,
        schedule="one-cycle",
        weight_decay=0.0,
        patience=0,
        seed=seed,
        steps=steps,
        relative=True,
    )


def _found_rate(run: Callable[[float, int, Told | None], Trained], steps: int, progress: Told | None) -> float:
    """The rate with which so many steps lower the held-out loss most."""
    if steps < _LEAST_TRIAL:
        return _RATES[-1]

    def loss(rate: float) -> float:
        announced = None if progress is None else partial(_told_of_trial, progress, rate)
        return _losses(run(rate, steps, announced))[1]

    return min(_RATES, key=loss)


def _told_of_trial(progress: Told, rate: float, words: str, done: int, total: int) -> None:
    progress(f"a learning rate of {rate:g}, {words}", done, total)


def _losses(trained: Trained) -> tuple[float, float]:
    """On the inputs that are held out, before and after.

    Raises:
        KeyboardInterrupt: It was interrupted: half a tuning is no result of a rewrite.
    """
    if trained.stopped == "interrupted":
        raise KeyboardInterrupt
    assert trained.before is not None
    if not trained.best_epoch:
        return trained.before.loss, trained.before.loss
    found = trained.history[trained.best_epoch - 1].validation
    assert found is not None
    return trained.before.loss, found.loss
