"""What a model loses against the original, measured on samples: for targets such as ``drop=1``.

error  the relative error of the worst output and of its worst part
kl     a classifier's mean divergence, in nats
drop   points of top-1 accuracy, paired: from the samples that one of the two has right and the other wrong; with the
user's metric, what that falls by
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxsep.data import Dataset, check_labels
from onnxsep.errors import CalibrationError, OptionError, spelled
from onnxsep.model.io import Model
from onnxsep.planner.output_distance import Original
from onnxsep.planner.own_metric import OwnMetric, batches_of
from onnxsep.planner.report import MeasuredLoss
from onnxsep.planner.targets import LossTarget
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions
from onnxsep.running.scores import Scores, as_scores, find_scores, paired, ranks

_KEPT = 2**30  # bytes of outputs
_FEWEST = 20  # samples
_ROUNDING = 1e-9  # 92 % less 91 % is 1 point, and in floats a little more
Outputs = Mapping[str, Any]


def meets(target: LossTarget, loss: MeasuredLoss) -> bool:
    """Whether what was measured is at most what may be lost."""
    return loss.value is not None and loss.value <= target.most * (1 + _ROUNDING) + _ROUNDING


@dataclass(frozen=True)
class Asked:
    """What losses are measured of.

    Attributes:
        model: The original.
        data: The data, with labels where accuracy counts.
        targets: What is measured.
        runtime: How models are run.
        metric: The user's metric.
        output: The output with the class scores, where the user named it.
    """

    model: Model
    data: Dataset
    targets: tuple[LossTarget, ...]
    runtime: RuntimeOptions
    metric: OwnMetric | None = None
    output: str | None = None


class LossMeter:
    """What models lose on some samples.

    Args:
        asked: What is measured.
        indices: Numbers of the samples. Where outputs are large only the first are used.

    Raises:
        CalibrationError: The original cannot be run on them.
        DataError: Labels are no classes of the model.
        OptionError: What is asked for is for classifiers, and the model is none.
        EvaluationError: The metric fails.
    """

    def __init__(self, asked: Asked, indices: Sequence[int]) -> None:
        self._asked = asked
        self._copied = bool(held_types(asked.model))
        self._batches = batches_of(asked.data, indices)
        self._reference = self._run(asked.model, self._fewer)
        self._batches = self._batches[: len(self._reference)]
        self._counts = [len(batch) for batch in self._batches]
        kinds = {one.kind for one in asked.targets}
        score = None
        if asked.metric is not None and "drop" in kinds:
            score = asked.metric.on(asked.data, self._batches)
        self._original = Original(self._reference, self._counts, score)
        if "kl" in kinds and not self._original.is_classifier:
            why = self._original.no_classes or "some scores are NaN or infinite"
            raise OptionError(f"{spelled('target')} kl= is for classifiers: {why}; error= is for every network")
        self._right = self._correct(self._reference) if "drop" in kinds and score is None else None

    def of(self, result: Model) -> tuple[MeasuredLoss, ...]:
        """What a model loses, for each target.

        Raises:
            CalibrationError: It cannot be run.
        """
        outputs = self._run(result)
        return tuple(self._loss(target, outputs) for target in self._asked.targets)

    def _loss(self, target: LossTarget, outputs: Sequence[Outputs]) -> MeasuredLoss:
        samples, error = sum(self._counts), None
        if target.kind == "error":
            value = self._original.relative(outputs)
        elif target.kind == "kl":
            value = self._original.divergence(outputs)
        elif self._right is None:
            value = self._original.fall(outputs)
        else:
            found = paired(self._correct(outputs), self._right)
            value, error = -100 * found.difference + 0.0, 100 * found.standard_error
        known = value if np.isfinite(value) else None
        return MeasuredLoss(kind=target.kind, value=known, standard_error=error, samples=samples)

    def _run(self, model: Model, enough: Any = None) -> list[Outputs]:
        found: list[Outputs] = []
        try:
            run = Runner(float32_copy(model) if self._copied else model, self._asked.runtime)
            for batch in self._batches:
                feed = self._asked.data.feed(batch)
                found.append(run({name: as_float32(one) for name, one in feed.items()} if self._copied else feed))
                if enough is not None and enough(found):
                    break
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run the model on the data: {error}") from error
        return found

    def _fewer(self, found: Sequence[Outputs]) -> bool:
        """Whether no more samples are needed, as outputs are large."""
        held = sum(getattr(value, "nbytes", 0) for one in found for value in one.values())
        return held > _KEPT and sum(len(batch) for batch in self._batches[: len(found)]) >= _FEWEST

    def _correct(self, outputs: Sequence[Outputs]) -> np.ndarray:
        """Which samples are classified rightly."""
        name, why = find_scores(self._reference[0], self._counts[0], self._asked.output)
        if name is None:
            raise OptionError(
                f"{spelled('target')} drop= is about accuracy: {why}; for other models give a metric of your own"
                f" ({spelled('metric')} module:function)"
            )
        right = []
        for found, batch in zip(outputs, self._batches, strict=True):
            scores = as_scores(found[name], len(batch))
            if scores is None:
                right.append(np.zeros(len(batch), bool))
                continue
            right.append(ranks(scores, self._labels(batch, scores)) < 1)
        return np.concatenate(right)

    def _labels(self, batch: Sequence[int], scores: Scores) -> np.ndarray:
        data = self._asked.data
        assert data.labels is not None
        labels = data.labels[list(batch)]
        names = None if data.names is None else [data.names[index] for index in batch]
        check_labels(labels, scores.shape[1], names)
        return labels
