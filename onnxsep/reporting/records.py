"""The records that reports of several commands share."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from onnxsep._version import __version__
from onnxsep.algebra.output_parts import Part, show_indices
from onnxsep.reporting.document import Document
from onnxsep.reporting.frames import flat, frame
from onnxsep.reporting.printable import shortened


class Record(BaseModel):
    """What all records of reports are: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(Record):
    """What a command found or did: what ``--json`` and ``--report`` write, and ``onnxsep report`` reads again.

    ``onnxsep.reporting.commands`` lists the subclasses. A change after which saved reports can no longer be read raises
    the default of ``schema_version`` in its class, and adds a step to ``onnxsep.reporting.upgrades``.

    In Python, ``repr`` says what matters in a line or two, ``print`` shows the command's table, and a notebook shows it
    as HTML.
    """

    row_field: ClassVar[str] = ""
    """The field whose records are the rows of :meth:`to_frame`."""

    onnxsep: str = __version__
    command: str
    schema_version: int = Field(default=2, validation_alias="schema")
    """``schema`` in JSON; pydantic has a method of that name."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary()}>"

    def __str__(self) -> str:
        from onnxsep.reporting.text import plain_text

        return plain_text(self._document()).rstrip("\n")

    def __rich_repr__(self) -> Iterator[Any]:  # else rich prints all fields
        yield self.summary()

    def _repr_html_(self) -> str:
        from onnxsep.reporting.html import html

        return html(self._document())

    def _document(self) -> Document:
        from onnxsep.reporting.commands import document_of

        return document_of(self)

    def summary(self) -> str:
        """What matters, in a line or two."""
        from onnxsep.reporting.commands import summary_of

        return shortened(summary_of(self))

    def to_records(self) -> list[dict[str, Any]]:
        """The rows of the command's table, as data: a dict for each, all with the same keys."""
        return flat(self.model_dump()[self.row_field])

    def to_frame(self) -> Any:
        """The same as a ``pandas.DataFrame``.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return frame(self.to_records())

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


class MeasuredOn(Record):
    """What a result was measured on."""

    kind: Literal["unseen", "seen", "data", "inputs", "random"]
    """Samples of the data that no fit has seen; samples that one has; samples, where nothing is fitted; the user's
    inputs; random values."""
    source: str = ""
    """The data."""
    samples: int | None = None
    """How many; None where the inputs do not tell."""


class EffectReport(Record):
    """How far the network's output is from the original's, with one layer or several replaced."""

    kind: Literal["kl", "relative", "metric"]
    """Mean KL divergence of a classifier's distributions, in nats, relative error of the worst output, or what the
    user's metric falls by."""
    value: float | None
    """None where the output is NaN or infinite."""
    samples: int
    """On how many held-out samples."""

    def __str__(self) -> str:
        value = math.inf if self.value is None else self.value
        words = {"kl": "KL {:.3g}", "relative": "relative error {:.3g}", "metric": "{:.3g} of the metric"}
        return words[self.kind].format(value)


class Paired(Record):
    """The difference of two shares on the same samples."""

    difference: float
    """This model's share less the first model's."""
    standard_error: float
    """Of the difference, from the outcomes of each sample: they are paired, so it is less than for two data sets."""
    won: int
    """Samples that this model has right and the first one wrong."""
    lost: int
    """Samples that this model has wrong and the first one right."""


class MissedLimit(Record):
    """A limit that a result has missed; nothing was written then."""

    limit: str
    """The option."""
    allowed: float
    measured: float
    model: str = ""
    """Which one, where several were measured."""
    nearest: float | None = None
    """The value of the option with which the same command would write its result; None where none is written."""


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
    measured_on: MeasuredOn | None = None
    """None where nothing was run, and in reports of older versions."""
    outputs: tuple[OutputReport, ...] = ()
    notes: tuple[str, ...] = ()


class ActivationMemory(Record):
    """The most bytes of live tensors while a model runs (``onnxsep.graph.activation_memory`` says what is counted)."""

    best_order: int | None
    """With the nodes in the best order that is known; None where the size of a tensor is not known."""
    file_order: int | None
    """With the nodes in the order of the file."""
    optimal: bool
    """Whether it is proved that no order needs less than the best one."""
    unknown: int = 0
    """Tensors whose sizes are not known."""


class ModelInfo(Record):
    """The model as its header and its files describe it."""

    path: str | None
    producer: str
    ir_version: int
    opsets: dict[str, int]
    size_bytes: int
    """The .onnx file and its external data."""
    sha256: str | None = None
    """As :func:`onnxsep.model.content.model_hash` says; None above 1 GB, and for a model in memory."""
