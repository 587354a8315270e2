"""The steps that a pipeline is made of: each the name of a command and its options.

A step of another kind is one more class here, and its name is then known to recipes too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from onnxsep.compression.given import Given
from onnxsep.compression.options import Function
from onnxsep.compression.plan_caches import cache_of
from onnxsep.compression.step import Step
from onnxsep.data import Dataset, partition
from onnxsep.errors import OptionError
from onnxsep.finetuning import finetune
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable
from onnxsep.planner.api import plan
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.reading import plan_from_text, read_plan
from onnxsep.planner.report import PlanReport
from onnxsep.planner.targets import LossTarget, Target, losses_of, parse_targets
from onnxsep.pruning import prune
from onnxsep.quantization import quantize
from onnxsep.quantization.choosing import judging
from onnxsep.quantization.measuring import split
from onnxsep.rewriting.api import rewrite

ORIGINAL, NONE = "original", "none"  # words for a teacher; a file of this name is "./original"
PLANNED = "planned"  # a word for a plan, that of the step before
_FILES = ("plan", "latency_from", "cache")  # options of rewrite and plan that name a file or folder


@dataclass(frozen=True, repr=False)
class Planned(Savable):
    """What a step gives that plans: the model as it was; the report holds the plan."""

    model: Model
    report: PlanReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING


class Plan(Step):
    """Choose a form for each layer, by measurement, for budgets: :func:`onnxsep.plan`.

    The model stays as it is; the next step, ``rewrite`` with ``plan = "planned"``, carries the plan out.
    """

    name = "plan"
    plans = True

    @classmethod
    def function(cls) -> Function:  # noqa: D102 - the base class says it
        return cast(Function, plan)  # its result is no model, and `run` makes one of it

    @classmethod
    def _placed(cls, options: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        return _in_folder(options, folder)

    def sees(self, data: Dataset, seed: int) -> Collection[int]:
        """What candidates are fitted to, and measured on."""
        resolved = self.resolved(seed)
        return partition(data, resolved["samples"], resolved["seed"]).fitted

    def _extra(self, given: Given, original: Model, checkpoint: Path | None) -> dict[str, Any]:
        """What is measured is kept until the step is finished, so that an interrupted one goes on."""
        return {} if checkpoint is None else {"cache": cache_of(checkpoint)}

    def run(self, model: Model, given: Given, **others: Any) -> Savable:  # noqa: D102
        found: Any = super().run(model, given, **others)
        return Planned(model, found.report.model_copy(update={"plan": found.plan.text()}))


class Rewrite(Step):
    """Replace Convs by separable ones: :func:`onnxsep.rewrite`.

    Where the run has data, the factors are fitted to them, unless ``init="svd"`` asks for the weights alone.
    """

    name = "rewrite"

    @classmethod
    def function(cls) -> Function:  # noqa: D102 - the base class says it
        return rewrite

    def _set(self, options: Mapping[str, Any], where: str) -> None:
        super()._set(options, where)
        if all(not self.options.get(name) for name in ("mode", "plan", "target")):
            raise OptionError(f"{where}: the option 'mode' is missing, or 'plan' or 'target' in its place")

    @classmethod
    def _placed(cls, options: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        return _in_folder(options, folder)

    def plan(self) -> PlanFile | None:
        """The plan, where it has one of its own."""
        plan = None if self.takes_plan() else self.options.get("plan")
        return plan if plan is None or isinstance(plan, PlanFile) else read_plan(plan)

    def takes_plan(self) -> bool:
        """Where it says so."""
        plan = self.options.get("plan")
        return isinstance(plan, str) and plan == PLANNED

    def _planned(self) -> dict[str, Any]:
        return {"plan": PlanFile(())} if self.takes_plan() else {}

    def _carried_out(self, planned: str) -> dict[str, Any]:
        return {"plan": plan_from_text(planned, "the plan")} if self.takes_plan() else {}

    def _weights_alone(self) -> bool:
        measured = self.options.get("tune") or self.options.get("max_effect") is not None
        return self.options.get("init") == "svd" and not measured

    def sees(self, data: Dataset, seed: int) -> Collection[int]:
        """What its factors are fitted to, and what a plan is chosen and judged by."""
        resolved = self.resolved(seed)
        if losses_of(self._targets):
            return data.sample(None)
        return () if self._weights_alone() else partition(data, resolved["samples"], resolved["seed"]).fitted

    def needs_labels(self) -> bool:
        """For a limit on the lost accuracy."""
        return any(one.kind == "drop" for one in losses_of(self._targets)) and self.options.get("metric") is None

    @property
    def _targets(self) -> tuple[Target | LossTarget, ...]:
        given = self.options.get("target", ())
        return parse_targets([given] if isinstance(given, str) else given)


class Prune(Step):
    """Set weights to zero, or take channels out: :func:`onnxsep.prune`."""

    name = "prune"

    @classmethod
    def function(cls) -> Function:  # noqa: D102
        return prune


class FineTune(Step):
    """Train the weights: :func:`onnxsep.finetune`.

    ``teacher`` is "original" by default: the model that the run began with. "none" (or None) trains with labels alone.
    """

    name = "finetune"
    changed_defaults = MappingProxyType({"teacher": ORIGINAL})

    @classmethod
    def function(cls) -> Function:  # noqa: D102
        return finetune

    @classmethod
    def _placed(cls, options: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        teacher = options.get("teacher")
        if not isinstance(teacher, str) or teacher in (ORIGINAL, NONE):
            return options
        return {**options, "teacher": str((folder / teacher).absolute())}

    def _teacher(self) -> Any:
        """ORIGINAL, None, or a model."""
        teacher = self.options.get("teacher", ORIGINAL)
        return None if isinstance(teacher, str) and teacher == NONE else teacher

    def _is_original(self) -> bool:
        return isinstance(self._teacher(), str) and self._teacher() == ORIGINAL

    def trains(self) -> bool:
        """Always."""
        return True

    def sees(self, data: Dataset, seed: int) -> Collection[int]:
        """What it trains on, and what the best weights are chosen by."""
        resolved = self.resolved(seed)
        return data.sample(resolved["samples"], resolved["seed"])

    def _planned(self) -> dict[str, Any]:
        return {"teacher": self._teacher()}

    def needs_labels(self) -> bool:
        """Without a teacher, or where labels have a share of the loss."""
        return self._teacher() is None or bool(self.options.get("label_weight"))

    def other_models(self) -> dict[str, Any]:
        """The teacher, where it is not the original."""
        return {} if self._teacher() is None or self._is_original() else {"teacher": self._teacher()}

    def _extra(self, given: Given, original: Model, checkpoint: Path | None) -> dict[str, Any]:
        teacher = original if self._is_original() else self._teacher()
        return {
            "teacher": teacher if teacher is None else load(teacher, follow_links=given.follow_links),
            "checkpoint": checkpoint,
            "resume": checkpoint is not None and checkpoint.exists(),
        }


class Quantize(Step):
    """Quantise to int8: :func:`onnxsep.quantize`."""

    name = "quantize"
    gives_integers = True

    @classmethod
    def function(cls) -> Function:  # noqa: D102
        return quantize

    def sees(self, data: Dataset, seed: int) -> Collection[int]:
        """What it calibrates with, and what it chooses by."""
        resolved = self.resolved(seed)
        parts = split(data, resolved["samples"], resolved["seed"])
        if resolved["max_drop"] is not None:
            return [*parts.fitted, *parts.others]
        chooses = resolved["equalize"] or resolved["bias_correction"]
        return [*parts.fitted, *(judging(data, parts) if chooses else ())]

    def needs_labels(self) -> bool:
        """For a limit on the lost accuracy."""
        return self.options.get("max_drop") is not None


def _in_folder(options: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Options whose files are relative to a folder."""
    named = {name.replace("-", "_"): name for name in options}
    files = {named[name]: options[named[name]] for name in _FILES if name in named}
    placed = {name: str((folder / path).absolute()) for name, path in files.items() if isinstance(path, str)}
    if files.get("plan") == PLANNED:
        placed["plan"] = PLANNED
    return {**options, **placed}


STEPS: dict[str, type[Step]] = {kind.name: kind for kind in (Plan, Rewrite, Prune, FineTune, Quantize)}
"""The kinds of steps by the name that recipes have for them."""
