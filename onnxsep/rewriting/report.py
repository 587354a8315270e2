"""What a command found and did: the data behind the tables, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from pydantic import Field

from onnxsep.calibration.report import CalibrationReport
from onnxsep.checking.layer_report import LayersReport
from onnxsep.planner.report import PlanReport
from onnxsep.reporting.records import (
    ActivationMemory,
    EffectReport,
    MissedLimit,
    ModelInfo,
    Record,
    Report,
    VerificationReport,
    WrittenFiles,
)


class Spectrum(Record):
    """What ranks keep of a weight."""

    ranks: tuple[int, ...]
    """Values of the mode's last rank, with those before it as they were chosen; some of them where there are many."""
    kept: tuple[float, ...]
    """The share of the squared singular values that each keeps."""


class ConvReport(Record):
    """What became of one convolution. MACs are for the batch of the model, or for one image where it is free."""

    name: str
    op_type: str
    where: str
    """The nested graph or function that holds it; empty for the main graph."""
    status: Literal["replaced", "left"]
    reason: str = ""
    """Why it was left alone."""
    notes: tuple[str, ...] = ()
    weight_shape: tuple[int, ...] | None = None
    """[out_channels, in_channels / group, *kernel_shape]; None where it is not known."""
    group: int | None = None
    strides: tuple[int, ...] | None = None
    mode: str | None = None
    """The mode that replaced it."""
    rank: tuple[int, ...] | None = None
    parameters_before: int | None = None
    parameters_after: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    weight_error: float | None = None
    """||W - W'|| / ||W|| in the Frobenius norm, of the weights as stored."""
    output_error: float | None = None
    """Relative error of the Conv's own output on random input; measured by a local verification."""
    svd_error: float | None = None
    """With calibration data: |u - u'| / |u - mean u| of the Conv's output behind BatchNormalization, residual Add and
    activation, on held-out positions, of factors from the weights alone with a fitted bias."""
    fitted_error: float | None = None
    """The same for the factors that were taken, on the positions that they were fitted to."""
    held_out_error: float | None = None
    """The same on held-out positions."""
    effect: EffectReport | None = None
    """On the network's output, where it was measured, of the layer as it was replaced or would have been."""
    spectrum: Spectrum | None = None
    """Of a weight whose mode has singular values; of very large ones it is not computed."""


class Totals(Record):
    """Sums over the model."""

    convs: int
    replaced: int
    parameters_before: int
    parameters_after: int
    """Every weight element that the file holds (``onnxsep.graph.parameters``, convention ``stored``)."""
    macs_before: int
    macs_after: int
    """Conv, ConvTranspose, Gemm and MatMul whose sizes are known."""
    macs_unknown: int
    """Nodes whose sizes are not known, so that they are not in the sums (of the original model)."""
    activations_before: ActivationMemory | None = None
    activations_after: ActivationMemory | None = None
    """Peak activation memory, for the batch of the model, or for one image where it is free; None in reports of older
    versions."""


class RewriteReport(WrittenFiles, Report):
    """One run of ``onnxsep rewrite``."""

    row_field = "convs"
    command: Literal["rewrite"] = "rewrite"
    source: ModelInfo
    mode: str
    rank: str
    plan: str | None = None
    """The plan that was carried out; mode and rank are then those of each row."""
    planning: PlanReport | None = None
    """How that plan was found, where the run has made it."""
    plan_output: str | None = None
    """Where the plan of this run was written."""
    follow: tuple[str, ...] = ()
    """The command that goes on from here, where the plan is for a quantised model."""
    options: dict[str, Any]
    """What was asked for: the model, and every option."""
    convs: tuple[ConvReport, ...]
    totals: Totals
    removed_weights: tuple[str, ...] = ()
    removed_inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: CalibrationReport | None = None
    verification: VerificationReport
    missed: tuple[MissedLimit, ...] = ()
    """The limits that it missed; nothing was written then."""
    dry_run: bool = False
    layers: LayersReport | None = None
    """The tensors of source and result, where they were asked for."""
    seconds: float


class ModeCosts(Record):
    """What one mode would make of one Conv at the asked rank."""

    eligible: bool
    """Whether the mode can take the Conv at all."""
    pays: bool = False
    """Whether its parameters fall and its MACs do not rise."""
    replaced: bool = False
    """Whether ``rewrite`` would replace it, without ``--force`` and ``--include-first``."""
    reason: str = ""
    """Why it would be left alone."""
    notes: tuple[str, ...] = ()
    rank: tuple[int, ...] | None = None
    parameters: int | None = None
    macs: int | None = None
    parameter_ratio: float | None = None
    """Parameters after / before: P_s and P_d of paper 000 for a Conv without bias."""
    mac_ratio: float | None = None
    """MACs after / before (M_s, M_d); for unknown sizes that of a large input of even size."""


class InspectedConv(Record):
    """One convolution and what each mode would cost."""

    name: str
    op_type: str
    where: str
    reason: str = ""
    """Why no mode can take it; empty where at least the weight is constant."""
    weight_shape: tuple[int, ...] | None = None
    group: int | None = None
    strides: tuple[int, ...] | None = None
    input_size: tuple[int, ...] | None = None
    first: bool = False
    parameters: int | None = None
    macs: int | None = None
    modes: dict[str, ModeCosts] = Field(default_factory=dict)


class InspectedBlock(Record):
    """A residual block, a Conv with what stands behind it, or a classifier head."""

    kind: str
    """"bottleneck", "basic block", "Conv + BatchNormalization + Relu", "classifier head", ..."""
    nodes: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    """Those that come in, and those behind each convolution."""
    strides: tuple[int, ...] = ()
    """Of the whole block."""
    skip: str = ""
    """What is added in a residual block: identity, Conv or other nodes."""
    applies: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The modes that would replace something in it, and the convolutions by whose names they do."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why the other modes leave it alone."""


class InspectTotals(Record):
    """Sums over the model, as it is and as each mode would leave it."""

    convs: int
    parameters: int
    trainable_parameters: int
    macs: int
    macs_unknown: int
    flops_paper004: int
    """What paper 004 calls FLOPs (``onnxsep.graph.counting``)."""
    mode_convs: dict[str, int]
    """How many Convs ``rewrite`` would replace in each mode, first Convs left alone."""
    mode_parameters: dict[str, int]
    mode_macs: dict[str, int]
    activations: ActivationMemory | None = None
    """Peak activation memory, for the batch of the model, or for one image where it is free."""
    mode_activations: dict[str, ActivationMemory] | None = None
    """Of the modes that were asked for by name; None where none were."""


class InspectReport(Report):
    """What ``onnxsep inspect`` shows."""

    row_field = "convs"
    command: Literal["inspect"] = "inspect"
    source: ModelInfo
    options: dict[str, Any] = Field(default_factory=dict)
    """What was asked for: the model, and every option."""
    rank: str
    convs: tuple[InspectedConv, ...]
    blocks: tuple[InspectedBlock, ...] = ()
    totals: InspectTotals
    notes: tuple[str, ...] = ()
