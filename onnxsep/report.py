"""What a command found and did: the data behind the tables, and what ``--json`` and ``--report`` write."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from onnxsep._version import __version__
from onnxsep.parts import Part, show_indices


class Record(BaseModel):
    """What all records of reports are: frozen, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Totals(Record):
    """Sums over the model."""

    convs: int
    replaced: int
    parameters_before: int
    parameters_after: int
    """Every weight element that the file holds (``onnxsep.counting``, convention ``stored``)."""
    macs_before: int
    macs_after: int
    """Conv, ConvTranspose, Gemm and MatMul whose sizes are known."""
    macs_unknown: int
    """Nodes whose sizes are not known, so that they are not in the sums (of the original model)."""


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


class LayerDifference(Record):
    """The difference of one tensor that two models have in common."""

    name: str
    """In the reference."""
    other: str
    """In the model."""
    op_type: str
    """The reference's operator that computes it; "input" for a graph input that the model rounds."""
    relative: float
    """||a - b|| / ||a||, a the reference's; of a graph output that of the worst part."""
    snr_db: float | None
    """-20 log10 of that; None where both are equal."""
    max_abs: float
    before: float
    """The largest relative error among what it is computed from."""
    jump: bool = False
    """Whether the error rises here by much over that, or a part loses its variation."""
    scaled: tuple[float, float] | None = None
    """Smallest and largest factor of a channel, where the model holds channels scaled (equalised) and layers behind
    undo it; the error is then what is left beside these factors."""
    joined: bool = False
    """Whether it is an output or a Concat, whose parts are things of unlike kinds; elsewhere a part may be no more than
    a filter with small weights."""
    parts: tuple[PartReport, ...] = ()
    """Where its parts have unlike ranges."""


class LayersReport(Record):
    """The tensors of two models, one by one: where does the error arise?"""

    rows: tuple[LayerDifference, ...]
    """In the order of the reference."""
    convs: int
    """Convs and ConvTransposes of the reference."""
    convs_compared: int
    """Those whose output, or what is made of it before it is stored, is compared."""
    linear: int
    """Gemms and MatMuls."""
    linear_compared: int
    tensors: int
    """Activations of the reference's main graph."""
    tensors_compared: int
    nested: int
    """Tensors within nested graphs, which are skipped."""
    not_compared: tuple[str, ...] = ()
    """Names of the Convs, Gemms and MatMuls that have no counterpart."""
    samples: int
    first_jump: str | None = None
    """The first tensor at which the error rises by much."""
    notes: tuple[str, ...] = ()


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


class TuneReport(Record):
    """What tuning by distillation did."""

    steps: int
    best_step: int
    """The step whose weights were taken; 0 where tuning did not help."""
    loss_before: float
    loss_after: float
    """Difference of the outputs on held-out samples; ``onnxsep.training`` says in which measure."""
    seconds: float
    notes: tuple[str, ...] = ()


class CalibrationReport(Record):
    """What the factors were fitted to."""

    init: str
    source: str
    """The data's file or folder, or the statistics file."""
    fingerprint: str
    """SHA-256 of the samples, or of the statistics."""
    samples: int
    positions: int
    seed: int
    refine: int = 0
    """Rounds in which two Convs in a row were fitted again."""
    notes: tuple[str, ...] = ()
    tune: TuneReport | None = None


class ModelInfo(Record):
    """The model as its header and its files describe it."""

    path: str | None
    producer: str
    ir_version: int
    opsets: dict[str, int]
    size_bytes: int
    """The .onnx file and its external data."""


class RewriteReport(Record):
    """One run of ``onnxsep rewrite``."""

    onnxsep: str = __version__
    source: ModelInfo
    output: str | None = None
    output_bytes: int | None = None
    mode: str
    rank: str
    options: dict[str, bool | int | str | tuple[str, ...]]
    convs: tuple[ConvReport, ...]
    totals: Totals
    removed_weights: tuple[str, ...] = ()
    removed_inputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: CalibrationReport | None = None
    verification: VerificationReport
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
    modes: dict[str, ModeCosts] = {}


class InspectTotals(Record):
    """Sums over the model, as it is and as each mode would leave it."""

    convs: int
    parameters: int
    trainable_parameters: int
    macs: int
    macs_unknown: int
    flops_paper004: int
    """What paper 004 calls FLOPs (``onnxsep.counting``)."""
    mode_convs: dict[str, int]
    """How many Convs ``rewrite`` would replace in each mode, first Convs left alone."""
    mode_parameters: dict[str, int]
    mode_macs: dict[str, int]


class InspectReport(Record):
    """What ``onnxsep inspect`` shows."""

    onnxsep: str = __version__
    source: ModelInfo
    rank: str
    convs: tuple[InspectedConv, ...]
    totals: InspectTotals
    notes: tuple[str, ...] = ()
