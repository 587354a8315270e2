"""The options of a run of fine-tuning, checked before anything is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from onnxsep.errors import OptionError
from onnxsep.training.augment import Augmentation
from onnxsep.training.devices import check_device
from onnxsep.training.losses import TeacherTerm
from onnxsep.training.run_records import BatchNorm, Optimizer, Precision
from onnxsep.training.schedule import Schedule

CHOICES: dict[str, tuple[str, ...]] = {
    "loss": get_args(TeacherTerm),
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "batch_norm": get_args(BatchNorm),
    "precision": get_args(Precision),
    "augment": get_args(Augmentation),
}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "label_weight": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "temperature": (lambda x: 0 < x < math.inf, "above 0"),
    "epochs": (lambda x: x >= 1, "1 or more"),
    "batch": (lambda x: x >= 1, "1 or more"),
    "rate": (lambda x: 0 < x < math.inf, "above 0"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "validation": (lambda x: 0 <= x < 1, "0 or more and below 1"),
    "patience": (lambda x: x >= 0, "0 or more"),
    "samples": (lambda x: x >= 1, "1 or more"),
    "seed": (lambda x: x >= 0, "0 or more"),
}
TEMPERATURE = 4.0
_RATES = {"adam": 1e-3, "sgd": 0.05}


@dataclass(frozen=True)
class Options:
    """What the user asked for; the meaning of each is that of ``onnxsep.finetune``.

    Raises:
        OptionError: A value is no choice, or out of its range; the message names the option.
    """

    loss: TeacherTerm
    label_weight: float | None
    temperature: float
    output: str | None
    epochs: int
    batch: int
    optimizer: Optimizer
    rate: float | None
    schedule: Schedule
    weight_decay: float
    batch_norm: BatchNorm | None
    precision: Precision
    augment: Augmentation
    validation: float
    patience: int
    keep_zeros: bool | None
    samples: int | None
    seed: int
    device: str
    largest_rate: float = field(init=False)
    """The rate, or the optimiser's own."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise OptionError(f"{_option(name)} {value!r} is not one of {', '.join(choices)}")
        for name, (fits, words) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise OptionError(f"{_option(name)} must be {words}, not {value}")
        if self.patience and not self.validation:
            raise OptionError("--patience needs samples that are held out; leave out --validation 0")
        if self.temperature != TEMPERATURE and self.loss != "soft":
            raise OptionError("--temperature is for --loss soft; add it, or leave out --temperature")
        check_device(self.device)
        object.__setattr__(self, "largest_rate", _RATES[self.optimizer] if self.rate is None else self.rate)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
