"""The loop of all training: epochs of optimiser steps, and after each the figures on what is held out.

Fine-tuning counts epochs, which are passes over the data, and tuning steps (``Settings.steps``); all else is the same.
The weights that do best on the held-out samples are kept, and those at the start are among the candidates. Everything
random is drawn anew for each epoch from the seed and the epoch's number, so a run that is resumed ends where it would
have ended.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np

from onnxsep.errors import ModelSaveError, TrainingError
from onnxsep.training.augment import Augment, Augmenter
from onnxsep.training.batches import Batch, Batches, Share, Step
from onnxsep.training.checkpoint import Checkpoint, CheckpointFile
from onnxsep.training.converters import import_torch
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss
from onnxsep.training.measuring import HeldOut, Tally
from onnxsep.training.optimizers import Steps
from onnxsep.training.parallel import told
from onnxsep.training.run_records import EpochFigures, Figures, Settings, Stopped, Trained, figures_from
from onnxsep.training.teacher import Outputs, TeacherCall

Told = Callable[[str, int, int], None]


class _DivergedError(Exception):
    """The loss is not finite."""


class Trainer:
    """A run of training.

    Args:
        learner: The model as a torch module.
        batches: The data.
        loss: What is lowered.
        teacher: Gives the outputs that the loss compares with, where it does.
        augment: Makes what moves and mirrors images, from a source of random numbers; None leaves them.
        settings: How it goes.
        checkpoint: Where its state is kept after each epoch.
        told: Told of every step.
        reference: The teacher for what is held out, where ``teacher`` computes with less precision.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Batches,
        loss: Loss,
        teacher: TeacherCall | None,
        augment: Augmenter | None,
        settings: Settings,
        checkpoint: CheckpointFile | None = None,
        told: Told | None = None,
        reference: TeacherCall | None = None,
    ) -> None:
        self._torch = import_torch()
        self._learner, self._batches, self._loss, self._teacher = learner, batches, loss, teacher
        self._augment, self._settings, self._file, self._told = augment, settings, checkpoint, told
        self._steps = Steps(self._torch, learner.parameters.values(), settings)
        self._group = learner.group
        self._held_out = HeldOut(batches, loss, teacher if reference is None else reference, self._group)
        self._history: list[EpochFigures] = []
        self._notes: list[str] = []
        self._best_epoch, self._best = 0, learner.kept()
        self._done = 0  # steps
        self._least = math.inf  # the loss on what is held out that the best weights have

    def run(self, *, resume: bool = False) -> Trained:
        """Train until the epochs are done, nothing has become better for long, the loss is not finite, or Ctrl-C.

        Raises:
            TrainingError: The loss is not finite before the first step.
            KeyboardInterrupt: It came before any epoch was done, or before any was better than the start.
            OptionError: There is nothing to resume in the checkpoint's file.
        """
        stopped: Stopped = "complete"
        problem = ""
        devices = [self._group.device] if self._group.device.type == "cuda" else []
        with self._torch.random.fork_rng(devices=devices):
            before = self._held_out.figures(self._learner) if self._batches.held_out else None
            if before is not None and not math.isfinite(before.loss):
                raise told(TrainingError("the loss is not finite before training; check the inputs and the teacher"))
            if before is not None:
                self._least = before.loss
            resumed = self._resume() if resume else None
            try:
                while len(self._history) < self._settings.epochs:
                    if self._is_enough():
                        stopped = "early"
                        break
                    self._epoch(len(self._history) + 1)
            except KeyboardInterrupt:
                if not self._best_epoch:
                    raise
                stopped = "interrupted"
            except _DivergedError as error:
                stopped, problem = "diverged", str(error)
                best = self._settings.end_of(self._best_epoch)
                self._notes.append(f"{error}: training stopped, with the weights of {best}")
        self._learner.finish(self._best)
        if self._settings.epochs and not self._best_epoch and not problem:
            self._notes.append("training did not lower the loss on the held-out samples: the weights stay as they were")
        names = list(self._best) if self._best_epoch else []
        return Trained(
            self._learner.graph.arrays(names),
            before,
            tuple(self._history),
            self._done,
            self._best_epoch,
            stopped,
            resumed,
            problem,
            tuple(self._notes),
        )

    def _epoch(self, number: int) -> None:
        started, settings = time.perf_counter(), self._settings
        random = np.random.default_rng([settings.seed, number])
        self._torch.manual_seed(int(random.integers(2**62)) + self._group.rank)
        augment = self._augment(random) if self._augment else None
        steps = self._batches.steps(random, settings.steps_in(number))
        if settings.steps is None:
            first, total, doing = (number - 1) * len(steps) + 1, settings.epochs * len(steps), f"epoch {number}"
        else:
            first, total, doing = settings.steps_until(number - 1) + 1, settings.steps, "tuning"
        tally = Tally()
        with self._learner.training():
            for at, step in enumerate(steps, start=first):
                self._steps.begin(at, total)
                done = self._step(step, augment)
                loss = done.figures().loss
                if not math.isfinite(loss):
                    where = f"{at - first + 1} of epoch {number}" if settings.steps is None else f"{at}"
                    raise _DivergedError(f"the loss was {loss} at step {where}")
                tally = tally.join([done])
                self._steps.end()
                self._done += 1
                self._learner.clear_zeros()
                if self._told is not None and self._group.leads:
                    self._told(f"{doing}: {tally.figures()}", at, total)
        validation = self._held_out.figures(self._learner) if self._batches.held_out else None
        self._finish(EpochFigures(number, tally.figures(), validation, time.perf_counter() - started))

    def _step(self, step: Step, augment: Augment | None) -> Tally:
        """The gradients of a step, and how the model did in all processes."""
        given = self._group.alike(lambda: list(self._given(step, augment)))
        tally = Tally()
        with self._group.stepping():
            for index, (share, batch, wanted) in enumerate(given, start=1):
                with nullcontext() if index == len(given) else self._learner.alone():
                    outcome = self._loss(self._learner.outputs(batch.feeds), wanted, batch.labels)
                    # Gradients are averaged over the processes, and the loss is a sum over them.
                    (outcome.loss * (share.weight * self._group.count)).backward()
                if share.weight:
                    tally.add(float(outcome.loss.detach()), outcome.correct, batch.size)
        first, *others = self._group.together(lambda: tally)
        return first.join(others)

    def _given(self, step: Step, augment: Augment | None) -> Iterator[tuple[Share, Batch, Outputs | None]]:
        """This process's share of a step: feeds, labels and the teacher's outputs."""
        drawn = augment.draw(sum(map(len, step))) if augment else None
        for share in self._batches.shares(step, self._group.rank, self._group.count):
            change = None
            if augment is not None and drawn is not None:
                change = functools.partial(augment, drawn=drawn[share.start : share.start + len(share.samples)])
            batch = self._batches.read(share.samples, change)
            yield share, batch, None if self._teacher is None else self._teacher(batch.feeds)

    def _finish(self, figures: EpochFigures) -> None:
        """Keep the weights if they are the best, and the state on the disk."""
        values = self._learner.values()
        if not all(bool(value.isfinite().all()) for value in values.values()):
            raise _DivergedError(f"weights were not finite after {self._settings.end_of(figures.epoch)}")
        self._history.append(figures)  # first: the best epoch is one of them whenever Ctrl-C comes
        if figures.validation is None or self._is_best(figures.validation):
            self._best_epoch, self._best = figures.epoch, self._learner.kept()
        if self._file is None or not self._group.leads:
            return
        history = [asdict(done) for done in self._history]
        progress = {"history": history, "best_epoch": self._best_epoch, "least": self._least}
        state = Checkpoint(values, self._best, self._steps.optimizer.state_dict(), progress)
        try:
            self._file.write(state)
        except ModelSaveError as error:  # the training itself is not lost by that
            self._notes.append(f"the checkpoint of epoch {figures.epoch} is missing: {error}")

    def _is_best(self, found: Figures) -> bool:
        if not found.loss < self._least:  # also where it is NaN
            return False
        self._least = found.loss
        return True

    def _is_enough(self) -> bool:
        patience = self._settings.patience
        return bool(patience) and len(self._history) - self._best_epoch >= patience

    def _resume(self) -> int | None:
        file = self._file
        state = self._group.from_first(lambda: file.read() if file else None)
        if state is None:
            self._notes.append("there was no checkpoint to resume from: training began at the start")
            return None
        self._learner.load(state.values)
        self._best = dict(state.best)
        self._steps.optimizer.load_state_dict(state.optimizer)
        self._history = [figures_from(entry) for entry in state.progress["history"]]
        self._best_epoch, self._least = state.progress["best_epoch"], state.progress["least"]
        return len(self._history)
