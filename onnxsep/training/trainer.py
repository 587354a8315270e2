"""The loop of fine-tuning: epochs of optimiser steps, and after each the figures on what is held out.

The weights that do best on the held-out samples are kept, and those at the start are among the candidates. Everything
random is drawn anew for each epoch from the seed and the epoch's number, so a run that is resumed ends where it would
have ended.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from onnxsep.errors import ModelSaveError, TrainingError
from onnxsep.training.augment import Augment
from onnxsep.training.batches import Batch, Batches
from onnxsep.training.bridge import TorchGraph
from onnxsep.training.checkpoint import Checkpoint, CheckpointFile
from onnxsep.training.converters import import_torch
from onnxsep.training.figures import EpochFigures, Figures, Settings, Stopped, Trained, figures_from
from onnxsep.training.losses import Loss, Outcome
from onnxsep.training.schedule import share_of_rate
from onnxsep.training.teacher import Teacher

Told = Callable[[str, int, int], None]
Augmenter = Callable[[np.random.Generator], Augment]
_MOMENTUM = 0.9
_LARGEST_GRADIENT = 1.0  # norm over all weights; without it, SGD leaves the basin of a network without norms


class _DivergedError(Exception):
    """The loss is not finite."""


class Trainer:
    """A run of fine-tuning.

    Args:
        graph: The model as a torch module.
        batches: The data.
        loss: What is lowered.
        teacher: Gives the outputs that the loss compares with, where it does.
        augment: Makes what moves and mirrors images, from a source of random numbers; None leaves them.
        settings: How it goes.
        checkpoint: Where its state is kept after each epoch.
        told: Told of every step.
    """

    def __init__(
        self,
        graph: TorchGraph,
        batches: Batches,
        loss: Loss,
        teacher: Teacher | None,
        augment: Augmenter | None,
        settings: Settings,
        checkpoint: CheckpointFile | None = None,
        told: Told | None = None,
    ) -> None:
        self._torch = import_torch()
        self._graph, self._batches, self._loss, self._teacher = graph, batches, loss, teacher
        self._augment, self._settings, self._file, self._told = augment, settings, checkpoint, told
        self._weights = graph.parameters
        self._zeros = {}
        if settings.keep_zeros:
            zeros = {name: (value.detach() == 0) for name, value in self._weights.items() if value.dim() > 1}
            self._zeros = {name: where for name, where in zeros.items() if bool(where.any())}
        self._optimizer = self._make_optimizer()
        self._history: list[EpochFigures] = []
        self._notes: list[str] = []
        self._best_epoch, self._best = 0, self._values()
        self._least = math.inf  # the loss on what is held out that the best weights have

    @property
    def zeros(self) -> int:
        """Weights that stay zero."""
        return sum(int(where.sum()) for where in self._zeros.values())

    def run(self, *, resume: bool = False) -> Trained:
        """Train until the epochs are done, nothing has become better for long, the loss is not finite, or Ctrl-C.

        Raises:
            TrainingError: The loss was not finite before any epoch was done.
            KeyboardInterrupt: It came before any epoch was done, or before any was better than the start.
            OptionError: There is nothing to resume in the checkpoint's file.
        """
        stopped: Stopped = "complete"
        with self._torch.random.fork_rng(devices=[]):
            before = self._measure()
            if before is not None and not math.isfinite(before.loss):
                raise TrainingError("the loss is not finite before training; check the inputs and the teacher")
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
                if not self._best_epoch:
                    raise TrainingError(f"{error}; lower the learning rate (--rate). Nothing was written") from None
                stopped = "diverged"
                self._notes.append(f"{error}: training stopped, with the weights of epoch {self._best_epoch}")
        self._load(self._best)
        if self._settings.epochs and not self._best_epoch:
            self._notes.append("training did not lower the loss on the held-out samples: the weights stay as they were")
        names = list(self._best) if self._best_epoch else []
        return Trained(
            self._graph.arrays(names),
            before,
            tuple(self._history),
            self._best_epoch,
            stopped,
            resumed,
            tuple(self._notes),
        )

    def _epoch(self, number: int) -> None:
        started, settings = time.perf_counter(), self._settings
        random = np.random.default_rng([settings.seed, number])
        self._torch.manual_seed(int(random.integers(2**62)))
        augment = self._augment(random) if self._augment else None
        steps = self._batches.steps(random)
        losses, right, count = 0.0, 0, 0
        knows_classes = True
        with self._training():
            for index, step in enumerate(steps):
                at = (number - 1) * len(steps) + index + 1
                for group in self._optimizer.param_groups:
                    group["lr"] = settings.rate * share_of_rate(settings.schedule, at, settings.epochs * len(steps))
                self._optimizer.zero_grad(set_to_none=True)
                size, loss = sum(map(len, step)), 0.0
                for part in step:
                    batch = self._batches.read(part, augment)
                    outcome = self._outcome(batch)
                    share = outcome.loss * (batch.size / size)
                    share.backward()
                    loss += float(share.detach())
                    knows_classes = knows_classes and outcome.correct is not None
                    right += outcome.correct or 0
                if not math.isfinite(loss):
                    raise _DivergedError(f"the loss was {loss} at step {index + 1} of epoch {number}")
                self._step()
                losses, count = losses + loss * size, count + size
                if self._told is not None:
                    figures = Figures(losses / count, right / count if knows_classes else None)
                    self._told(f"epoch {number}: {figures}", at, settings.epochs * len(steps))
        training = Figures(losses / count, right / count if knows_classes else None)
        self._finish(EpochFigures(number, training, self._measure(), time.perf_counter() - started))

    def _step(self) -> None:
        """One step of the optimiser, after which pruned weights are zero still."""
        self._torch.nn.utils.clip_grad_norm_(self._weights.values(), _LARGEST_GRADIENT)
        self._optimizer.step()
        with self._torch.no_grad():
            for name, where in self._zeros.items():
                self._weights[name].masked_fill_(where, 0.0)

    def _finish(self, figures: EpochFigures) -> None:
        """Keep the weights if they are the best, and the state on the disk."""
        values = self._values()
        if not all(bool(value.isfinite().all()) for value in values.values()):
            raise _DivergedError(f"weights were not finite after epoch {figures.epoch}")
        self._history.append(figures)  # first: the best epoch is one of them whenever Ctrl-C comes
        if figures.validation is None or self._is_best(figures.validation):
            self._best_epoch, self._best = figures.epoch, values
        if self._file is None:
            return
        history = [asdict(done) for done in self._history]
        progress = {"history": history, "best_epoch": self._best_epoch, "least": self._least}
        state = Checkpoint(values, self._best, self._optimizer.state_dict(), progress)
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
        state = self._file.read() if self._file is not None else None
        if state is None:
            self._notes.append("there was no checkpoint to resume from: training began at the start")
            return None
        self._load(state.values)
        self._best = dict(state.best)
        self._optimizer.load_state_dict(state.optimizer)
        self._history = [figures_from(entry) for entry in state.progress["history"]]
        self._best_epoch, self._least = state.progress["best_epoch"], state.progress["least"]
        return len(self._history)

    # ------------------------------------------------------------ the module

    def _outcome(self, batch: Batch) -> Outcome:
        wanted = None if self._teacher is None else self._teacher(batch.feeds)
        return self._loss(self._graph.module(self._graph.tensors(batch.feeds)), wanted, batch.labels)

    def _measure(self) -> Figures | None:
        """Figures on what is held out, in evaluation mode."""
        losses, right, count = 0.0, 0, 0
        knows_classes = True
        with self._torch.no_grad():
            for batch in self._batches.validation():
                outcome = self._outcome(batch)
                losses, count = losses + float(outcome.loss) * batch.size, count + batch.size
                knows_classes = knows_classes and outcome.correct is not None
                right += outcome.correct or 0
        if not count:
            return None
        return Figures(losses / count, right / count if knows_classes else None)

    @contextmanager
    def _training(self) -> Iterator[None]:
        self._graph.module.train(self._settings.batch_norm == "train")
        try:
            yield
        finally:
            self._graph.module.eval()

    def _values(self) -> dict[str, Any]:
        """Copies of what training changes."""
        buffers = self._graph.buffers if self._settings.batch_norm == "train" else {}
        return {name: value.detach().clone() for name, value in {**self._weights, **buffers}.items()}

    def _load(self, values: Mapping[str, Any]) -> None:
        present = {**self._weights, **self._graph.buffers}
        with self._torch.no_grad():
            for name, value in values.items():
                present[name].copy_(value)

    def _make_optimizer(self) -> Any:
        """Weight decay holds for the weights of layers, not for biases and norms."""
        decay, values = self._settings.weight_decay, list(self._weights.values())
        groups = [
            {"params": [value for value in values if _is_layer_weight(value)], "weight_decay": decay},
            {"params": [value for value in values if not _is_layer_weight(value)], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self._settings.optimizer == "adam":
            return self._torch.optim.AdamW(groups, lr=self._settings.rate)
        return self._torch.optim.SGD(groups, lr=self._settings.rate, momentum=_MOMENTUM, nesterov=True)


def _is_layer_weight(value: Any) -> bool:
    """Whether it has values along several axes; a bias or a scale has them along one."""
    return sum(int(size > 1) for size in tuple(value.shape)) > 1
