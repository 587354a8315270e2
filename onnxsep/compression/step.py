"""What all steps of a pipeline are."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, get_type_hints

from onnxsep.compression.given import Given
from onnxsep.compression.options import Function, checked, defaults
from onnxsep.data import Dataset
from onnxsep.model.io import Model
from onnxsep.model.saving import Savable
from onnxsep.options.progress import Progress
from onnxsep.options.specs import Options, as_json, default_of, specs_of
from onnxsep.options.taking import made, parameters_of
from onnxsep.planner.plan_file import PlanFile
from onnxsep.reporting.records import Report

_Own = TypeVar("_Own", bound="Step")


class Step(ABC):
    """One step of a pipeline: a command and its options, which are those of the function of that name.

    Attributes:
        name: The command.
        options: The options that were given, by the function's names; the others have the function's defaults.
        takes_integers: Whether it can work on a model with integer weights.
        gives_integers: Whether its result has such weights.
        plans: Whether it leaves the model as it is, and plans what the next step does with it.
    """

    name: ClassVar[str]
    changed_defaults: ClassVar[Mapping[str, Any]] = {}
    takes_integers: ClassVar[bool] = False
    gives_integers: ClassVar[bool] = False
    plans: ClassVar[bool] = False
    options: Mapping[str, Any]
    __signature__: ClassVar[inspect.Signature]  # what help() and editors show

    def __init__(self, **options: Any) -> None:
        self._set(options, type(self).__name__)

    def __init_subclass__(cls) -> None:
        parameters = {one.name: one for one in parameters_of(cls.kind())}
        shown = [parameters[name].replace(default=value) for name, value in cls.defaults().items()]
        cls.__signature__ = inspect.Signature(shown)

    @classmethod
    @abstractmethod
    def function(cls) -> Function:
        """What does the step."""

    @classmethod
    def kind(cls) -> type[Options]:
        """The record of the command's options."""
        found: type[Options] = getattr(cls.function(), "options")  # noqa: B009 - `takes` has set it
        return found

    @classmethod
    def parse(cls: type[_Own], options: Mapping[str, Any], where: str, folder: Path | None = None) -> _Own:
        """A step from what is written in a recipe.

        Args:
            options: By name; "-" and "_" are the same.
            where: The file and the number of the step, for messages.
            folder: Paths are relative to it; None: to the working folder.

        Raises:
            OptionError: An option is not known, or its value has the wrong type.
        """
        step = cls.__new__(cls)
        step._set(options if folder is None else cls._placed(options, folder), where)
        return step

    def _set(self, options: Mapping[str, Any], where: str) -> None:
        found = checked(self.kind(), options, where)
        object.__setattr__(self, "options", MappingProxyType(found))

    @classmethod
    def _placed(cls, options: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """The options, with paths among them starting from a folder."""
        return options

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All options and their defaults; ``inspect.Parameter.empty`` for those that must be given."""
        return {**defaults(cls.kind()), **cls.changed_defaults}

    @classmethod
    def report_type(cls) -> type[Report]:
        """The class of the report that the step's function gives."""
        result = get_type_hints(cls.function())["return"]
        found: type[Report] = get_type_hints(result)["report"]
        return found

    def resolved(self, seed: int = 0) -> dict[str, Any]:
        """Every option with its value; ``seed`` is the run's, for steps that name none."""
        found = {**self.defaults(), **self.options}
        if "seed" in found and "seed" not in self.options:
            found["seed"] = seed
        return found

    def needs_data(self) -> bool:
        """Whether it cannot be done without data."""
        kind = self.kind()
        return "data" in specs_of(kind) and default_of(kind, "data") is inspect.Parameter.empty

    def sees(self, data: Dataset, seed: int) -> Collection[int]:
        """The samples of the data that it fits something to; ``seed`` is the run's, for a step that names none."""
        return ()

    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return False

    def trains(self) -> bool:
        """Whether it uses the device that trains."""
        return False

    def check(self, given: Given, seed: int = 0) -> None:
        """Check the options, and that what the step needs is installed; nothing is read.

        Raises:
            OptionError: They are out of range or contradict each other.
            ModeNotFoundError: There is no such mode.
            MissingDependencyError: A package is missing.
        """
        made(self.kind(), {**self.resolved(seed), **self._shared(given), **self._planned()})

    def run(
        self,
        model: Model,
        given: Given,
        *,
        original: Model,
        seed: int,
        checkpoint: Path | None,
        progress: Progress | None,
        planned: str = "",
    ) -> Savable:
        """Do it.

        Args:
            model: What the step before gave.
            given: What the run gives to all steps.
            original: The model that the run began with.
            seed: For a step that names none.
            checkpoint: Where a step that can go on later may keep its state.
            progress: Told of the progress within the step.
            planned: The text of the plan that the step before it has made, if it has.
        """
        extra = {**self._extra(given, original, checkpoint), **self._carried_out(planned)}
        options = {**self.resolved(seed), **self._shared(given), **extra}
        return self.function()(model, **{**options, "progress": progress})

    def _shared(self, given: Given) -> dict[str, Any]:
        """What the function takes of what the run gives."""
        takes = specs_of(self.kind())
        return {one.name: getattr(given, one.name) for one in fields(given) if one.name in takes}

    def _planned(self) -> dict[str, Any]:
        """What stands for options whose values only the run has."""
        return {}

    def _extra(self, given: Given, original: Model, checkpoint: Path | None) -> dict[str, Any]:
        """Arguments that depend on the run."""
        return {}

    def takes_plan(self) -> bool:
        """Whether it carries out what the step before it plans."""
        return False

    def _carried_out(self, planned: str) -> dict[str, Any]:
        """Arguments that depend on the plan of the step before."""
        return {}

    def other_models(self) -> dict[str, Any]:
        """Models that the step reads beside the one that it changes, by the name of the option."""
        return {}

    def plan(self) -> PlanFile | None:
        """The plan that it carries out.

        Raises:
            OptionError: It cannot be read.
        """
        return None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a step is not changed; make another {type(self).__name__}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Step) and dict(other.options) == dict(self.options)

    def __hash__(self) -> int:
        return hash((self.name, str(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"

    @property
    def line(self) -> str:
        """The command, and the options that were given."""
        return f"{self.name}: {self}" if self.options else self.name

    def __str__(self) -> str:
        """The options that were given, in one line."""
        shown = {key.replace("_", "-"): as_json(value) for key, value in self.options.items()}
        return ", ".join(f"{key} {_word(value)}" for key, value in shown.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ",".join(f"{key}={_word(one)}" for key, one in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
