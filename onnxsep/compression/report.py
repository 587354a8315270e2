"""What a pipeline did: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from onnxsep.data import PreprocessingReport
from onnxsep.evaluation import EvaluationReport
from onnxsep.reporting.commands import HOMES, record_of
from onnxsep.reporting.records import MissedLimit, ModelInfo, Record, Report, WrittenFiles


class StepReport(Record):
    """One step."""

    number: int
    command: str
    given: str
    """The options that the recipe gives, in one line."""
    options: dict[str, Any]
    """All of them, defaults too."""
    sha256: str
    """Of the result, as :func:`onnxsep.model.content.model_hash` says."""
    seconds: float
    resumed: bool
    """Whether an earlier run had finished it."""
    report: SerializeAsAny[Report]
    """That of the step's command."""

    @field_validator("report", mode="before")
    @classmethod
    def _of_its_command(cls, value: Any) -> Any:
        command = value.get("command") if isinstance(value, dict) else None
        return record_of(command).model_validate(value) if command in HOMES else value


class WayReport(Record):
    """A way that a search has tried."""

    name: str
    steps: tuple[str, ...]
    """Each with its options, in a line."""
    reached: bool
    """Whether its result reaches all goals."""
    missed: tuple[MissedLimit, ...] = ()
    """Goals that it misses."""
    why: str = ""
    """Why it gave no result."""
    seconds: float


class CompressReport(WrittenFiles, Report):
    """One run of a pipeline."""

    command: Literal["compress"] = "compress"
    source: ModelInfo
    options: dict[str, Any] = Field(default_factory=dict)
    """What was asked for: the model, the recipe, and every option."""
    recipe: str
    description: str = ""
    steps: tuple[StepReport, ...]
    resumed_after: int = 0
    """Steps that an earlier run had finished."""
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged: for all steps, on the original."""
    measured_on: Literal["test", "unseen", "data", "random"]
    """What the models were measured on: test data, samples of the data that no step has seen, those of the steps, or
    random inputs."""
    warnings: tuple[str, ...] = ()
    """What got worse in a step, and what is better."""
    evaluation: EvaluationReport
    """The original and the result of each step, side by side in one run."""
    ways: tuple[WayReport, ...] = ()
    """What was tried, where the steps were searched for; the last is the one of this run where it reaches all goals."""
    notes: tuple[str, ...] = ()
    seconds: float

    def to_records(self) -> list[dict[str, Any]]:
        """The original and the result of each step, as data: a dict for each, all with the same keys."""
        return self.evaluation.to_records()
