"""Reports of rewrite and inspect as documents."""

from collections.abc import Sequence

from onnxsep.calibration.report import CalibrationReport
from onnxsep.checking.render import layers_of_result
from onnxsep.errors import spelled
from onnxsep.modes.settings import as_text
from onnxsep.planner.render import follow_lines, planning_blocks
from onnxsep.reporting.blocks import (
    activations_lines,
    compared,
    ending,
    header,
    macs_change,
    notes,
    number,
    ratio_text,
    site,
    summary,
    title,
)
from onnxsep.reporting.document import Block, Cell, Column, Curve, Curves, Document, Line, Point, Row, Table
from onnxsep.reporting.records import ActivationMemory
from onnxsep.rewriting.report import ConvReport, InspectedConv, InspectReport, InspectTotals, RewriteReport

_MOST_COLUMNS = 3  # modes; of more, inspect shows the totals alone


def rewrite_document(report: RewriteReport) -> Document:
    """The table of all convolutions, totals, notes and the verification of one rewrite."""
    blocks: list[Block] = [header(report.source, _how(report)), _convs(report)]
    blocks += [Line(_totals(report)), *activations_lines(report.totals.activations_before, _after(report))]
    if report.planning:
        blocks += planning_blocks(report.planning)
    if report.calibration:
        blocks += _calibration(report.calibration)
    blocks += _spectra(report)
    blocks += ending(report, layers_of_result(report.layers))
    if report.plan_output:
        blocks.append(Line(f"wrote the plan {report.plan_output}"))
    blocks += follow_lines(report.follow)
    return Document(title(report.command, report.source), tuple(blocks))


def _after(report: RewriteReport) -> list[tuple[str, ActivationMemory]]:
    after = report.totals.activations_after
    return [] if after is None else [("", after)]


def _how(report: RewriteReport) -> str:
    rank = f", rank {report.rank}" if report.rank else ""
    settings = "".join(f", {name}={as_text(value)}" for name, value in (report.options.get("settings") or {}).items())
    return f"plan {report.plan}" if report.plan else f"mode {report.mode}{rank}{settings}"


def _convs(report: RewriteReport) -> Table:
    local = report.verification.kind == "local"
    fitted = any(conv.held_out_error is not None for conv in report.convs)
    columns = [Column("Conv"), Column("weight", spare=3), Column("result"), Column("rank", "right", spare=1)]
    columns += [Column("parameters", "right"), Column("MACs", "right", spare=2)]
    columns += [Column("weight error", "right", spare=4 * int(fitted or local))]
    columns += [Column("fitted error", "right", spare=5), Column("held-out error", "right")] if fitted else []
    columns += [Column("output error", "right")] if local else []
    return Table(tuple(columns), tuple(_conv(conv, fitted, local) for conv in report.convs), notes="why, notes")


def _conv(conv: ConvReport, fitted: bool, local: bool) -> Row:
    effect = f"alone it changes the output by {conv.effect}" if conv.effect and conv.mode else ""
    why = "; ".join(filter(None, (conv.reason, *conv.notes, effect)))
    result = Cell(conv.mode, style="good", note=why) if conv.mode else Cell("left alone", note=why)
    cells = [
        Cell(site(conv.name, conv.where)),
        Cell(_shape(conv)),
        result,
        Cell("x".join(map(str, conv.rank or ()))),
        _change(conv.parameters_before, conv.parameters_after),
        _change(conv.macs_before, conv.macs_after),
        number(conv.weight_error, ".4f"),
    ]
    cells += [number(conv.fitted_error, ".4f"), _errors(conv)] if fitted else []
    cells += [number(conv.output_error, ".4f")] if local else []
    return Row(tuple(cells), style="" if conv.status == "replaced" else "dim")


def _spectra(report: RewriteReport) -> list[Block]:
    """What the ranks keep of each weight, for writers that draw."""
    found = []
    for conv in report.convs:
        if conv.spectrum is not None and conv.rank:
            points = [Point(x, y) for x, y in zip(conv.spectrum.ranks, conv.spectrum.kept, strict=True)]
            rank = conv.rank[-1]
            kept = next((point.y for point in points if point.x >= rank), 1.0)
            words = f"{conv.mode}, rank {'x'.join(map(str, conv.rank))} keeps {kept:.1%}"
            found.append(Curve(conv.name, tuple(points), Point(rank, kept, words)))
    across = "the rank (the last one, where there are several)"
    up = "share of the squared singular values of the weight that is kept"
    return [Curves("singular values", across, up, tuple(found))] if found else []


def _totals(report: RewriteReport) -> str:
    totals = report.totals
    return (
        f"{totals.replaced} of {totals.convs} {_noun(report.convs)} replaced; "
        f"parameters {ratio_text(totals.parameters_before, totals.parameters_after)}; "
        f"{macs_change(totals.macs_before, totals.macs_after, totals.macs_unknown)}"
    )


def _errors(conv: ConvReport) -> Cell:
    """The error on held-out positions of the weights' own factors, and of those that were taken."""
    if conv.svd_error is None or conv.held_out_error is None:
        return Cell()
    before = "" if conv.svd_error == conv.held_out_error else f"{conv.svd_error:.4f} -> "
    return Cell(f"{before}{conv.held_out_error:.4f}", conv.held_out_error)


def _calibration(done: CalibrationReport) -> list[Line]:
    """What the factors were fitted to, and what tuning did."""
    again = f", {done.refine} rounds of refinement" if done.refine else ""
    lines = [
        Line(
            f"fitted ({done.init}) to {done.samples:,} samples of {done.source}, at most {done.positions} positions "
            f"in each, seed {done.seed}{again}; held-out error: |u - u'| / |u - mean u| of each Conv's output, up to "
            "its activation, on samples left out of the fit, for factors from the weights alone -> as taken"
        )
    ]
    told = list(done.notes)
    if done.tune:
        rate = "" if done.tune.rate is None else f", rate {done.tune.rate:g}"
        lines.append(
            Line(
                f"tuned for {done.tune.steps:,} steps in {done.tune.seconds:.0f} s: the loss on samples left out fell "
                f"from {done.tune.loss_before:.4g} to {done.tune.loss_after:.4g} (step {done.tune.best_step:,}{rate})"
            )
        )
        told = [*done.tune.notes, *told]
    return lines + [Line(note, indent=1) for note in told]


def inspect_document(report: InspectReport) -> Document:
    """The table of all convolutions and what each mode would make of them."""
    totals = report.totals
    modes = list(totals.mode_convs)
    lines = [
        f"{totals.convs} {_noun(report.convs)}; {totals.parameters:,} parameters "
        f"({totals.trainable_parameters:,} trainable); {_macs(totals)}"
    ]
    lines += [
        f"{mode}: {totals.mode_convs[mode]} {_noun(report.convs, 'Convs')} would be replaced; "
        f"parameters {ratio_text(totals.parameters, totals.mode_parameters[mode])}; "
        f"{macs_change(totals.macs, totals.mode_macs[mode], totals.macs_unknown)}"
        for mode in modes
    ]
    table = _inspected(report, modes if len(modes) <= _MOST_COLUMNS else [])
    blocks: list[Block] = [header(report.source, f"rank {report.rank}"), table]
    known = [(f"{mode}: ", one) for mode, one in (totals.mode_activations or {}).items()]
    blocks += [*map(Line, lines), *activations_lines(totals.activations, known), *notes(report.notes)]
    if report.blocks:
        blocks.append(_blocks(report, named=bool(report.options.get("modes"))))
    return Document(title(report.command, report.source), tuple(blocks))


def _blocks(report: InspectReport, *, named: bool) -> Table:
    """The blocks, and which modes apply; why the others do not where modes were asked for by name."""
    columns = (
        *(Column("block"), Column("kind"), Column("channels", spare=1), Column("stride", "right", spare=2)),
        *(Column("skip", spare=3), Column("modes that apply")),
    )
    rows = []
    for block in report.blocks:
        why = "; ".join(f"{mode}: {reason}" for mode, reason in block.reasons.items()) if named else ""
        cells = (
            Cell(block.nodes[0]),
            Cell(block.kind),
            Cell("-".join(map(str, block.channels))),
            Cell("x".join(map(str, block.strides))),
            Cell(block.skip),
            Cell(", ".join(block.applies) or "none", note=why),
        )
        rows.append(Row(cells, style="" if block.applies else "dim"))
    return Table(columns, tuple(rows), notes="why not")


def _inspected(report: InspectReport, modes: Sequence[str]) -> Table:
    columns = (
        *(Column("Conv"), Column("weight", spare=3), Column("input", spare=4)),
        *(Column("parameters", "right", spare=int(bool(modes))), Column("MACs", "right", spare=2 * int(bool(modes)))),
        *map(Column, modes),
    )
    rows = [
        Row(
            (
                Cell((*site(conv.name, conv.where), " (first)" if conv.first else "")),
                Cell(_shape(conv)),
                Cell("?" if conv.input_size is None else "x".join(map(str, conv.input_size))),
                number(conv.parameters, ","),
                number(conv.macs, ","),
                *(_costs(conv, mode) for mode in modes),
            )
        )
        for conv in report.convs
    ]
    return Table(columns, tuple(rows))


def _costs(conv: InspectedConv, mode: str) -> Cell:
    costs = None if conv.reason else conv.modes[mode]
    if costs is None or costs.rank is None:
        reason = conv.reason if costs is None else costs.reason
        return Cell(reason, style="dim", narrow="left alone" if reason else None, narrow_note=reason)
    macs = f", {costs.macs:,} MACs" if costs.macs is not None else ""
    rank = f"rank {'x'.join(map(str, costs.rank))}: " if costs.rank else ""
    text, short = f"{rank}{costs.parameters:,} parameters{macs}", f"{rank}{costs.parameters:,} params{macs}"
    if costs.replaced:
        return Cell(text, narrow=short)
    return Cell(
        f"{text}; left alone: {costs.reason}", style="dim", narrow=short, narrow_note=f"left alone: {costs.reason}"
    )


def _noun(rows: Sequence[ConvReport | InspectedConv], convolutions: str = "convolutions") -> str:
    """What the rows of a table are: convolutions, or layers where a Gemm or MatMul is among them."""
    return convolutions if all("Conv" in row.op_type for row in rows) else "layers"


def _shape(conv: ConvReport | InspectedConv) -> str:
    if conv.weight_shape is None:
        return "" if conv.op_type == "Conv" else conv.op_type
    text = "x".join(map(str, conv.weight_shape))
    if conv.op_type != "Conv":
        text = f"{conv.op_type} {text}"
    if conv.group and conv.group > 1:
        text += f" g{conv.group}"
    if conv.strides and max(conv.strides) > 1:
        text += " /" + "x".join(map(str, conv.strides))
    return text


def _change(before: int | None, after: int | None) -> Cell:
    """A count before and after; where there is little room, the one after and its share of the one before."""
    if before is None or after is None:
        return Cell("?")
    if before == after:
        return Cell(f"{before:,}", after)
    share = f" ({after / before:.2f})" if before else ""
    return Cell(f"{before:,} -> {after:,}", after, narrow=f"{after:,}{share}")


def _macs(totals: InspectTotals) -> str:
    where = spelled("input_shapes", hint="NAME:DIMS")
    unknown = f", {totals.macs_unknown} nodes of unknown size ({where})" if totals.macs_unknown else ""
    return f"{totals.macs:,} MACs{unknown}"


def rewrite_summary(report: RewriteReport) -> str:
    """How many Convs were replaced, what that saves, and the error."""
    last = "dry run" if report.dry_run else compared(report.verification)
    return summary(report.source, _how(report), _totals(report), last)


def inspect_summary(report: InspectReport) -> str:
    """What the model holds."""
    totals = report.totals
    figures = f"{totals.convs} {_noun(report.convs)}", f"{totals.parameters:,} parameters", _macs(totals)
    return summary(report.source, f"rank {report.rank}", *figures)
