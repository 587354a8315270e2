"""Times of pieces and their forms, as they were measured: what a cache and a file of latencies hold."""

from pydantic import Field

from onnxsep.reporting.records import Record


class PieceTime(Record):
    """A piece of a model as it is."""

    ms: float
    """Milliseconds of a run."""
    share: float
    """Of the time of the whole model, measured side by side."""
    error: float
    """Standard error of the share."""


class FormTime(Record):
    """A piece in another form."""

    ms: float
    ratio: float
    """Its time as a share of the piece's as it is, measured side by side."""
    error: float
    """Standard error of the ratio."""


class Machine(Record):
    """What times hold for."""

    runtime: str
    """The version of ONNX Runtime."""
    provider: str
    threads: int
    """0: the runtime's own choice."""
    processor: str
    system: str = ""

    def words(self) -> str:
        """On one line."""
        threads = "the runtime's own number of threads" if not self.threads else f"{self.threads} threads"
        return f"{self.processor}, ONNX Runtime {self.runtime}, {self.provider}, {threads}"


class Times(Record):
    """What is known of one model on one machine."""

    machine: Machine
    whole_ms: float
    """Milliseconds of a run of the whole model."""
    original_ms: float | None = None
    """The same of the model that it was made of by quantising, timed side by side; None where it is as the user gave
    it."""
    pieces: dict[str, PieceTime] = Field(default_factory=dict)
    """By key."""
    forms: dict[str, dict[str, FormTime]] = Field(default_factory=dict)
    """By the key of the piece and that of the form."""
