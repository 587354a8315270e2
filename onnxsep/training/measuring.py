"""How a model in training does on the samples that are held out."""

from collections.abc import Iterable

from onnxsep.training.batches import Batches, Feeds
from onnxsep.training.converters import import_torch
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss
from onnxsep.training.parallel import Group
from onnxsep.training.run_records import Figures
from onnxsep.training.teacher import Outputs, TeacherCall

_MOST_KEPT = 16 * 2**20  # bytes of the teacher's outputs, which never change: class scores, but not many images


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
    """The samples that are held out; one feed of them is in memory at a time.

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
            for index, part in enumerate(self._batches.validation(self._group.rank, self._group.count)):
                tally.add(*self._measured(learner, index, part))
        return tally

    def _measured(self, learner: Learner, index: int, part: list[int]) -> tuple[float, int | None, int]:
        """The loss, right classes and size of a feed."""
        batch = self._batches.read(part)
        outcome = self._loss(learner.outputs(batch.feeds), self._wanted(index, batch.feeds), batch.labels)
        return float(outcome.loss), outcome.correct, batch.size

    def _wanted(self, index: int, feeds: Feeds) -> Outputs | None:
        """What the teacher gives for a feed."""
        if self._teacher is None:
            return None
        if index < len(self._outputs):
            return self._outputs[index]
        outputs = self._teacher(feeds)
        if index == len(self._outputs):
            self._bytes += sum(values.nbytes for values in outputs.values())
            if self._bytes <= _MOST_KEPT:
                self._outputs.append(outputs)
        return outputs
