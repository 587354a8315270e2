"""The ways in which a search makes a model smaller, from the quickest to prepare upwards."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxsep.compression.goals import Goals
from onnxsep.compression.sizing import COUNTED, Form, begin
from onnxsep.compression.step import Step
from onnxsep.compression.steps import FineTune, Plan, Prune, Quantize, Rewrite
from onnxsep.options.specs import as_json
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.targets import Target
from onnxsep.reporting.records import MissedLimit
from onnxsep.training.choices import Precision

_ROOM = 0.99  # of a budget: what training changes in an int8 file is some bytes
_EPOCHS = (2, 10, 24)  # one after another, of so many samples; of fewer more, by the root
_SAMPLES = 50_000
_ROUNDS = 1  # of a plan: training makes up for more than another one brings
_MOST_DROP = 99.0
_MORE = 8  # times as many epochs at most
_LARGE = 10_000  # samples, of which steps of more are enough
_BATCHES = (64, 128)
_HELD_OUT = 1000  # samples, for choosing the best weights: more than say something about these are lost for training
_SHARES = (0.02, 0.1)  # of the samples that are held out


FORMS: Mapping[Form, str] = {"spatial": "mode spatial, as large a rank", "channels": "as many channels"}
"""Forms for all layers, and what the goals allow of each, in words."""


@dataclass(frozen=True)
class Way:
    """Steps that may reach the goals.

    Attributes:
        name: What it is called in reports.
        steps: What is done.
        mends: The kind of goal that it is for, where it is of use only if the way before it misses nothing else:
            "max_drop", or a kind of budget.
        form: What its first step makes of the layers: a plan, or one form for all of them, which is then as large as
            the goals allow (``sizing``): the first step only stands for it until :meth:`beginning_with`.
    """

    name: str
    steps: tuple[Step, ...]
    mends: str = ""
    form: Form | None = None

    def helps(self, missed: Sequence[MissedLimit]) -> bool:
        """Whether it may reach what the way before it misses."""
        return not self.mends or {one.limit.partition("=")[0] for one in missed} == {self.mends}

    @property
    def key(self) -> str:
        """A short name that other steps do not have."""
        steps = json.dumps(
            [[step.name, {name: as_json(value) for name, value in step.options.items()}] for step in self.steps]
        )
        return hashlib.sha256(steps.encode()).hexdigest()[:6]

    @property
    def trainings(self) -> int:
        """How many of its steps train."""
        return sum(step.trains() for step in self.steps)

    @property
    def stage(self) -> int:
        """Ways of a stage are tried in the order of their time: those without a form, with at most one training, ..."""
        return max(self.trainings, 1) if self.form else 0

    @property
    def lines(self) -> tuple[str, ...]:
        """Its steps, each with its options."""
        if self.form is not None and self.form in FORMS:
            what, rest = FORMS[self.form], self.steps[1:]
            return (f"{self.steps[0].name}: {what} as the goals allow", *(step.line for step in rest))
        return tuple(step.line for step in self.steps)

    def beginning_with(self, share: float) -> "Way":
        """The same with a form for all layers of which it is known how large it is."""
        assert self.form is not None
        return replace(self, steps=(begin(self.form, share), *self.steps[1:]))

    def with_plan(self, plan: PlanFile) -> "Way":
        """The same with a plan that is known."""
        steps = [step for step in self.steps if not step.plans]
        known = [
            Rewrite(**{**step.options, "plan": plan}) if isinstance(step, Rewrite) and step.takes_plan() else step
            for step in steps
        ]
        return replace(self, steps=tuple(known))


def ways(goals: Goals, samples: int, *, labels: bool, precision: Precision = "float32") -> Iterator[Way]:
    """The ways, in the order in which they are tried.

    Args:
        goals: What is to be reached.
        samples: How many there are to fit to, calibrate and train with.
        labels: Whether these have labels, so that layers which hurt can be kept in float.
        precision: That training is quickest in.
    """
    int8 = Quantize(activations="uint8")
    yield Way("int8", (int8,))
    if labels and goals.max_drop:
        careful = Quantize(activations="uint8", max_drop=min(goals.max_drop, _MOST_DROP))
        yield Way("int8, what hurts in float", (careful,), mends="max_drop")
    names: dict[str, Any] = {}
    if any(target.kind == "size" for target in goals.targets):
        names = {"names": "short"}
        int8 = Quantize(activations="uint8", names="short")
        yield Way("int8, short names", (int8,), mends="size")
    formed: dict[Form, tuple[Step, ...]] = {}
    if all(target.kind in COUNTED for target in goals.targets):
        formed = {form: (begin(form, 0.5),) for form in FORMS}
    plan = Plan(target=tuple(map(_with_room, goals.targets)), then="int8", activations="uint8", rounds=_ROUNDS, **names)
    formed["plan"] = (plan, Rewrite(plan="planned", refine=2))
    yield Way("plan, int8", (*formed["plan"], int8), form="plan")
    for epochs in _EPOCHS:
        for form in formed:
            formed[form] = (*formed[form], _training(epochs, samples, precision))
            total = sum(step.options["epochs"] for step in formed[form] if isinstance(step, FineTune))
            yield Way(f"{form}, {total} epochs of training, int8", (*formed[form], int8), form=form)


def _training(epochs: int, samples: int, precision: Precision) -> FineTune:
    """So many passes over a large set of data, or as many more as a smaller one needs."""
    more = min(_MORE, max(1.0, math.sqrt(_SAMPLES / max(samples, 1))))
    least, most = _SHARES
    return FineTune(
        epochs=round(epochs * more),
        batch=_BATCHES[samples >= _LARGE],
        optimizer="adam",
        rate=0.003,
        schedule="one-cycle",
        batch_norm="insert",
        validation=round(min(most, max(least, _HELD_OUT / max(samples, 1))), 3),
        **({} if precision == "float32" else {"precision": precision}),
    )


def _with_room(target: Target) -> str:
    """A budget for the plan, as text; of bytes a little less than is allowed."""
    if target.kind != "size":
        return target.text
    value = target.value * _ROOM
    return f"size={value:.6f}" if target.share else f"size={int(value)}"


def about_seconds(way: Way, run_seconds: float, samples: int, layers: int) -> float:
    """About how long the steps of a way take.

    Args:
        way: Its steps.
        run_seconds: What the original takes for a sample.
        samples: How many there are.
        layers: Convs, Gemm and MatMul that a plan chooses forms for.
    """
    return sum(_about(step, run_seconds, samples, layers) for step in way.steps)


def _about(step: Step, run_seconds: float, samples: int, layers: int) -> float:
    options = step.resolved()
    used: int = min(samples, options.get("samples") or samples)
    if isinstance(step, Plan):
        rounds: float = 1 + options["rounds"] / 3
        return rounds * layers * (_CANDIDATES * (_FIT + used / 5 * run_seconds / 2) + used * run_seconds)
    if isinstance(step, Prune):
        return 2 * layers * _FIT
    if isinstance(step, Rewrite):
        return 3 * layers * (_FIT + 2 * used * run_seconds)
    if isinstance(step, FineTune):
        return float(options["epochs"] * used * _TRAINING[options["precision"]] * run_seconds)
    return 5 + 20 * used * run_seconds


_CANDIDATES = 35  # forms of a layer that a plan tries
_FIT = 0.35  # seconds of one fit
_TRAINING = {"float32": 4, "bfloat16": 2.5}  # times a run in ONNX Runtime: teacher, forward and backward in torch


def rounded(seconds: float) -> str:
    """A rough duration in words."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"about {_roughly(seconds / size)} {unit}"
    return f"about {_roughly(max(seconds, 1))} s"


def _roughly(value: float) -> str:
    steps: Sequence[int] = (1, 2, 3, 5, 8, 10, 15, 20, 30, 45, 60)
    return f"{min(steps, key=lambda one: abs(one - value)):d}" if value <= 60 else f"{value:.0f}"
