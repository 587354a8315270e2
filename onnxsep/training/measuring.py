"""How a model in training does on the samples that are held out."""

from collections.abc import Iterable, Iterator
from typing import Any

from onnxsep.training.batches import Batch, Batches
from onnxsep.training.converters import import_torch
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss
from onnxsep.training.parallel import Group
from onnxsep.training.run_records import Figures
from onnxsep.training.teacher import Outputs, TeacherCall

_MOST_KEPT = 256 * 2**20  # bytes of the teacher's outputs, which never change


class Tally:
    """Losses and right classes of some batches, added up."""

    def __init__(self) -> None:
        self._loss, self._right, self._count = 0.0, 0, 0
        self._knows_classes = True

    def join(self, others: Iterable["Tally"]) -> "Tally":
        """This one and others together."""
        whole = Tally()
        for one in (self, *others):
            whole._loss, whole._right = whole._loss + one._loss, whole._right + one._right
            whole._count, whole._knows_classes = whole._count + one._count, whole._knows_classes and one._knows_classes
        return whole

    def add(self, loss: float, correct: int | None, count: int) -> None:
        """Count ``count`` samples with this mean loss."""
        self._loss, self._count = self._loss + loss * count, self._count + count
        self._knows_classes = self._knows_classes and correct is not None
        self._right += correct or 0

    def figures(self) -> Figures:
        """The means over what was counted."""
        return Figures(self._loss / self._count, self._right / self._count if self._knows_classes else None)


class HeldOut:
    """The samples that are held out.

    Args:
        batches: The data.
        loss: What is lowered.
        teacher: The teacher as it is, in float32, where there is one.
        group: The processes that share the samples.
    """

    def __init__(self, batches: Batches, loss: Loss, teacher: TeacherCall | None, group: Group) -> None:
        self._batches, self._loss, self._teacher, self._group = batches, loss, teacher, group
        self._outputs: list[Outputs] = []
        self._bytes = 0

    def figures(self, learner: Learner) -> Figures:
        """Figures in evaluation mode, in float32."""
        first, *others = self._group.together(lambda: self._tally(learner))
        return first.join(others).figures()

    def _tally(self, learner: Learner) -> Tally:
        """Of this process's share."""
        tally = Tally()
        with import_torch().no_grad():
            for batch, wanted in self._wanted():
                outcome = self._loss(learner.outputs(batch.feeds), wanted, batch.labels)
                tally.add(float(outcome.loss), outcome.correct, batch.size)
        return tally

    def _wanted(self) -> Iterator[tuple[Batch, Any]]:
        """The batches and what the teacher gives for them."""
        for index, batch in enumerate(self._batches.validation(self._group.rank, self._group.count)):
            if self._teacher is None:
                yield batch, None
            elif index < len(self._outputs):
                yield batch, self._outputs[index]
            else:
                outputs = self._teacher(batch.feeds)
                self._bytes += sum(values.nbytes for values in outputs.values())
                if self._bytes <= _MOST_KEPT:
                    self._outputs.append(outputs)
                yield batch, outputs
