"""Label-free tuning: a rewritten model learns to give what the original gives, on the calibration inputs.

What it does
    Adam over the named weights only, BatchNormalization frozen. The teacher runs in ONNX Runtime on the same, randomly
    cropped and flipped inputs. A share of the inputs is held out: the weights that do best on it are returned, and
    those at the start are among the candidates, so tuning never makes the held-out loss worse.

Why
    A rewrite fits each layer alone. A few hundred steps on a few hundred images let the layers correct one another.
"""

import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import FeedError, OptionError
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training.augment import Augment, image_layout
from onnxsep.training.bridge import TorchGraph, to_torch
from onnxsep.training.conversion_checks import (
    arrays_of,
    check_conversion,
    check_gradients,
    check_outputs,
    torch_threads,
)
from onnxsep.training.converters import import_torch
from onnxsep.training.objective import Objective
from onnxsep.training.samples import Samples
from onnxsep.training.schedule import one_cycle
from onnxsep.training.teacher import Teacher

TuneProgress = Callable[[int, int, float], None]
"""Called with the number of steps done, of all steps, and the loss on the last batch."""

_EVALUATIONS = 15
_MOST_EVALUATED = 256  # samples of the training part on which the loss before and after is measured
_SMALLEST_SCALE = 0.1  # share of the median scale: a tensor of zeros moves too
_LARGEST_RATE = 1e30  # above, Adam's own arithmetic overflows


@dataclass(frozen=True)
class TuneResult:
    """What tuning found.

    Attributes:
        arrays: The tuned weights by name, in the model's layout and types, for ``write_back``.
        loss_before: The loss on the inputs that were trained on, as they are (at most 256 of them), at the start.
        loss_after: The same with ``arrays``.
        held_out_before: The loss on the inputs that were held out, at the start.
        held_out_after: The same with ``arrays``; never larger than ``held_out_before``.
        steps: Steps that were done.
        best_step: The step whose weights ``arrays`` are; 0 where tuning did not help.
        seconds: Time that it took.
        note: Why it stopped early or changed nothing; "" otherwise.
    """

    arrays: dict[str, NDArray[Any]]
    loss_before: float
    loss_after: float
    held_out_before: float
    held_out_after: float
    steps: int
    best_step: int
    seconds: float
    note: str = ""


def tune(
    student: Model,
    teacher: Model,
    batches: Sequence[Mapping[str, NDArray[Any]]],
    names: Collection[str] | None = None,
    *,
    steps: int,
    seed: int = 0,
    learning_rate: float = 0.02,
    batch_size: int = 64,
    augment: bool = True,
    held_out: float = 0.1,
    runtime: RuntimeOptions | None = None,
    progress: TuneProgress | None = None,
) -> TuneResult:
    """Tune weights of the student until it gives what the teacher gives.

    The same seed gives the same result, on the same machine with the same number of threads.

    Args:
        student: The model to tune; it is not changed.
        teacher: A model with the same inputs and outputs.
        batches: Feeds by input name; the first axis of every array is the batch, as the models want it.
        names: Names of the weights to tune (initialisers or outputs of Constant nodes); None tunes all of them.
        steps: Number of optimiser steps.
        seed: Of the held-out share, the order of the samples, crops and flips.
        learning_rate: Largest step of Adam, relative to the root mean square of each tensor's values: networks, and
            the two factors of one weight, differ in scale. It rises over a tenth of the steps and falls along a cosine
            to zero.
        batch_size: Samples in a step.
        augment: Crop and flip where the only input is an image (4 axes, 1, 3 or 4 channels, first or last).
        held_out: Share of the samples that is not trained on.
        runtime: How the teacher is run; its threads are torch's threads too.
        progress: Told of every step.

    Raises:
        MissingDependencyError: torch is not installed.
        UnsupportedModelError: The student has an operator that torch cannot train.
        FeedError: The batches do not fit the models, or there are fewer than two samples.
        OptionError: A name or a number cannot be used.
    """
    started = time.perf_counter()
    _check_options(steps, learning_rate, batch_size, held_out)
    options = runtime or RuntimeOptions()
    with torch_threads(options.threads):
        tuner = _Tuner(student, teacher, batches, names, options, seed, batch_size, augment, held_out)
        return tuner.run(steps, learning_rate, progress, started)


def _check_options(steps: int, learning_rate: float, batch_size: int, held_out: float) -> None:
    if steps < 0 or batch_size < 1:
        raise OptionError(f"tuning needs 0 or more steps of 1 or more samples, not {steps} of {batch_size}")
    if not (0 < learning_rate <= _LARGEST_RATE and 0 < held_out < 1):
        raise OptionError(
            f"tuning needs a learning rate above 0 (and up to {_LARGEST_RATE:g}) and a held-out share between 0 and 1,"
            f" not {learning_rate} and {held_out}"
        )


class _Tuner:
    def __init__(
        self,
        student: Model,
        teacher: Model,
        batches: Sequence[Mapping[str, NDArray[Any]]],
        names: Collection[str] | None,
        options: RuntimeOptions,
        seed: int,
        batch_size: int,
        augment: bool,
        held_out: float,
    ) -> None:
        self._torch = import_torch()
        self._graph = to_torch(student)
        self._tuned = _chosen(self._graph, names)
        self._teacher = Teacher(teacher, options)
        self._samples = Samples(batches, self._teacher, functools.partial(arrays_of, self._graph))
        self._random = np.random.default_rng(seed)
        order = self._random.permutation(len(self._samples))
        count = min(max(1, round(held_out * len(order))), len(order) - 1)
        self._held_out, self._training = order[:count], order[count:]
        self._per_step = max(1, batch_size // self._samples.unit)
        first = self._samples.feeds(order[:1])[0]
        reference = [self._teacher(feeds) for feeds in self._samples.feeds(self._held_out)]
        self._objective = Objective(self._torch, reference)
        ours = arrays_of(self._graph, first)
        check_outputs(self._objective.outputs, ours, self._teacher(first))
        check_conversion(Teacher(student, options), first, ours)
        check_gradients(self._graph, first, self._objective.outputs)
        layout = image_layout(first) if augment else None
        self._augment = Augment(*layout, self._random) if layout else None

    def run(self, steps: int, learning_rate: float, progress: TuneProgress | None, started: float) -> TuneResult:
        evaluated = self._training[: max(1, _MOST_EVALUATED // self._samples.unit)]
        loss_before, held_before = self._loss(evaluated), self._loss(self._held_out)
        if not math.isfinite(held_before):
            raise FeedError("the outputs of the two models differ by NaN or infinity before tuning; check the inputs")
        best_loss, best_step, best = held_before, 0, self._copy()
        scales = _scales(best)
        groups = [{"params": [parameter], "scale": scales[name]} for name, parameter in self._tuned.items()]
        optimizer = self._torch.optim.Adam(groups, lr=learning_rate)
        done, note = 0, ""
        for step, chosen in zip(range(1, steps + 1), self._endless(), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["scale"] * one_cycle(step, steps)
            loss = self._step(optimizer, chosen)
            if not math.isfinite(loss):
                note = f"the loss was {loss} at step {step}: stopped with the weights of step {best_step}"
                break
            done = step
            if progress is not None:
                progress(step, steps, loss)
            if step == steps or step % max(1, steps // _EVALUATIONS) == 0:
                held = self._loss(self._held_out)
                if held < best_loss:
                    best_loss, best_step, best = held, step, self._copy()
        if not note and steps and not best_step:
            note = "tuning did not lower the loss on the held-out inputs: the weights stay as they were"
        with self._torch.no_grad():
            for name, parameter in self._tuned.items():
                parameter.copy_(best[name])
        loss_after = self._loss(evaluated)
        seconds = time.perf_counter() - started
        arrays = self._graph.arrays(self._tuned)
        return TuneResult(arrays, loss_before, loss_after, held_before, best_loss, done, best_step, seconds, note)

    def _step(self, optimizer: Any, chosen: NDArray[np.int64]) -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        groups = self._samples.feeds(chosen)
        for feeds in groups:  # one group wherever the models take batches of any size
            if self._augment is not None:
                feeds = self._augment(feeds)
            loss = self._objective(self._graph.module(self._graph.tensors(feeds)), self._teacher(feeds))
            loss = loss / len(groups)
            loss.backward()
            total += float(loss.detach())
        if math.isfinite(total):
            optimizer.step()
        return total

    def _loss(self, chosen: NDArray[np.int64]) -> float:
        """The mean loss over samples as they are, without gradients."""
        total = 0.0
        with self._torch.no_grad():
            for start in range(0, len(chosen), self._per_step):
                part = chosen[start : start + self._per_step]
                groups = self._samples.feeds(part)
                losses = [
                    float(self._objective(self._graph.module(self._graph.tensors(feeds)), self._teacher(feeds)))
                    for feeds in groups
                ]
                total += sum(losses) / len(losses) * len(part)
        return total / len(chosen)

    def _endless(self) -> Iterator[NDArray[np.int64]]:
        """Batches in a new order for every pass over the samples; what is left over at the end of a pass is skipped."""
        size = min(self._per_step, len(self._training))
        while True:
            order = self._random.permutation(self._training)
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size]

    def _copy(self) -> dict[str, Any]:
        return {name: parameter.detach().clone() for name, parameter in self._tuned.items()}


def _chosen(graph: TorchGraph, names: Collection[str] | None) -> dict[str, Any]:
    """The parameters to tune; the others get no gradients."""
    unknown = [name for name in names or () if name not in graph.parameters]
    if unknown:
        raise OptionError(f"{unknown[0]!r} is no weight of a layer in the model's main graph, so it cannot be tuned")
    tuned = {name: value for name, value in graph.parameters.items() if names is None or name in names}
    if not tuned:
        raise OptionError("there are no weights to tune")
    for name, parameter in graph.parameters.items():
        parameter.requires_grad_(name in tuned)
    return tuned


def _scales(tensors: Mapping[str, Any]) -> dict[str, float]:
    """What a step is relative to, for each tensor: the root mean square of its values, within reason."""
    sizes = {name: float(tensor.square().mean().sqrt()) for name, tensor in tensors.items()}
    least = _SMALLEST_SCALE * float(np.median(list(sizes.values()))) or 1e-3
    return {name: max(size, least) for name, size in sizes.items()}
