"""Documents as Markdown, as GitHub and most others read it: a title, paragraphs, lists and tables.

Names come from strangers' files, so that nothing in a text may act as Markdown or HTML: what could is escaped, and no
address becomes a link.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from onnxsep.model.paths import Kind
from onnxsep.reporting.document import (
    Block,
    Cell,
    Document,
    Drawn,
    Heading,
    Line,
    Note,
    Span,
    Table,
    Words,
    plain,
    spread,
)
from onnxsep.reporting.printable import printable

HEADER = "<!-- report of onnxsep -->"
_ENTITIES = {"&": "&amp;", "<": "&lt;"}
# An underscore within a word is no emphasis; an address, or what begins with www., would become a link.
_ACTS = re.compile(r"[&<\\`*#\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)
# What begins a list, a quotation or a rule where it begins a line.
_BEGINS = re.compile(r"(?=>|[-+](?:[ -]|$))|\d{1,9}(?=[.)](?: |$))")


def markdown(document: Document) -> str:
    """A document as Markdown."""
    lines = [HEADER, "", f"# {_text(document.title)}"]
    depth = 0  # of the list item before
    for block in document.blocks:
        if isinstance(block, Drawn):
            continue
        if isinstance(block, Note) or (isinstance(block, Line) and block.indent):
            lines += [] if depth else [""]
            depth = min(max(block.indent, 1), depth + 1)
            lines.append(f"{'  ' * (depth - 1)}- {_item(block)}")
        else:
            depth = 0
            lines += ["", *_block(block)]
    return "\n".join(lines) + "\n"


def is_markdown_report(path: Path) -> bool:
    """Whether a file is one of these."""
    try:
        with path.open("rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()
    except OSError:
        return False


MARKDOWN = Kind("md", "Markdown report of onnxsep", is_markdown_report, option=True)


def _item(block: Line | Note) -> str:
    return f"note: {_text(block.text)}" if isinstance(block, Note) else _words(block.words)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"## {_text(block.text)}"
    elif isinstance(block, Line):
        yield _words(block.words)
    elif isinstance(block, Table):
        yield from _table(block)


def _table(table: Table) -> Iterator[str]:
    """A line for each row; details go below the last cell."""
    table = spread(table)
    yield _row([_text(column.title) for column in table.columns])
    yield _row(["---:" if column.align == "right" else "---" for column in table.columns])
    for row in table.rows:
        cells = [*map(_cell, row.cells)]
        cells[-1] += "".join(f"<br>{_text(detail)}" for detail in row.details)
        yield _row(cells)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = plain(cell.words)
    inner = text.lstrip(" ")
    return "&nbsp;" * (len(text) - len(inner)) + _text(inner)


def _words(words: Words) -> str:
    """A line; its important pieces are bold."""
    pieces = (words,) if isinstance(words, str) else words
    shown = ""  # four spaces at its start would make it code
    for piece in pieces:
        bold = isinstance(piece, Span) and piece.style not in ("", "dim")
        shown += f"**{_text(plain((piece,)))}**" if bold else _text(plain((piece,)))
    shown = shown.lstrip(" ")
    return _BEGINS.sub(lambda found: f"{found[0]}\\", shown, count=1) if _BEGINS.match(shown) else shown


def _text(text: str) -> str:
    """Text in which nothing acts, within a line or a cell."""
    return _ACTS.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))
