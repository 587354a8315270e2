"""What ``quantize`` did: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from onnxsep.checking.layer_report import LayersReport
from onnxsep.data import PreprocessingReport
from onnxsep.evaluation.report import Latency
from onnxsep.reporting.records import MissedLimit, ModelInfo, PartReport, Record, Report, WrittenFiles


class QuantizedNode(Record):
    """What became of one node of the model, after BatchNormalization and constants were folded."""

    name: str
    op_type: str
    status: Literal["quantized", "folded", "left"]
    """folded: an activation that only limits a range, and became the range of the output before it."""
    reason: str = ""
    """Why it was left in float."""


class OutputError(Record):
    """How far one output is from the source's, over all samples that it was measured on."""

    name: str
    relative: float
    """||source - result|| / ||source||, Euclidean norms; that of the worst part, where there are parts."""
    max_abs: float
    agreement: float | None = None
    """Share of the samples whose largest value is at the same place; None where the output is not [samples, n]."""
    parts: tuple[PartReport, ...] = ()
    """Where parts of the output have unlike ranges."""
    lost: tuple[str, ...] = ()
    """What has lost its variation, in words."""


class BiasCorrection(Record):
    """What was done about the shifted means of the quantised layers' outputs."""

    corrected: int
    """Layers whose bias was changed; those that feed them, or are added to them, are corrected with them."""
    added: tuple[str, ...]
    """Those of them that had no bias, and got one."""
    left: tuple[str, ...]
    """Layers that cannot be corrected: their bias is no constant of their own."""


class IntegerTensor(Record):
    """An input or output that holds integers: real = scale * (integer - zero_point)."""

    kind: Literal["input", "output"]
    name: str
    type: str
    scale: float
    zero_point: int


class AccuracyDrop(Record):
    """What ``--max-drop`` measured: top-1 accuracy, in percent of the samples, and the layers that it left."""

    limit: float
    samples: int
    source: float
    all_quantized: float
    result: float
    spared: tuple[str, ...]
    """Layers that stay in float, the most harmful first."""
    sensitivities: dict[str, float]
    """Relative error of the outputs with only that layer quantised; empty where no layer had to be spared."""

    @property
    def drop(self) -> float:
        """Points that the result loses."""
        return self.source - self.result


class Speed(Record):
    """Times of source and result, on one sample (or the batch that the model insists on), measured in passing."""

    batch: int
    source: Latency
    result: Latency
    """Its ``against_first`` is its time as a share of the source's."""


class QuantizeReport(WrittenFiles, Report):
    """One run of ``onnxsep quantize``."""

    row_field = "nodes"
    command: Literal["quantize"] = "quantize"
    source: ModelInfo
    bytes_before: int
    bytes_after: int
    options: dict[str, Any]
    """What was asked for: the model, and every option; defaults that depend on others are resolved."""
    data: str
    preprocessing: PreprocessingReport | None = None
    """Of images, where it was looked for or judged."""
    calibration_samples: int
    measured_samples: int
    held_out: bool
    """Whether the samples that errors were measured on are others than those of the calibration."""
    nodes: tuple[QuantizedNode, ...]
    outputs: tuple[OutputError, ...]
    bias_correction: BiasCorrection | None = None
    """None where it was not wanted, nothing was quantised, or it did not lower the error (see the notes)."""
    integers: tuple[IntegerTensor, ...] = ()
    """With ``--int8-io``."""
    accuracy: AccuracyDrop | None = None
    """None without ``--max-drop``."""
    speed: Speed | None = None
    """None where nothing was compared, or nothing was quantised."""
    missed: tuple[MissedLimit, ...] = ()
    """The limits that it missed; nothing was written then."""
    warnings: tuple[str, ...] = ()
    """What got worse, and the option that is better."""
    notes: tuple[str, ...] = ()
    layers: LayersReport | None = None
    """The tensors of source and result, where they were asked for."""
    seconds: float

    @property
    def relative(self) -> float:
        """The largest relative error of all outputs."""
        return max((output.relative for output in self.outputs), default=0.0)
