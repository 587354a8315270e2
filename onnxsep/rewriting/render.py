"""Reports of rewrite and inspect as text."""

from collections.abc import Sequence

from rich.console import Console

from onnxsep.calibration.report import CalibrationReport
from onnxsep.checking.layer_text import print_layers
from onnxsep.reporting.text import (
    _NARROW,
    Notes,
    _number,
    header_line,
    macs_change,
    make_table,
    print_end,
    print_table,
    ratio_text,
    safe,
    site_name,
)
from onnxsep.rewriting.report import ConvReport, InspectedConv, InspectReport, RewriteReport

_MOST_COLUMNS = 3  # modes; of more, inspect prints the totals alone


def print_rewrite(console: Console, report: RewriteReport) -> None:
    """The table of all convolutions, totals, notes and the verification line of one rewrite."""
    console.print(header_line(report.source, f"mode {report.mode}, rank {report.rank}"))
    local = report.verification.kind == "local"
    columns = ["Conv", "weight", "result", ">rank", ">parameters", ">MACs", ">weight error"]
    fitted = any(conv.held_out_error is not None for conv in report.convs)
    columns += [">fitted error", ">held-out error"] if fitted else []
    notes = Notes(console)
    table = make_table(console, *columns, *([">output error"] if local else []), *notes.columns)
    change = _after if console.is_terminal and console.width < _NARROW else _change
    for conv in report.convs:
        replaced = conv.status == "replaced"
        why = "; ".join((conv.reason, *conv.notes)).strip("; ")
        table.add_row(
            site_name(conv.name, conv.where),
            _shape(conv),
            (f"[green]{safe(conv.mode)}[/green]" if conv.mode else "left alone") + notes.mark(why),
            "x".join(map(str, conv.rank or ())),
            change(conv.parameters_before, conv.parameters_after),
            change(conv.macs_before, conv.macs_after),
            _number(conv.weight_error, ".4f"),
            *([_number(conv.fitted_error, ".4f"), _errors(conv)] if fitted else []),
            *([_number(conv.output_error, ".4f")] if local else []),
            *notes.cells(why),
            style="" if replaced else "dim",
        )
    print_table(console, table)
    notes.print()
    _print_totals(console, report)
    if report.calibration:
        console.print(_calibration(report.calibration))
    print_end(console, report, lambda: print_layers(console, report.layers))


def _print_totals(console: Console, report: RewriteReport) -> None:
    totals = report.totals
    console.print(
        f"{totals.replaced} of {totals.convs} {_noun(report.convs)} replaced; "
        f"parameters {ratio_text(totals.parameters_before, totals.parameters_after)}; "
        f"{macs_change(totals.macs_before, totals.macs_after, totals.macs_unknown)}"
    )


def _errors(conv: ConvReport) -> str:
    """The error on held-out positions of the weights' own factors, and of those that were taken."""
    if conv.svd_error is None or conv.held_out_error is None:
        return ""
    if conv.svd_error == conv.held_out_error:
        return f"{conv.held_out_error:.4f}"
    return f"{conv.svd_error:.4f} -> {conv.held_out_error:.4f}"


def _calibration(done: CalibrationReport) -> str:
    """What the factors were fitted to, and what tuning did."""
    again = f", {done.refine} rounds of refinement" if done.refine else ""
    lines = [
        f"fitted ({done.init}) to {done.samples:,} samples of {safe(done.source)}, at most {done.positions} positions "
        f"in each, seed {done.seed}{again}; held-out error: |u - u'| / |u - mean u| of each Conv's output, up to its "
        "activation, on samples left out of the fit, for factors from the weights alone -> as taken"
    ]
    if done.tune:
        lines.append(
            f"tuned for {done.tune.steps:,} steps in {done.tune.seconds:.0f} s: the loss on samples left out fell from "
            f"{done.tune.loss_before:.4g} to {done.tune.loss_after:.4g} (step {done.tune.best_step:,})"
        )
        lines += [f"  {safe(note)}" for note in done.tune.notes]
    return "\n".join(lines + [f"  {safe(note)}" for note in done.notes])


def print_inspect(console: Console, report: InspectReport) -> None:
    """The table of all convolutions and what each mode would make of them."""
    console.print(header_line(report.source, f"rank {report.rank}"))
    modes = list(report.totals.mode_convs)
    columns = modes if len(modes) <= _MOST_COLUMNS else []
    table = make_table(console, "Conv", "weight", "input", ">parameters", ">MACs", *columns)
    for conv in report.convs:
        size = "?" if conv.input_size is None else "x".join(map(str, conv.input_size))
        table.add_row(
            site_name(conv.name, conv.where) + (" (first)" if conv.first else ""),
            _shape(conv),
            size,
            _number(conv.parameters, ","),
            _number(conv.macs, ","),
            *(_costs(conv, mode) for mode in columns),
        )
    totals = report.totals
    print_table(console, table)
    console.print(
        f"{totals.convs} {_noun(report.convs)}; {totals.parameters:,} parameters "
        f"({totals.trainable_parameters:,} trainable); {totals.macs:,} MACs"
        + (f", {totals.macs_unknown} nodes of unknown size (--input-shape NAME:DIMS)" if totals.macs_unknown else "")
    )
    for mode in modes:
        console.print(
            f"{mode}: {totals.mode_convs[mode]} {_noun(report.convs, 'Convs')} would be replaced; "
            f"parameters {ratio_text(totals.parameters, totals.mode_parameters[mode])}; "
            f"{macs_change(totals.macs, totals.mode_macs[mode], totals.macs_unknown)}"
        )
    for note in report.notes:
        console.print(f"note: {safe(note)}")


def _costs(conv: InspectedConv, mode: str) -> str:
    if conv.reason:
        return f"[dim]{safe(conv.reason)}[/dim]"
    costs = conv.modes[mode]
    if costs.rank is None:
        return f"[dim]{safe(costs.reason)}[/dim]"
    macs = f", {costs.macs:,} MACs" if costs.macs is not None else ""
    text = f"rank {'x'.join(map(str, costs.rank))}: {costs.parameters:,} parameters{macs}"
    return text if costs.replaced else f"[dim]{text}; left alone: {safe(costs.reason)}[/dim]"


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


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "?"
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _after(before: int | None, after: int | None) -> str:
    """As ``_change``, for a narrow terminal: the figure after, and its share of the one before."""
    if before is None or after is None:
        return "?"
    return f"{after:,}" if before == after else f"{after:,} ({after / before:.2f})"
