"""What a run of fine-tuning is told and what it tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from onnxsep.training.schedule import Schedule

Optimizer = Literal["sgd", "adam"]
BatchNorm = Literal["train", "frozen", "insert"]
Precision = Literal["float32", "bfloat16"]
Stopped = Literal["complete", "early", "interrupted", "diverged"]


@dataclass(frozen=True)
class Settings:
    """How a run goes; the meaning of each is that of ``onnxsep.finetune``."""

    epochs: int
    optimizer: Optimizer
    rate: float
    schedule: Schedule
    weight_decay: float
    patience: int
    seed: int


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
        epoch: Its number, from 1.
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
        arrays: The best weights, and running statistics where they were trained, for ``write_back``.
        before: Figures on what is held out, at the start.
        history: The epochs, with those before the run was resumed.
        best_epoch: The one whose weights ``arrays`` are; 0 for those at the start.
        stopped: Why it ended.
        resumed_after: The epoch after which it was resumed; None where it was not.
        notes: What else should be known.
    """

    arrays: dict[str, NDArray[Any]]
    before: Figures | None
    history: tuple[EpochFigures, ...]
    best_epoch: int
    stopped: Stopped
    resumed_after: int | None
    notes: tuple[str, ...]


def figures_from(entry: Mapping[str, Any]) -> EpochFigures:
    """One epoch from a checkpoint."""
    validation = None if entry["validation"] is None else Figures(**entry["validation"])
    return EpochFigures(entry["epoch"], Figures(**entry["training"]), validation, entry["seconds"])
