"""Documents as text: fitted to the width of a terminal, and elsewhere as wide as they need to be, without colour."""

import os
from io import StringIO
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from onnxsep.reporting.document import Cell, Document, Drawn, Heading, Line, Note, Row, Table
from onnxsep.reporting.document import plain as plain_words
from onnxsep.reporting.fitting import fitted
from onnxsep.reporting.printable import printable
from onnxsep.reporting.spans import STYLES, safe

_USUAL = 80  # columns of a terminal that does not say how many it has
_ENDLESS = 1 << 24  # columns where there is no terminal: lines are as long as they need to be


class _Console(Console):
    """Writes to its file, and leaves it to the caller what a closed pipe means.

    rich would exit with status 1 there, and in a notebook it would show tables in an output of their own.
    """

    def __init__(self, file: TextIO, width: int | None = None, height: int | None = None) -> None:
        terminal = file.isatty()  # FORCE_COLOR, which notebooks and CI set, makes no terminal of a string or a pipe
        super().__init__(
            file=file,
            highlight=False,
            emoji=False,
            width=width,
            height=height,
            force_terminal=terminal,
            force_jupyter=False,
        )

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(file: TextIO) -> Console:
    """A console as wide as the terminal that a file is, whatever its type; without end where it is none."""
    console = _Console(file)
    width = columns_of(file) if console.is_terminal else _ENDLESS
    return _Console(file, width, console.height)


def columns_of(file: TextIO) -> int:
    """Columns of a terminal. rich asks other streams before this one, and says 80 of a dumb terminal."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(file.fileno()).columns or _USUAL
    except (AttributeError, OSError, ValueError):  # a stream that only claims to be a terminal
        return _USUAL


def print_document(console: Console, document: Document) -> None:
    """Print a document; what a terminal would obey is escaped."""
    for block in document.blocks:
        if isinstance(block, Drawn):
            continue
        if console.is_terminal:
            for shown in fitted(block, console):
                console.print(shown)
        elif isinstance(block, Table):
            _print_table(console, block)
        else:
            console.file.write(f"{_line(block)}\n")


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


def _line(block: Heading | Line | Note) -> str:
    if isinstance(block, Heading):
        return printable(block.text)
    text = f"note: {block.text}" if isinstance(block, Note) else plain_words(block.words)
    return f"{'  ' * block.indent}{printable(text)}"


def _print_table(console: Console, table: Table) -> None:
    """A table with a column for the notes, or aligned lines."""
    if not table.framed:
        console.file.writelines(f"{'  ' * table.indent}{line}\n" for line in aligned(table))
        return
    shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        shown.add_column(safe(column.title), justify=column.align, no_wrap=True)
    if table.notes:
        shown.add_column(safe(table.notes), no_wrap=True)
    for row in table.rows:
        notes = Text("; ".join(printable(cell.note) for cell in row.cells if cell.note))
        cells = [safe(cell.words, cell.style) for cell in row.cells]
        shown.add_row(*cells, *([notes] if table.notes else []), style=STYLES[row.style])
    console.print(shown)
