"""Documents as text: tables for a terminal, the same without colour and frames elsewhere."""

from io import StringIO
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onnxsep.reporting.document import Cell, Document, Heading, Line, Note, Row, Series, Span, Style, Table, Words
from onnxsep.reporting.document import plain as plain_words
from onnxsep.reporting.printable import printable

_NARROW = 120  # columns; in a narrower terminal cells show their short form
_WIDEST = 1000  # columns where there is no terminal: lines are then as long as they need to be
_STYLES: dict[Style, str] = {"": "", "good": "green", "warning": "yellow", "dim": "dim"}


class _Console(Console):
    """Leaves it to the caller what a closed pipe means; rich would exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(file: TextIO) -> Console:
    """A console that wraps in a terminal only, and keeps numbers and names without highlighting."""
    console = _Console(file=file, highlight=False, emoji=False)
    return console if console.is_terminal else _Console(file=file, highlight=False, emoji=False, width=_WIDEST)


def print_document(console: Console, document: Document) -> None:
    """Print a document; what a terminal would obey is escaped."""
    for block in document.blocks:
        if isinstance(block, Table):
            _print_table(console, block)
        elif not isinstance(block, Series):
            _print_line(console, block, document.wrap)


def plain_text(document: Document) -> str:
    """What a pipe or a file gets of it."""
    file = StringIO()
    print_document(make_console(file), document)
    return file.getvalue()


def aligned(table: Table) -> list[str]:
    """The lines of a table without a frame, not indented: marks, cells in columns, details below their row."""
    rows = [Row(tuple(Cell(column.title) for column in table.columns)), *table.rows]
    texts = [[printable(plain_words(cell.words)) for cell in row.cells] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    widths[-1] = 0  # nothing stands behind it
    lines = []
    for row, cells in zip(rows, texts, strict=True):
        padded = [
            text.rjust(width) if column.align == "right" else text.ljust(width)
            for column, text, width in zip(table.columns, cells, widths, strict=True)
        ]
        lines.append(f"{row.mark or ' '} {'  '.join(padded)}")
        lines += [f"      {printable(detail)}" for detail in row.details]
    return lines


def _print_line(console: Console, block: Heading | Line | Note, wrap: bool) -> None:
    if isinstance(block, Heading):
        words, indent, wrap = _safe(block.text), 0, False
    elif isinstance(block, Note):
        words, indent, wrap = _safe(f"note: {block.text}"), block.indent, wrap and block.wrap
    else:
        words, indent, wrap = _safe(block.words), block.indent, wrap and block.wrap
    if wrap:
        console.print(Text("  " * indent).append_text(words))
    else:
        _print_unwrapped(console, indent, words.plain)


def _print_unwrapped(console: Console, indent: int, text: str) -> None:
    """A line as it is: rich would cut or wrap it, or take spaces from its end."""
    console.file.write(f"{'  ' * indent}{text}\n")


def _print_table(console: Console, table: Table) -> None:
    if not table.framed:
        for line in aligned(table):
            _print_unwrapped(console, table.indent, line)
        return
    notes = _Notes(console, table)
    shown = _empty_table(console, table, notes)
    for row in table.rows:
        cells = [_cell(console, cell).append_text(notes.mark(cell)) for cell in row.cells]
        shown.add_row(*cells, *notes.cells(row), style=_STYLES[row.style])
    _print_whole(console, shown)
    notes.print()


def _empty_table(console: Console, table: Table, notes: "_Notes") -> RichTable:
    frame = box.SIMPLE_HEAD if console.is_terminal else None
    shown = RichTable(box=frame, pad_edge=False, padding=(0, 2, 0, 0) if frame is None else (0, 1))
    for column in table.columns:
        shown.add_column(_safe(column.title), justify=column.align, no_wrap=column.align == "right", overflow="fold")
    for title in notes.columns:
        shown.add_column(_safe(title), overflow="fold")
    return shown


def _cell(console: Console, cell: Cell) -> Text:
    narrow = console.is_terminal and console.width < _NARROW and cell.narrow is not None
    return _safe(cell.narrow or "" if narrow else cell.words, cell.style)


def _print_whole(console: Console, table: RichTable) -> None:
    """Lines that are longer than the terminal go on in the next one: a figure must never be cut."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST, max_width=_WIDEST)).maximum
    if needed > console.width:
        console = _Console(file=console.file, highlight=False, emoji=False, width=needed)
    console.print(table)


class _Notes:
    """Notes of a table: a column of its own in plain text; in a terminal, too narrow for that, footnotes."""

    def __init__(self, console: Console, table: Table) -> None:
        self._console = console
        self._numbers: dict[str, int] = {}
        self.columns = [table.notes] if table.notes and not console.is_terminal else []

    def mark(self, cell: Cell) -> Text:
        """What refers to the note: a number, or nothing where notes have a column."""
        if not cell.note or self.columns:
            return Text()
        return Text(f" [{self._numbers.setdefault(cell.note, len(self._numbers) + 1)}]")

    def cells(self, row: Row) -> list[Text]:
        """The notes of a row, where notes have a column."""
        return [_safe("; ".join(cell.note for cell in row.cells if cell.note)) for _ in self.columns]

    def print(self) -> None:
        """The notes by number, where they have no column."""
        for text, number in self._numbers.items():
            self._console.print(_safe(f"[{number}] {text}", "dim"))


def _safe(words: Words, style: Style = "") -> Text:
    """Text that holds nothing which a terminal would obey."""
    shown = Text()
    for piece in (words,) if isinstance(words, str) else words:
        span = Span(piece, style) if isinstance(piece, str) else piece
        shown.append(printable(span.text), _STYLES[span.style] or None)
    return shown
