"""Text from a model or a file on its way to a terminal or a log."""

_LONGEST = 400  # characters of a summary


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be seen: control characters, line ends, marks of direction.

    A terminal obeys some of them, and a line of its own may be a command to what reads the log.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shortened(text: str) -> str:
    """The text on one line, as :func:`printable` has it, without its middle where it is long."""
    shown = printable(text)
    half = _LONGEST // 2
    return shown if len(shown) <= _LONGEST else f"{shown[:half]} ... {shown[-half:]}"
