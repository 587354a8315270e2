"""What a report says of losses, as blocks of a document."""

from collections.abc import Iterator

from onnxsep.planner.report import LossReport, MeasuredLoss, PlanReport
from onnxsep.planner.targets import shown_loss
from onnxsep.reporting.blocks import number
from onnxsep.reporting.document import Cell, Column, Line, Row, Table


def loss_lines(report: PlanReport) -> Iterator[Line]:
    """A line for each loss that was asked for."""
    for one in report.losses:
        yield Line(_loss(one))


def _loss(one: LossReport) -> str:
    if one.measured is None:
        return f"{one.target}: no plan was measured"
    where = "held-out samples" if one.held_out else "samples that the choice has seen too"
    words = _measured(one.measured, of_metric=one.of_metric)
    return f"{one.target}: {words}, measured on {one.measured.samples:,} {where}"


def _measured(loss: MeasuredLoss, *, of_metric: bool = False) -> str:
    if loss.value is None:
        return "outputs that are NaN or infinite"
    if of_metric:
        return f"the metric falls by {loss.value:.3g}"
    error = "" if loss.standard_error is None else f" ± {loss.standard_error:.2g}"
    words = shown_loss(loss.kind, loss.value)
    return words.replace(" points", f"{error} points lost") if loss.kind == "drop" else words


def tries_table(report: PlanReport, counted: str) -> Table:
    """The plans that were carried out, the cheapest first."""
    kinds = [one.kind for one in report.losses]
    columns = [Column("round", "right"), Column(counted, "right"), Column("effect", "right", spare=1)]
    columns += [Column(f"{kind}, choice", "right") for kind in kinds]
    columns += [Column(f"{kind}, verdict", "right") for kind in kinds]
    rows = []
    for one in sorted(report.tries, key=lambda one: one.cost):
        verdict = one.verdict or (None,) * len(kinds)
        cells = (
            Cell(str(one.round), one.round),
            number(one.cost, ",d"),
            Cell(str(one.effect), one.effect.value),
            *(number(loss.value, ".3g") for loss in one.chosen_by),
            *(number(None if loss is None else loss.value, ".3g") for loss in verdict),
        )
        rows.append(Row(cells, style="good" if one.taken else "", mark="*" if one.taken else ""))
    return Table(tuple(columns), tuple(rows))
