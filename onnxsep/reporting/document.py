"""A report as a document: what text, Markdown and, later, HTML are written from.

The function of a command (``onnxsep.rewriting.render.rewrite_document``, ...) makes it of the command's record. All
text in it is raw, also what comes from a stranger's file: a writer escapes what its format would obey.
"""

from dataclasses import dataclass
from typing import Literal

Style = Literal["", "good", "warning", "dim"]


@dataclass(frozen=True)
class Span:
    """A piece of text that is shown in another way than what stands beside it."""

    text: str
    style: Style


Words = str | tuple[str | Span, ...]
"""Text, in pieces where it is shown in several ways."""


def plain(words: Words) -> str:
    """The text alone."""
    if isinstance(words, str):
        return words
    return "".join(piece if isinstance(piece, str) else piece.text for piece in words)


@dataclass(frozen=True)
class Heading:
    """The title of a part."""

    text: str


@dataclass(frozen=True)
class Line:
    """A sentence or two; ``indent`` counts how deep it stands below the lines before it."""

    words: Words
    indent: int = 0


@dataclass(frozen=True)
class Note:
    """What should be known besides."""

    text: str
    indent: int = 0


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    align: Literal["left", "right"] = "left"
    spare: int = 0
    """How soon it is left out of a terminal that is too narrow: the largest number goes first, 0 never goes."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    words: Words = ""
    value: float | None = None
    """The number that it shows, where it shows one."""
    style: Style = ""
    narrow: Words | None = None
    """What it shows where there is little room."""
    note: str = ""
    """What it refers to: a footnote, or the text in the table's column of notes."""
    narrow_note: str = ""
    """A footnote to what it shows where there is little room."""


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: tuple[Cell, ...]
    style: Style = ""
    mark: str = ""
    """One character before the first cell."""
    details: tuple[str, ...] = ()
    """Lines that belong below it; in a terminal, footnotes."""


@dataclass(frozen=True)
class Table:
    """A table: each row has a cell for each column."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: str = ""
    """Title of the column in which the notes of its cells stand, where they are no footnotes."""
    framed: bool = True
    """False: outside a terminal it is indented, with marks before its rows and details below them."""
    indent: int = 0
    alike: bool = False
    """Whether all columns but the first show the same of several things: where there is no room for all of these, they
    are shown in several tables."""


def spread(table: Table) -> Table:
    """The same table with marks and notes in columns of their own, for writers that have no other place for them."""
    marks = any(row.mark for row in table.rows)
    notes = bool(table.notes) and any(cell.note for row in table.rows for cell in row.cells)
    columns = (*(Column(""),) * marks, *table.columns, *(Column(table.notes),) * notes)
    rows = []
    for row in table.rows:
        note = Cell("; ".join(cell.note for cell in row.cells if cell.note))
        cells = (*(Cell(row.mark),) * marks, *row.cells, *(note,) * notes)
        rows.append(Row(cells, row.style, details=row.details))
    return Table(columns, tuple(rows), framed=table.framed, indent=table.indent)


@dataclass(frozen=True)
class Series:
    """Named numbers in their order, which a writer that draws can plot; the others leave them out.

    Attributes:
        name: What the numbers are.
        values: None where there is none.
        labels: What each of them belongs to; empty: they are counted from 1.
    """

    name: str
    values: tuple[float | None, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """A point of a curve, and what is told of it."""

    x: float
    y: float
    words: str = ""


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: What it is of.
        points: In their order.
        chosen: The point that was taken, which need not lie on it.
    """

    name: str
    points: tuple[Point, ...]
    chosen: Point | None = None


@dataclass(frozen=True)
class Curves:
    """Curves of one kind, which a writer that draws can plot, each for itself; the others leave them out.

    Attributes:
        name: What they show.
        across: What stands on the axis to the right.
        up: What stands on the axis upwards.
        curves: All of them.
        logarithmic: Whether the axis upwards may be logarithmic, where values are far apart; those that are not
            above 0 are then shown as the smallest that is.
    """

    name: str
    across: str
    up: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False


Drawn = Series | Curves
"""What only writers show that draw."""

Block = Heading | Line | Note | Table | Drawn


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: What it is about, for formats that have a title; a terminal shows the command there.
        blocks: Its parts, from top to bottom.
    """

    title: str
    blocks: tuple[Block, ...]
