"""Reports as text: tables for a terminal, the same without colour and frames elsewhere."""

from collections.abc import Callable
from typing import Protocol, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxsep.reporting.printable import printable
from onnxsep.reporting.records import ModelInfo, VerificationReport, part_text

_NARROW = 120  # columns; in a narrower terminal the figures before the rewrite are left out


_WIDEST = 1000  # columns where there is no terminal: lines are then as long as they need to be


class _Console(Console):
    """Leaves it to the caller what a closed pipe means; rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(file: TextIO) -> Console:
    """A console that wraps in a terminal only, and keeps numbers and names without highlighting."""
    console = _Console(file=file, highlight=False, emoji=False)
    return console if console.is_terminal else _Console(file=file, highlight=False, emoji=False, width=_WIDEST)


class Ending(Protocol):
    """What reports of a changed model have in common."""

    notes: tuple[str, ...]
    verification: VerificationReport
    dry_run: bool
    output: str | None
    output_bytes: int | None
    seconds: float


def print_end(console: Console, report: Ending, show_layers: Callable[[], None] = lambda: None) -> None:
    """What every report of a changed model ends in: notes, the verification, and the file that was written."""
    for note in report.notes:
        console.print(f"note: {safe(note)}")
    show_layers()
    console.print(_verification(report.verification))
    if report.dry_run:
        console.print("dry run: nothing was written")
    elif report.output:
        console.print(f"wrote {safe(report.output)} ({report.output_bytes:,} bytes) in {report.seconds:.1f} s")


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
