"""What an evaluation found: the data behind its table, and what ``--json`` prints."""

from typing import Any, Literal

from pydantic import Field

from onnxsep.data import PreprocessingReport
from onnxsep.reporting.records import ActivationMemory, MissedLimit, Paired, PartReport, Record, Report


class Share(Record):
    """How many of the samples have a property, such as being classified rightly."""

    count: int
    total: int
    value: float
    """count / total."""
    standard_error: float
    """sqrt(value (1 - value) / total): of a share among independent samples."""


class Accuracy(Record):
    """Samples whose class is among the k highest scores (top-k)."""

    share: Share
    against_first: Paired | None = None
    """None for the first model."""


class MetricValue(Record):
    """What the user's own metric gave; higher is better."""

    value: float
    difference: float | None = None
    """Less the first model's; None for the first model."""


class OutputError(Record):
    """How far one output is from the reference model's."""

    name: str
    relative: float | None
    """||a - b|| / ||a|| over all samples, a the reference's; that of the worst part, where there are parts; None where
    shapes differ from sample to sample."""
    parts: tuple[PartReport, ...] = ()
    """Where parts of the output have unlike ranges."""


class AgainstReference(Record):
    """How a model compares with the reference model, without labels."""

    agreement: Share | None = None
    """Samples for which both have the highest score at the same class; None where no output holds class scores."""
    outputs: tuple[OutputError, ...]


class LatencyRatio(Record):
    """How long a model takes as a share of the first one's time: the median over rounds in which both had a turn."""

    value: float
    standard_error: float | None = None
    """None where there was one round."""


class Latency(Record):
    """Times of warm runs, in milliseconds for one run of a whole batch."""

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    runs: int
    standard_error_ms: float | None = None
    """Of the median; None where it is not known."""
    against_first: LatencyRatio | None = None
    """None for the first model, and in reports of older versions."""


class Memory(Record):
    """Peak memory of a fresh process that loads the model and runs it once."""

    peak_bytes: int | None = None
    """Of the whole process; None where it could not be measured."""
    before_bytes: int | None = None
    """The peak before the model was loaded: Python, libraries and the inputs."""
    reason: str = ""
    """Why it could not be measured."""


class Ratios(Record):
    """Figures as shares of the first model's; None where either is not known or the first one's is 0."""

    file_bytes: float | None
    parameters: float | None
    nonzero_parameters: float | None
    macs: float | None
    latency: float | None
    peak_memory: float | None
    activations: float | None = None
    """Of the best order."""


class EvaluatedModel(Record):
    """One model."""

    name: str
    path: str | None
    file_bytes: int
    """The .onnx file and its external data."""
    sha256: str | None = None
    """As :func:`onnxsep.model.content.model_hash` says; None above 1 GB, and for a model in memory."""
    parameters: int
    """Every weight element that the file holds (``onnxsep.graph.parameters``, convention ``stored``)."""
    nonzero_parameters: int
    macs: int
    """Conv, ConvTranspose, Gemm and MatMul, for one sample of the data, or for the batch that the model insists on."""
    macs_unknown: int
    """Nodes whose sizes are not known, so that they are not in ``macs``."""
    activations: ActivationMemory | None = None
    """Peak activation memory, for one sample or for the batch that the model insists on; None in reports of older
    versions."""
    top1: Accuracy | None = None
    top5: Accuracy | None = None
    """Where there are more than 5 classes."""
    metric: MetricValue | None = None
    against_reference: AgainstReference | None = None
    latency: Latency | None = None
    memory: Memory | None = None
    ratios: Ratios | None = None
    """None for the first model."""


class EvaluationReport(Report):
    """One run of ``onnxsep evaluate``."""

    row_field = "models"
    command: Literal["evaluate"] = "evaluate"
    options: dict[str, Any] = Field(default_factory=dict)
    """What was asked for: the models, and every option."""
    data: str
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged."""
    samples: int
    """How many were used."""
    classes: int | None = None
    output: str | None = None
    """The output that holds the class scores."""
    metric: str | None = None
    reference: str | None = None
    """The reference model."""
    models: tuple[EvaluatedModel, ...]
    latency_batch: int
    """Samples in each of the timed runs."""
    threads: int
    """0: the runtime's own choice."""
    cores: int
    """Processors that this process may use."""
    provider: str
    missed: tuple[MissedLimit, ...] = ()
    """The limits that models missed."""
    notes: tuple[str, ...] = ()
    seconds: float
