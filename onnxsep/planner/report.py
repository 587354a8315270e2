"""What a plan was made from and what it costs: the data behind the tables, and what ``--report`` writes."""

from typing import Any, Literal

from onnxsep.data.preprocessing_report import PreprocessingReport
from onnxsep.reporting.records import EffectReport, ModelInfo, Record, Report


class TargetReport(Record):
    """A budget and what becomes of it.

    Counts are those of ``inspect``; bytes those of the file as it is written, of "ram" those of live activations at the
    worst moment of a run; times are nanoseconds, ``after`` that of the model as it is and what is measured of each
    layer. Where the result is quantised, bytes and times after it are those of what that gives, and ``before`` is the
    model as it was given.
    """

    kind: Literal["params", "macs", "size", "latency", "ram"]
    target: str
    """As it was asked for; "" where only a loss was, so that it is made as small as that allows."""
    allowed: int
    before: int
    after: int | None
    """None where no plan keeps within the budgets."""
    least: int
    """The smallest that the candidates allow, of this alone."""


class MeasuredLoss(Record):
    """What a model loses against the original."""

    kind: Literal["error", "kl", "drop"]
    value: float | None
    """The relative error of the worst output, KL in nats, points of top-1 accuracy, or what the user's metric falls by;
    None where outputs are NaN or infinite."""
    standard_error: float | None = None
    """Of points, paired."""
    samples: int


class LossReport(Record):
    """What may be lost, and what the model loses."""

    kind: Literal["error", "kl", "drop"]
    target: str
    """As it was asked for."""
    allowed: float
    measured: MeasuredLoss | None
    """Of the model as it is written, or where none is, of the nearest; None where there is none."""
    held_out: bool
    """Whether it was measured on samples that nothing was fitted to or chosen by."""
    of_metric: bool = False
    """Whether a drop is that of the user's metric, and not in points."""


class TryReport(Record):
    """A plan that was carried out to find out what it loses."""

    round: int
    """In which round of measurements it was chosen."""
    cost: int
    """What it costs, of the first budget."""
    effect: EffectReport
    chosen_by: tuple[MeasuredLoss, ...]
    """What it loses on samples that plans are chosen by."""
    verdict: tuple[MeasuredLoss, ...] = ()
    """What it loses on the others, where that was asked."""
    taken: bool = False


class PlannedLatency(Record):
    """The time of the whole model, for one sample where the batch is free."""

    whole_ms: float
    """Milliseconds of a run of the model as it is."""
    promised: float
    """The time of the rewritten model as a share of that: the sum of what was measured of its layers."""
    promised_error: float
    """Standard error."""
    measured: float | None = None
    """The same share, of the whole model, timed when the plan was made; None where times are those of a file."""
    measured_error: float | None = None
    """Standard error."""
    machine: str
    """Where times were measured."""
    kept: str | None = None
    """The file that times are from, or the folder in which they are kept."""


class PlannedQuantization(Record):
    """What ``onnxsep.quantize`` makes of the model, and of the rewritten one."""

    options: dict[str, Any]
    """Of ``quantize``; those that are not there have its own defaults."""
    bytes_alone: int
    """Of the model quantised, with no layer replaced."""
    bytes_after: int
    """Of the rewritten model quantised."""
    effect_alone: EffectReport
    """What quantising alone changes at the output."""
    effect_after: EffectReport
    """What both change."""
    latency_alone: float | None = None
    """The time that the model takes quantised, as a share of its time as it is, where time is a budget."""


class RoundReport(Record):
    """One round of measurements, and the plan that was chosen by them."""

    number: int
    candidates: int
    predicted: float | None
    """The sum of the effects of what was chosen (the root of that of their squares, of relative errors); from the
    second round on, the effect of the plan before and what each change adds to it, measured alone. None where the plan
    before gives NaN."""
    gap: float
    """How much smaller the least possible sum may be, as a share."""
    measured: EffectReport
    """Of all together, when carried out."""
    softened: float | None = None
    """Of a classifier that of softened distributions (``onnxsep.planner.output_distance``): the least one is taken."""
    taken: bool = False


class PlannedLayer(Record):
    """What becomes of one layer. MACs are for the batch of the model, or for one sample where it is free."""

    name: str
    op_type: str
    where: str
    """The nested graph or function that holds it; empty for the main graph."""
    mode: str | None = None
    """None: it is left alone."""
    rank: tuple[int, ...] | None = None
    reason: str = ""
    """Why it is left alone."""
    candidates: int = 0
    """How many forms were measured."""
    parameters_before: int | None = None
    parameters_after: int | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    bytes_more: int | None = None
    """What the file has more (negative: less) for it, nodes, names and metadata included."""
    held_out_error: float | None = None
    """Relative error of its own output behind its activation, in the plan, on positions that the fit has not seen."""
    time_ratio: float | None = None
    """Its time, with what the runtime fuses with it, as a share of its time as it is, where time is a budget."""
    effect: float | None = None
    """What it adds to the effect on the output, beside the layer left alone, in the round that chose it."""


class FrontierPoint(Record):
    """A plan for another budget, from the same measurements; nothing of it was carried out."""

    plan: str
    """Its file in the folder of the curve."""
    share: float
    """What it costs of the budget that changes along the curve, as a share of the whole model's."""
    params: int
    macs: int
    size: int
    predicted: float
    """The sum of the effects of its forms, each measured alone; for classifiers of softened distributions."""
    estimated: float
    """The effect of the whole: the same, scaled as the plan that was carried out asks for."""


class PlanReport(Report):
    """One run of ``onnxsep plan``."""

    row_field = "layers"
    command: Literal["plan"] = "plan"
    source: ModelInfo
    options: dict[str, Any]
    """What was asked for: the model, and every option."""
    targets: tuple[TargetReport, ...]
    losses: tuple[LossReport, ...] = ()
    tries: tuple[TryReport, ...] = ()
    """The plans among which the cheapest was sought that does not lose too much."""
    layers: tuple[PlannedLayer, ...]
    rounds: tuple[RoundReport, ...] = ()
    measured: EffectReport | None = None
    """Of the plan as a whole, carried out; None where there is none."""
    latency: PlannedLatency | None = None
    """Where it is a budget and there is a plan."""
    quantized: PlannedQuantization | None = None
    """Where the plan is for a quantised model and there is one."""
    frontier: tuple[FrontierPoint, ...] = ()
    """The trade-off curve, where it was asked for."""
    curve: tuple[FrontierPoint, ...] = ()
    """The same for a drawing where it was not, without files; not of plans for a quantised model, whose bytes take long
    to find."""
    data: str
    fingerprint: str
    """SHA-256 of the samples."""
    fitted_samples: int
    measured_samples: int
    held_out: bool
    """Whether those that were measured on are not among those of the fits."""
    preprocessing: PreprocessingReport | None = None
    notes: tuple[str, ...] = ()
    plan: str = ""
    """The text of the plan, where it is a step of a pipeline."""
    follow: tuple[str, ...] = ()
    """Commands that carry it out, where the result is to be quantised."""
    measuring: tuple[str, ...] = ()
    """What was taken from the cache, and what could not be measured."""
    output: str | None = None
    """Where the plan was written."""
    seconds: float
