"""Glob patterns on the names of Convs and other layers: ``--only``, ``--skip`` and ``--exclude``."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnxsep.errors import OptionError, spelled


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as several."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def left_out(name: str, only: Sequence[str], skip: Sequence[str]) -> str:
    """Why the user's patterns leave out what has this name; empty where they do not."""
    if only and not any(matches(name, pattern) for pattern in only):
        return f"not among {spelled('only')}"
    matched = next((pattern for pattern in skip if matches(name, pattern)), None)
    return "" if matched is None else f"left out by {spelled('skip')} {matched!r}"


def check_patterns(names: Sequence[str], only: Sequence[str], skip: Sequence[str], noun: str) -> None:
    """Refuse a pattern that matches no name.

    Args:
        names: of all that could be meant.
        only: patterns of ``--only``.
        skip: patterns of ``--skip``.
        noun: what has these names.

    Raises:
        OptionError: there is one.
    """
    for option, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                some = ", ".join(map(repr, names[:3])) or f"the model has no {noun}"
                raise OptionError(
                    f"{spelled(option)} {pattern!r} matches the name of no {noun}; names here: {some}, ... "
                    "(in a pattern, * ? and [ ] stand for other characters)"
                )


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a name; its brackets may also be the name's own, as in ``block[1]/*``."""
    return fnmatchcase(name, pattern) or ("[" in pattern and fnmatchcase(name, pattern.replace("[", "[[]")))
