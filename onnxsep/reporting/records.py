"""The records that reports of several commands share."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from onnxsep._version import __version__
from onnxsep.algebra.output_parts import Part, show_indices


class Record(BaseModel):
    """What all records of reports are: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(Record):
    """What a command found or did: what ``--json`` and ``--report`` write, and ``onnxsep report`` reads again.

    ``onnxsep.reporting.commands`` lists the subclasses. A change after which saved reports can no longer be read raises
    the default of ``schema_version`` in its class, and adds a step to ``onnxsep.reporting.upgrades``.
    """

    onnxsep: str = __version__
    command: str
    schema_version: int = Field(default=1, validation_alias="schema")
    """``schema`` in JSON; pydantic has a method of that name."""

    @model_serializer(mode="wrap")
    def _named_schema(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"schema" if name == "schema_version" else name: value for name, value in handler(self).items()}


class WrittenFiles(Record):
    """What the reports of commands that write a model say of it: None before it is written."""

    output: str | None = None
    output_bytes: int | None = None
    """The size of the .onnx and of its data files."""
    output_data: tuple[str, ...] | None = None
    """Its data files, which hold large weights, as seen from the folder of the .onnx."""
    output_data_bytes: int | None = None
    """Their size."""


class PartReport(Record):
    """One part of an output whose parts have unlike ranges, such as the scores that stand behind boxes."""

    axis: int
    indices: str
    """Along the axis, in runs: "0-3, 5"."""
    low: float
    high: float
    """Range of the original's values."""
    relative: float
    """||a - b|| / ||a|| over the part; at least 1 where it has lost its variation."""
    max_abs: float
    lost: bool = False
    """Whether the original varies and the result does not."""


def part_reports(parts: Iterable[Part]) -> tuple[PartReport, ...]:
    """The records of parts."""
    return tuple(
        PartReport(
            axis=part.axis,
            indices=show_indices(part.indices),
            low=part.low,
            high=part.high,
            relative=part.relative,
            max_abs=part.max_abs,
            lost=part.lost,
        )
        for part in parts
    )


def part_text(part: PartReport) -> str:
    """One line for a table: where the part is, its range, its error."""
    lost = ", has lost its variation" if part.lost else ""
    where = f"axis {part.axis}, indices {part.indices} ({part.low:.4g} to {part.high:.4g})"
    return f"{where}: max {part.max_abs:.3g}, relative {part.relative:.3g}{lost}"


class OutputReport(Record):
    """The difference of one output between the original and the result."""

    name: str
    max_abs: float
    mean_abs: float
    relative: float
    """That of the worst part, where there are parts."""
    parts: tuple[PartReport, ...] = ()
    """Where parts of the output have unlike ranges."""


class VerificationReport(Record):
    """How the result was compared with the original, or why it was not."""

    kind: Literal["full", "local", "none"]
    ran: bool
    reason: str = ""
    """Why it did not run."""
    max_abs: float | None = None
    mean_abs: float | None = None
    relative: float | None = None
    """||a - b|| / ||a||, the worst of the outputs (full) or of the replaced pieces (local)."""
    outputs: tuple[OutputReport, ...] = ()
    notes: tuple[str, ...] = ()


class ModelInfo(Record):
    """The model as its header and its files describe it."""

    path: str | None
    producer: str
    ir_version: int
    opsets: dict[str, int]
    size_bytes: int
    """The .onnx file and its external data."""
