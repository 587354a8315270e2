"""Reports as text: tables for a terminal, the same without colour and frames elsewhere."""

from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxsep.checking.layer_table import layer_lines
from onnxsep.pruning.report import PruneReport
from onnxsep.report import (
    CalibrationReport,
    ConvReport,
    InspectedConv,
    InspectReport,
    LayersReport,
    ModelInfo,
    RewriteReport,
    VerificationReport,
    part_text,
)
from onnxsep.text import printable

_NARROW = 120  # columns; in a narrower terminal the figures before the rewrite are left out
_MOST_COLUMNS = 3  # modes; of more, inspect prints the totals alone
_WIDEST = 1000  # columns where there is no terminal: lines are then as long as they need to be


class _Console(Console):
    """Leaves it to the caller what a closed pipe means; rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(file: TextIO) -> Console:
    """A console that wraps in a terminal only, and keeps numbers and names without highlighting."""
    console = _Console(file=file, highlight=False, emoji=False)
    return console if console.is_terminal else _Console(file=file, highlight=False, emoji=False, width=_WIDEST)


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
    print_end(console, report)


def print_end(console: Console, report: RewriteReport | PruneReport) -> None:
    """What every report of a changed model ends in: notes, the verification, and the file that was written."""
    for note in report.notes:
        console.print(f"note: {safe(note)}")
    if isinstance(report, RewriteReport):
        print_layers(console, report.layers)
    console.print(_verification(report.verification))
    if report.dry_run:
        console.print("dry run: nothing was written")
    elif report.output:
        console.print(f"wrote {safe(report.output)} ({report.output_bytes:,} bytes) in {report.seconds:.1f} s")


def print_layers(console: Console, report: LayersReport | None) -> None:
    """The tensors of source and result, where they were compared."""
    for number, line in enumerate(() if report is None else layer_lines(report)):
        console.print(safe(f"layers: {line}" if number == 0 else f"  {line}"), soft_wrap=True)


class Notes:
    """Why a Conv was left alone: a column of its own in plain text; in a terminal, too narrow for that, footnotes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._numbers: dict[str, int] = {}
        self.columns = [] if console.is_terminal else ["why, notes"]

    def mark(self, text: str) -> str:
        """What refers to the note: a number, or nothing where notes have a column."""
        if not text or self.columns:
            return ""
        return escape(f" [{self._numbers.setdefault(text, len(self._numbers) + 1)}]")

    def cells(self, text: str) -> list[str]:
        """The note, where notes have a column."""
        return [safe(text) for _ in self.columns]

    def print(self) -> None:
        """The notes by number, where they have no column."""
        for text, number in self._numbers.items():
            self._console.print(f"[dim]{safe(f'[{number}] {text}')}[/dim]")


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


def _verification(outcome: VerificationReport) -> str:
    if not outcome.ran:
        return f"[yellow]not verified[/yellow]: {safe(outcome.reason)}"
    what = "outputs of original and result" if outcome.kind == "full" else "each replaced Conv and the original one"
    line = (
        f"[green]compared[/green] in ONNX Runtime on the same inputs: {what} differ by "
        f"max {outcome.max_abs:.3g}, mean {outcome.mean_abs:.3g}, relative {outcome.relative:.3g}"
    )
    for one in outcome.outputs if len(outcome.outputs) > 1 or any(one.parts for one in outcome.outputs) else ():
        line += f"\n  {safe(one.name)}: max {one.max_abs:.3g}, relative {one.relative:.3g}"
        line += "".join(f"\n    {safe(part_text(part))}" for part in one.parts)
    return line + "".join(f"\n  {safe(note)}" for note in outcome.notes)


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


def header_line(source: ModelInfo, what: str) -> str:
    """The model and what is done with it."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in source.opsets.items())
    name = safe(source.path or "model in memory")
    producer = safe(source.producer or "unknown producer")
    return f"{name}: {producer}, IR {source.ir_version}, opset {safe(opsets)}, {source.size_bytes:,} bytes; {what}"


def make_table(console: Console, *columns: str) -> Table:
    """A table whose columns named with a leading ">" are aligned to the right."""
    frame = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(box=frame, pad_edge=False, padding=(0, 2, 0, 0) if frame is None else (0, 1))
    for column in columns:
        number = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def print_table(console: Console, table: Table) -> None:
    """Lines that are longer than the terminal go on in the next one: a figure must never be cut."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST, max_width=_WIDEST)).maximum
    if needed > console.width:
        console = _Console(file=console.file, highlight=False, emoji=False, width=needed)
    console.print(table)


def site_name(name: str, where: str) -> str:
    """A node's name, and the nested graph or function that holds it."""
    return safe(name) + (f" [dim]({safe(where)})[/dim]" if where else "")


def safe(text: str) -> str:
    """A text from the model: what a terminal would obey, or rich would read as markup, is escaped."""
    return escape(printable(text))


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


def macs_change(before: int, after: int, unknown: int) -> str:
    """MACs before and after, and how many nodes are not in these sums because their sizes are not known."""
    if unknown and not before:
        return "MACs unknown: the sizes are free (--input-shape NAME:DIMS gives them)"
    return f"MACs {ratio_text(before, after)}" + (f" ({unknown} nodes of unknown size not counted)" if unknown else "")


def ratio_text(before: int, after: int) -> str:
    """Two counts and their ratio."""
    return f"{before:,} -> {after:,}" + (f" ({after / before:.3f})" if before else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
