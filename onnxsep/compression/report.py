"""What a pipeline did: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from pydantic import SerializeAsAny

from onnxsep._version import __version__
from onnxsep.evaluation import EvaluationReport
from onnxsep.reporting.records import ModelInfo, Record


class StepReport(Record):
    """One step."""

    number: int
    command: str
    given: str
    """The options that the recipe gives, in one line."""
    options: dict[str, Any]
    """All of them, defaults too."""
    sha256: str
    """Of the result, as :func:`onnxsep.compression.manifest.model_hash` says."""
    seconds: float
    resumed: bool
    """Whether an earlier run had finished it."""
    report: SerializeAsAny[Record]
    """That of the step's command."""


class CompressReport(Record):
    """One run of a pipeline."""

    onnxsep: str = __version__
    source: ModelInfo
    output: str | None = None
    output_bytes: int | None = None
    recipe: str
    description: str = ""
    steps: tuple[StepReport, ...]
    resumed_after: int = 0
    """Steps that an earlier run had finished."""
    measured_on: Literal["test", "data", "random"]
    """What the models were measured on: samples that no step has seen, those of the steps, or random inputs."""
    evaluation: EvaluationReport
    """The original and the result of each step, side by side in one run."""
    notes: tuple[str, ...] = ()
    seconds: float
