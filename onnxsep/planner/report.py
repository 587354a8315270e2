"""What a plan was made from and what it costs: the data behind the tables, and what ``--report`` writes."""

from typing import Any, Literal

from onnxsep.data.preprocessing_report import PreprocessingReport
from onnxsep.reporting.records import EffectReport, ModelInfo, Record, Report


class TargetReport(Record):
    """A budget and what becomes of it. Counts are those of ``inspect``; bytes those of the file as it is written."""

    kind: Literal["params", "macs", "size"]
    target: str
    """As it was asked for."""
    allowed: int
    before: int
    after: int | None
    """None where no plan keeps within the budgets."""
    least: int
    """The smallest that the candidates allow, of this alone."""


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
    """The sum of the effects of its forms, each measured alone."""
    estimated: float
    """The same, scaled as the plan that was carried out asks for."""


class PlanReport(Report):
    """One run of ``onnxsep plan``."""

    row_field = "layers"
    command: Literal["plan"] = "plan"
    source: ModelInfo
    options: dict[str, Any]
    """What was asked for: the model, and every option."""
    targets: tuple[TargetReport, ...]
    layers: tuple[PlannedLayer, ...]
    rounds: tuple[RoundReport, ...] = ()
    measured: EffectReport | None = None
    """Of the plan as a whole, carried out; None where there is none."""
    frontier: tuple[FrontierPoint, ...] = ()
    """The trade-off curve, where it was asked for."""
    data: str
    fingerprint: str
    """SHA-256 of the samples."""
    fitted_samples: int
    measured_samples: int
    held_out: bool
    """Whether those that were measured on are not among those of the fits."""
    preprocessing: PreprocessingReport | None = None
    notes: tuple[str, ...] = ()
    output: str | None = None
    """Where the plan was written."""
    seconds: float
