"""Words of a document as rich's text."""

from rich.text import Text

from onnxsep.reporting.document import Span, Style, Words
from onnxsep.reporting.printable import printable

STYLES: dict[Style, str] = {"": "", "good": "green", "warning": "yellow", "dim": "dim"}


def safe(words: Words, style: Style = "") -> Text:
    """Text that holds nothing which a terminal would obey."""
    shown = Text()
    for piece in (words,) if isinstance(words, str) else words:
        span = Span(piece, style) if isinstance(piece, str) else piece
        shown.append(printable(span.text), STYLES[span.style] or None)
    return shown
