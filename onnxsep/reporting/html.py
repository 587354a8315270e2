"""Documents as a fragment of HTML for notebooks: headings, paragraphs and tables, without styles of their own.

Names come from strangers' files: all text is escaped, and its dollars begin no formula (the classes keep MathJax out).
"""

from collections.abc import Iterator
from html import escape

from onnxsep.reporting.document import Block, Cell, Column, Document, Drawn, Heading, Note, Span, Table, Words, spread
from onnxsep.reporting.document import plain as plain_words
from onnxsep.reporting.printable import printable

MOST_ROWS = 300  # of a table; a notebook keeps what it shows
_RIGHT = ' style="text-align: right"'


def html(document: Document) -> str:
    """A document as a fragment of HTML."""
    blocks = "\n".join(line for block in document.blocks for line in _block(block))
    return f'<div class="onnxsep tex2jax_ignore mathjax_ignore">\n{blocks}\n</div>'


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Heading):
        yield f"<h4>{_text(block.text)}</h4>"
    elif isinstance(block, Note):
        yield _paragraph(f"note: {_text(block.text)}", block.indent)
    elif not isinstance(block, Drawn):
        yield _paragraph(_words(block.words), block.indent)


def _paragraph(inner: str, indent: int) -> str:
    return f'<p style="margin: 0 0 0 {2 * indent}em">{inner}</p>'


def _table(table: Table) -> Iterator[str]:
    """Details stand below the last cell."""
    table = spread(table)
    yield "<table>"
    titles = (f"<th{_align(column)}>{_text(column.title)}</th>" for column in table.columns)
    yield f"<thead><tr>{''.join(titles)}</tr></thead>"
    yield "<tbody>"
    for row in table.rows[:MOST_ROWS]:
        cells = [*map(_cell, row.cells)]
        cells[-1] += "".join(f"<br>{_text(detail)}" for detail in row.details)
        shown = (f"<td{_align(column)}>{cell}</td>" for column, cell in zip(table.columns, cells, strict=True))
        yield f"<tr>{''.join(shown)}</tr>"
    yield "</tbody>"
    yield "</table>"
    if len(table.rows) > MOST_ROWS:
        yield _paragraph(f"... and {len(table.rows) - MOST_ROWS:,} more rows", 0)


def _align(column: Column) -> str:
    return _RIGHT if column.align == "right" else ' style="text-align: left"'


def _cell(cell: Cell) -> str:
    text = plain_words(cell.words)
    inner = text.lstrip(" ")
    return "&nbsp;" * (len(text) - len(inner)) + _text(inner)


def _words(words: Words) -> str:
    """A line; its important pieces are bold."""
    shown = ""
    for piece in (words,) if isinstance(words, str) else words:
        bold = isinstance(piece, Span) and piece.style not in ("", "dim")
        text = _text(plain_words((piece,)))
        shown += f"<b>{text}</b>" if bold else text
    return shown


def _text(text: str) -> str:
    return escape(printable(text))
