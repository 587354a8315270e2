"""Reports as one self-contained page of HTML: for a browser, a phone, a mail or a printer.

The page asks for nothing from anywhere: its style and script stand in it, and a policy forbids all else. Names come
from strangers' files, so the template escapes every text. Without its script a page shows the same, unsorted.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from onnxsep.model.paths import PAGE_HEADER, Kind, is_page
from onnxsep.reporting.commands import document_of, summary_of
from onnxsep.reporting.document import (
    Block,
    Curves,
    Heading,
    Line,
    Note,
    Series,
    Span,
    Table,
    Words,
    plain,
    spread,
)
from onnxsep.reporting.drawing import drawings
from onnxsep.reporting.printable import printable
from onnxsep.reporting.records import Report

PAGE = Kind("html", "HTML report of onnxsep", is_page, option=True)
_FILTERED = 8  # rows; a table of more can be filtered


@dataclass(frozen=True)
class _Bar:
    label: str
    text: str
    share: float


def page(report: Report) -> str:
    """A report as a whole HTML document.

    Args:
        report: Of any command.
    """
    document = document_of(report)
    return PAGE_HEADER + _template().render(
        title=printable(document.title),
        summary=[printable(line) for line in summary_of(report).splitlines()],
        blocks=[_shown(block) for block in document.blocks],
        version=report.onnxsep,
        filtered=_FILTERED,
    )


@cache
def _template() -> Template:
    """The template; what it would show of something that is not there is an error."""
    folder = Path(__file__).with_name("templates")
    loader = FileSystemLoader(folder)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["pieces"] = _pieces
    environment.filters["words"] = lambda words: printable(plain(words))
    return environment.get_template("page.html")


def _shown(block: Block) -> dict[str, object]:
    """A block as the template takes it."""
    if isinstance(block, Table):
        return {"kind": "table", "table": spread(block)}
    if isinstance(block, Series):
        return {"kind": "series", "name": printable(block.name), "bars": _bars(block)}
    if isinstance(block, Curves):
        axes = {"across": printable(block.across), "up": printable(block.up)}
        return {"kind": "curves", "name": printable(block.name), "drawings": drawings(block), **axes}
    if isinstance(block, Heading):
        return {"kind": "heading", "text": printable(block.text)}
    if isinstance(block, Note):
        return {"kind": "note", "text": printable(block.text), "indent": block.indent}
    assert isinstance(block, Line)
    return {"kind": "line", "words": block.words, "indent": block.indent}


def _bars(series: Series) -> list[_Bar]:
    """Numbers as bars, the largest as wide as there is room."""
    known = [abs(value) for value in series.values if value is not None and value == value]
    most = max(known, default=0.0) or 1.0
    bars = []
    for place, value in enumerate(series.values):
        label = series.labels[place] if place < len(series.labels) else str(place + 1)
        if value is None or value != value:
            bars.append(_Bar(printable(label), "", 0.0))
        else:
            text = f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:.4g}"
            bars.append(_Bar(printable(label), text, min(abs(value) / most, 1.0)))
    return bars


def _pieces(words: Words) -> list[tuple[str, str]]:
    """A text in its pieces, each with its style."""
    given = (words,) if isinstance(words, str) else words
    return [(printable(plain((piece,))), piece.style if isinstance(piece, Span) else "") for piece in given]
