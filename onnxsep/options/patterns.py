"""Glob patterns on the names of Convs and other layers: ``--only``, ``--skip`` and ``--exclude``."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from onnxsep.errors import OptionError, spelled

_MOST = 3  # names that are proposed


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
                raise no_match(option, pattern, names, noun)


def no_match(option: str, pattern: str, names: Sequence[str], noun: str) -> OptionError:
    """The error for a pattern that matches none of the names: it says which ones may be meant."""
    near = _meant(pattern, names)
    some = ", ".join(map(repr, names[:3])) or f"the model has no {noun}"
    return OptionError(
        f"{spelled(option)} {pattern!r} matches the name of no {noun}"
        + (f", did you mean {' or '.join(map(repr, near))}?" if near else ";")
        + f" names here: {some}, ... (in a pattern, * ? and [ ] stand for other characters)"
    )


def _meant(pattern: str, names: Sequence[str]) -> list[str]:
    """Up to three names that hold the pattern's text, else those that are like it, as a whole or in their last part."""
    text = pattern.strip("*?").lower()
    if not text:
        return []
    if held := [name for name in names if text in name.lower()]:
        return held[:_MOST]
    found: list[str] = []
    for part in (str, _last_part):
        likes = {part(name).lower(): name for name in reversed(names)}
        found += [likes[like] for like in get_close_matches(text, likes, _MOST)]
    return list(dict.fromkeys(found))[:_MOST]


def _last_part(name: str) -> str:
    """Of a name with slashes, as exporters write the modules around a layer."""
    return name.rstrip("/").rpartition("/")[2]


def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a name; its brackets may also be the name's own, as in ``block[1]/*``."""
    return fnmatchcase(name, pattern) or ("[" in pattern and fnmatchcase(name, pattern.replace("[", "[[]")))
