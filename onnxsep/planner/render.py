"""The report of a plan as a document."""

from collections.abc import Sequence

from onnxsep.planner.evidence import asked
from onnxsep.planner.losing_render import loss_lines, tries_table
from onnxsep.planner.report import PlannedLatency, PlannedLayer, PlannedQuantization, PlanReport, TargetReport
from onnxsep.planner.targets import shown_amount
from onnxsep.reporting.blocks import header, notes, number, site, summary, title
from onnxsep.reporting.document import Block, Cell, Column, Curve, Curves, Document, Line, Point, Row, Table

_EFFECTS = {"kl": "KL", "relative": "relative error", "metric": "loss of the metric"}
_WHAT = {"params": "parameters", "macs": "MACs", "size": "bytes", "latency": "time", "ram": "bytes of activations"}


def plan_document(report: PlanReport) -> Document:
    """The table of all layers, the budgets, the rounds and notes."""
    blocks: list[Block] = [header(report.source, _asked(report)), _layers(report), *planning_blocks(report)]
    if report.frontier:
        blocks.append(_frontier(report))
    blocks += notes(report.notes)
    if report.output:
        blocks.append(Line(f"wrote the plan {report.output} in {report.seconds:.1f} s"))
    blocks += follow_lines(report.follow)
    return Document(title(report.command, report.source), tuple(blocks))


def follow_lines(commands: Sequence[str]) -> list[Block]:
    """What is to be typed after the command."""
    return [Line(f"then: {line}") for line in commands]


def planning_blocks(report: PlanReport) -> list[Block]:
    """The budgets, the rounds, and what was measured on what."""
    blocks: list[Block] = [Line(_target(one)) for one in report.targets]
    if report.latency is not None:
        blocks.append(Line(_latency(report.latency)))
    if report.quantized is not None:
        blocks.append(Line(_quantized(report.quantized)))
    blocks += loss_lines(report)
    if report.tries:
        blocks.append(tries_table(report, _WHAT[report.targets[0].kind]))
    if report.rounds:
        blocks.append(_rounds(report))
    where = "held-out samples" if report.held_out else "samples that the fits have seen too"
    line = Line(
        f"candidates were fitted to {report.fitted_samples:,} samples of {report.data} and measured on"
        f" {report.measured_samples:,} {where}"
    )
    nothing = "nothing was measured: no form is small enough"
    blocks.append(line if report.fitted_samples else Line(nothing))
    if report.measured is not None:
        blocks.append(Line(f"the whole plan, carried out, changes the output by {report.measured}"))
    return [*blocks, *_curve(report), *notes(report.measuring)]


def _asked(report: PlanReport) -> str:
    return ", ".join(asked(report))


def _target(one: TargetReport) -> str:
    kind = _WHAT[one.kind]
    before, allowed = shown_amount(one.kind, one.before), shown_amount(one.kind, one.allowed)
    if one.after is None and not one.target:
        return f"{kind}: {before}; the least that can be had: {shown_amount(one.kind, one.least)}"
    if one.after is None:
        least = shown_amount(one.kind, one.least)
        words = allowed if one.kind == "latency" else f"{allowed} {kind}"
        return f"{one.target}: at most {words} of {before}; the least that can be had: {least}"
    share = f" ({one.after / one.before:.3f})" if one.before else ""
    if not one.target:
        return f"{kind}: {before} -> {shown_amount(one.kind, one.after)}{share}"
    return f"{one.target}: {kind} {before} -> {shown_amount(one.kind, one.after)}{share}, at most {allowed}"


def _latency(latency: PlannedLatency) -> str:
    words = f"the sum over layers promises {_share(latency.promised, latency.promised_error)} of the time of the model"
    if latency.measured is not None:
        words += f"; the whole one takes {_share(latency.measured, latency.measured_error)}"
    return f"{words} ({latency.machine}{', ' if latency.kept else ''}{latency.kept or ''})"


def _quantized(made: PlannedQuantization) -> str:
    words = f"quantised to int8: {made.bytes_after:,} bytes, the output changes by {made.effect_after}"
    alone = f"{made.bytes_alone:,} bytes, {made.effect_alone}"
    if made.latency_alone is not None:
        alone += f", {_share(made.latency_alone, None)} of the time"
    return f"{words} (without the plan: {alone})"


def _share(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _layers(report: PlanReport) -> Table:
    columns = [Column("layer"), Column("form"), Column("rank", "right", spare=1)]
    columns += [Column("parameters", "right"), Column("MACs", "right", spare=2), Column("bytes", "right", spare=3)]
    columns += [Column("time", "right")] if report.latency else []
    columns += [
        Column("held-out error", "right", spare=4),
        Column("effect", "right"),
        Column("candidates", "right", spare=5),
    ]
    return Table(
        tuple(columns), tuple(_layer(one, timed=report.latency is not None) for one in report.layers), notes="why"
    )


def _layer(layer: PlannedLayer, *, timed: bool) -> Row:
    form = Cell(layer.mode, style="good") if layer.mode else Cell("left alone", note=layer.reason)
    cells = (
        Cell(site(layer.name, layer.where)),
        form,
        Cell("x".join(map(str, layer.rank or ()))),
        _change(layer.parameters_before, layer.parameters_after),
        _change(layer.macs_before, layer.macs_after),
        number(layer.bytes_more if layer.mode else None, "+,d"),
        *([number(layer.time_ratio, ".2f")] if timed else []),
        number(layer.held_out_error, ".3f"),
        number(layer.effect, ".3g"),
        number(layer.candidates or None, "d"),
    )
    return Row(cells, style="" if layer.mode else "dim")


def _change(before: int | None, after: int | None) -> Cell:
    if before is None or after is None:
        return Cell("?")
    return Cell(f"{before:,}" if before == after else f"{before:,} -> {after:,}", after, narrow=f"{after:,}")


def _rounds(report: PlanReport) -> Table:
    columns = tuple(Column(name, "right") for name in ("round", "candidates", "predicted", "gap", "measured"))
    rows = tuple(
        Row(
            (
                Cell(str(one.number), one.number),
                number(one.candidates, ",d"),
                number(one.predicted, ".4g"),
                number(one.gap, ".2%"),
                Cell(f"{one.measured}{_softened(one.softened)}", one.measured.value, narrow=str(one.measured)),
            ),
            style="good" if one.taken else "",
            mark="*" if one.taken else "",
        )
        for one in report.rounds
    )
    return Table(columns, rows)


def _softened(value: float | None) -> str:
    return "" if value is None else f", softened {value:.3g}"


def _frontier(report: PlanReport) -> Table:
    columns = [Column(f"share of {_WHAT[report.targets[0].kind]}", "right"), Column("parameters", "right")]
    columns += [Column("MACs", "right"), Column("bytes", "right"), Column("estimated effect", "right"), Column("plan")]
    rows = [
        Row(
            (
                number(one.share, ".3f"),
                number(one.params, ",d"),
                number(one.macs, ",d"),
                number(one.size, ",d"),
                number(one.estimated, ".3g"),
                Cell(one.plan),
            )
        )
        for one in report.frontier
    ]
    return Table(tuple(columns), tuple(rows))


def _curve(report: PlanReport) -> list[Block]:
    """The trade-off curve and the plan that was taken, for writers that draw."""
    shown = report.frontier or report.curve
    target, taken = report.targets[0], report.measured
    if not shown or taken is None or taken.value is None or target.after is None:
        return []
    what, effect = _WHAT[target.kind], _EFFECTS[taken.kind]
    points = tuple(Point(one.share, one.estimated, f"{one.share:.3f}: {one.estimated:.3g}") for one in shown)
    share = target.after / target.before if target.before else 1.0
    chosen = Point(share, taken.value, f"this plan: {share:.3f} of the {what}, {effect} {taken.value:.3g}")
    curve = Curve("plans from the same measurements", points, chosen)
    up = f"{effect}: estimated, of this plan measured"
    return [Curves("trade-off", f"share of the {what}", up, (curve,), logarithmic=True)]


def plan_summary(report: PlanReport) -> str:
    """The budgets, and the effect."""
    effect = "no plan keeps to it" if report.measured is None else f"changes the output by {report.measured}"
    return summary(report.source, _asked(report), *map(_target, report.targets), effect)
