"""Telling a caller how far the work is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

from onnxsep.options.lazy import loaded

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

_LINE = "onnxsep.reporting.progress:progress_line"  # what needs rich, which nothing imports before it is asked for


class Line(Protocol):
    """What shows the progress, and not only of what is done but also of what begins."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """So many of so many are done."""

    def begin(self, what: str, done: int, total: int) -> None:
        """This begins; of 1 the parts are not counted."""

    def note(self, text: str) -> None:
        """This is worth a line of its own, which stays."""


def announce(progress: Progress | None, what: str, done: int = 0, total: int = 1) -> None:
    """Tell a line what begins; a caller's own function is only told what is done."""
    begin = getattr(progress, "begin", None)
    if begin is not None:
        begin(what, done, total)


def note(progress: Progress | None, text: str) -> None:
    """Let a line of its own say something that is worth to be read; a caller's own function is not told."""
    say = getattr(progress, "note", None)
    if say is not None:
        say(text)


@dataclass(frozen=True)
class _Under:
    heading: str
    progress: Progress

    def __call__(self, what: str, done: int, total: int) -> None:
        self.progress(f"{self.heading}: {what}", done, total)

    def begin(self, what: str, done: int, total: int) -> None:
        announce(self.progress, f"{self.heading}: {what}", done, total)

    def note(self, text: str) -> None:
        note(self.progress, f"{self.heading}: {text}")


def under(heading: str, progress: Progress | None) -> Progress | None:
    """What tells the same below a heading."""
    return None if progress is None else _Under(heading, progress)


def callback(progress: object) -> Progress | None:
    """Whom to tell, where that is a function."""
    return cast(Progress, progress) if callable(progress) else None


@contextmanager
def telling(progress: object) -> Iterator[object]:
    """What to tell in the place of ``True``: the line of a terminal or a notebook, where there is one."""
    if progress is not True:
        yield progress
        return
    with loaded(_LINE)() as line:
        yield line
