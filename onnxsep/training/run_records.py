"""What a run of fine-tuning is told and what it tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from onnxsep.training.choices import Optimizer
from onnxsep.training.schedule import Schedule

Stopped = Literal["complete", "early", "interrupted", "diverged"]


@dataclass(frozen=True)
class Settings:
    """How a run goes; the meaning of what is not listed here is that of ``onnxsep.finetune``.

    Attributes:
        steps: Steps of the whole run, shared out evenly among the epochs; None: an epoch is a pass over the data.
        relative: Rates are relative to the root mean square of each tensor's values.
    """

    epochs: int
    optimizer: Optimizer
    rate: float
    schedule: Schedule
    weight_decay: float
    patience: int
    seed: int
    steps: int | None = None
    relative: bool = False

    def steps_until(self, epoch: int) -> int:
        """Steps that are done at the end of an epoch, in a run that is given in steps; 0 at the start."""
        return (self.steps or 0) * epoch // max(1, self.epochs)

    def steps_in(self, epoch: int) -> int | None:
        """Steps of an epoch; None: as many as a pass takes."""
        return None if self.steps is None else self.steps_until(epoch) - self.steps_until(epoch - 1)

    def end_of(self, epoch: int) -> str:
        """Which weights those at the end of an epoch are, in words."""
        return f"epoch {epoch}" if self.steps is None else f"step {self.steps_until(epoch)}"


@dataclass(frozen=True)
class Figures:
    """How a model does on some samples: the mean loss, and the share of right classes where there are any."""

    loss: float
    accuracy: float | None

    def __str__(self) -> str:
        right = "" if self.accuracy is None else f", accuracy {self.accuracy:.1%}"
        return f"loss {self.loss:.4g}{right}"


@dataclass(frozen=True)
class EpochFigures:
    """One epoch.

    Attributes:
        epoch: Its number, from 1. In a run that is given in steps, an epoch is one of the equal parts of the run after
            which the model is measured.
        training: Over its steps, as they were done: weights on their way, moved and mirrored images.
        validation: On what is held out, at its end; None where nothing is.
        seconds: Time that it took.
    """

    epoch: int
    training: Figures
    validation: Figures | None
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The end of a run.

    Attributes:
        arrays: The best weights, and running statistics where they were trained, for ``write_back``; none where those
            at the start are the best.
        before: Figures on what is held out, at the start.
        history: The epochs, with those before the run was resumed.
        steps: Steps that were done since the run began or was resumed.
        best_epoch: The one whose weights ``arrays`` are; 0 for those at the start.
        stopped: Why it ended.
        resumed_after: The epoch after which it was resumed; None where it was not.
        problem: What was not finite, and where; "" unless it ended by that.
        notes: What else should be known.
    """

    arrays: dict[str, NDArray[Any]]
    before: Figures | None
    history: tuple[EpochFigures, ...]
    steps: int
    best_epoch: int
    stopped: Stopped
    resumed_after: int | None
    problem: str
    notes: tuple[str, ...]


def figures_from(entry: Mapping[str, Any]) -> EpochFigures:
    """One epoch from a checkpoint."""
    validation = None if entry["validation"] is None else Figures(**entry["validation"])
    return EpochFigures(entry["epoch"], Figures(**entry["training"]), validation, entry["seconds"])
