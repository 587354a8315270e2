"""Blocks of a document for a terminal: no line is wider than it is, no figure is cut, and every row stays.

Lines go on below, two columns further to the right. The rows of a table are on one line each, in the first of these
forms that there is room for: as it is; with its titles on several lines; with short cells; with some of its columns at
a time, where these show the same of several things; without the columns that it can spare, which are named below. Else
each row is a card: its name, then its figures with their titles. Notes stand below, by number.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from onnxsep.reporting.document import Column, Drawn, Heading, Line, Note, Row, Table
from onnxsep.reporting.spans import STYLES, safe

_GAP = 2  # between the columns of a table
_TITLE = 20  # columns that a word of a title may have; longer ones are folded
_STEP = "  "  # how far a line is indented below the one that it belongs to
_ROOMY = 50  # columns of a terminal that has room for two figures, which then stay on one line
_BEFORE_AND_AFTER = re.compile(r"(?<!-> )(?<!\S)\S{1,18} -> \S{1,18}(?!\S)(?! ->)")
_GLUE = "\ue000"  # in the place of a space that ends no line; no text holds what is not printable
_NARROWEST = 20  # columns of a terminal below which nothing is indented


def fitted(block: Heading | Line | Note | Drawn | Table, console: Console) -> Iterator[RenderableType]:
    """What to print of a block, line by line or as a table."""
    if isinstance(block, Heading):
        yield from _lines(safe(block.text), console)
    elif isinstance(block, Line):
        yield from _lines(safe(block.words), console, block.indent)
    elif isinstance(block, Note):
        yield from _lines(safe(f"note: {block.text}"), console, block.indent)
    elif isinstance(block, Table):
        yield from _table(block, range(len(block.columns)), console)


def _lines(words: Text, console: Console, indent: int = 0) -> Iterator[Text]:
    """A text that goes on in lines further to the right."""
    step = _STEP if console.width >= _NARROWEST else ""
    lead = step * indent
    if len(lead) + words.cell_len <= console.width:
        yield Text(lead).append_text(words)
        return
    if console.width >= _ROOMY:
        words.plain = _BEFORE_AND_AFTER.sub(lambda found: found[0].replace(" ", _GLUE), words.plain)
    for line in words.wrap(console, max(console.width - len(lead) - len(step), 1), overflow="fold"):
        line.plain = line.plain.replace(_GLUE, " ")
        line.rstrip()
        yield Text(lead).append_text(line)
        lead = step * (indent + 1)


@dataclass
class _Notes:
    """Footnotes by number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def marked(self, shown: Text, note: str) -> Text:
        """A text with the number of its note behind it."""
        return shown.append(f" [{self.numbers.setdefault(note, len(self.numbers) + 1)}]") if note else shown

    def print(self, console: Console, indent: int) -> Iterator[Text]:
        """All of them."""
        for text, number in self.numbers.items():
            yield from _lines(safe(f"[{number}] {text}", "dim"), console, indent)


@dataclass(frozen=True)
class _Form:
    """How a table is shown.

    Attributes:
        columns: Which of its columns, by number.
        narrow: Whether cells show their short form.
        stacked: Whether titles may take several lines.
    """

    columns: tuple[int, ...]
    narrow: bool = False
    stacked: bool = False


def _table(table: Table, columns: Sequence[int], console: Console) -> Iterator[RenderableType]:
    indent = len(_STEP) * table.indent
    width = _Widths(table, console)
    fitting = (form for form in _forms(table, columns) if width(form) <= console.width - indent)
    if (form := next(fitting, None)) is None:
        yield from _cards(table, columns, console)
        return
    notes = _Notes()
    yield Padding(_shown(table, form, notes, console), (0, 0, 0, indent), expand=False)
    yield from notes.print(console, table.indent)
    gone = [number for number in columns if number not in form.columns]
    if gone and table.alike:
        yield from _table(table, (0, *gone), console)
    elif gone:
        names = ", ".join(table.columns[number].title for number in gone)
        words = safe(f"no room for: {names} (a wider terminal, or a pipe, shows all columns)", "dim")
        yield from _lines(words, console, table.indent)


def _forms(table: Table, columns: Sequence[int]) -> Iterator[_Form]:
    """All forms in the order in which they are preferred."""
    for narrow in (False, True):
        for stacked in (False, True):
            yield _Form(tuple(columns), narrow, stacked)
    if table.alike:
        for count in range(len(columns) - 1, 1, -1):
            yield _Form(tuple(columns[:count]), narrow=True, stacked=True)
    for least in sorted({column.spare for column in table.columns if column.spare}, reverse=True):
        yield _Form(tuple(one for one in columns if table.columns[one].spare < least), narrow=True, stacked=True)


class _Widths:
    """How many columns of the terminal a table takes in each form. Cells are measured once: there may be thousands."""

    def __init__(self, table: Table, console: Console) -> None:
        self._table, self._console = table, console
        self._cells: dict[bool, list[int]] = {}  # the widest cell of each column; with short cells or not

    def __call__(self, form: _Form) -> int:
        if form.narrow not in self._cells:
            self._cells[form.narrow] = self._widest(form.narrow)
        cells = self._cells[form.narrow]
        widths = [1] if any(row.mark for row in self._table.rows) else []
        for number in form.columns:
            title = _title(self._table, number, form, cells[number], self._console).plain.split("\n")
            widths.append(max(cells[number], *map(cell_len, title)))
        return sum(widths) + _GAP * (len(widths) - 1)

    def _widest(self, narrow: bool) -> list[int]:
        form, notes = _Form(tuple(range(len(self._table.columns))), narrow), _Notes()
        rows = [[text.cell_len for text in _texts(self._table, row, form, notes)] for row in self._table.rows]
        return [max(widths) for widths in zip(*rows, strict=True)] or [0] * len(self._table.columns)


def _shown(table: Table, form: _Form, notes: _Notes, console: Console) -> RichTable:
    """A table whose rows have one line each."""
    table = _some(table, form)
    rows = [_texts(table, row, form, notes) for row in table.rows]
    marks = any(row.mark for row in table.rows)
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    if marks:
        shown.add_column(no_wrap=True)
    for place, number in enumerate(form.columns):
        title = _title(table, number, form, max((texts[place].cell_len for texts in rows), default=0), console)
        shown.add_column(title, justify=table.columns[number].align, vertical="bottom", no_wrap=True)
    for row, texts in zip(table.rows, rows, strict=True):
        shown.add_row(*([Text(row.mark)] if marks else []), *texts, style=STYLES[row.style])
    return shown


def _some(table: Table, form: _Form) -> Table:
    """A table without the rows of which these of several columns show nothing."""
    if len(form.columns) == len(table.columns) or not table.alike:
        return table
    shown = (row for row in table.rows if any(row.cells[number].words for number in form.columns[1:]))
    return replace(table, rows=tuple(shown))


def _title(table: Table, number: int, form: _Form, widest: int, console: Console) -> Text:
    """A title, on as many lines as keep its column as narrow as its cells where that is wanted."""
    title = safe(table.columns[number].title)
    if not form.stacked:
        return title
    longest = max(map(cell_len, title.plain.split()), default=0)
    return Text("\n").join(title.wrap(console, max(widest, min(longest, _TITLE), 1), overflow="fold"))


def _texts(table: Table, row: Row, form: _Form, notes: _Notes) -> list[Text]:
    """The cells of a row; its details are a note to its name."""
    head, found = _head(table.columns), []
    for number in form.columns:
        cell = row.cells[number]
        short = cell.narrow if form.narrow else None
        text = safe(cell.words if short is None else short, cell.style)
        if number == head:
            text = notes.marked(text, "; ".join(row.details))
        found.append(notes.marked(notes.marked(text, cell.note), "" if short is None else cell.narrow_note))
    return found


def _head(columns: Sequence[Column]) -> int:
    """The column that names the rows."""
    named = (number for number, column in enumerate(columns) if column.align == "left" and not column.spare)
    return next(named, 0)


def _cards(table: Table, columns: Sequence[int], console: Console) -> Iterator[Text]:
    """Each row as its name, and its figures below; the same figures stand below each other in all cards."""
    notes, head = _Notes(), _head(table.columns)
    room = max(console.width - len(_STEP) * (table.indent + 1), 1)
    forms = [_card_form(table, number, room) for number in columns if number != head]
    widths = [max((pair.cell_len for pair in _pairs(table, form, _Notes())), default=0) for form in forms]
    names = [_texts(table, row, _Form((head,)), notes)[0] for row in table.rows]
    figures = [_pairs(table, form, notes) for form in forms]
    for number, (row, name) in enumerate(zip(table.rows, names, strict=True)):
        lines = [Text()]
        for pairs, width in zip(figures, widths, strict=True):
            if lines[-1] and lines[-1].cell_len + width > room:
                lines.append(Text())
            lines[-1].append_text(pairs[number]).pad_right(max(width - pairs[number].cell_len, 0) + len(_STEP))
        yield from _lines(
            Text(f"{row.mark} " if row.mark else "", style=STYLES[row.style]).append_text(name), console, table.indent
        )
        for line in lines:
            line.rstrip()
            if line:
                line.style = STYLES[row.style]
                yield from _lines(line, console, table.indent + 1)
    yield from notes.print(console, table.indent)


def _card_form(table: Table, number: int, room: int) -> _Form:
    """One column of a card: with short cells where there is no room for the others."""
    form = _Form((number,))
    fits = all(pair.cell_len <= room for pair in _pairs(table, form, _Notes()))
    return form if fits else replace(form, narrow=True)


def _pairs(table: Table, form: _Form, notes: _Notes) -> list[Text]:
    """The title and the cell of each row, in one column; nothing where the cell is empty."""
    title = table.columns[form.columns[0]].title
    cells = (_texts(table, row, form, notes)[0] for row in table.rows)
    return [safe(title, "dim").append(" ").append_text(cell) if cell else cell for cell in cells]
