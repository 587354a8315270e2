"""One line that says how far a run is: in a terminal, on standard error, or in a notebook; nowhere else.

It is drawn anew in its place, what is printed meanwhile stands above it, and it is gone in the end. A dumb terminal,
which cannot draw anew, gets none.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from onnxsep.options.progress import Line
from onnxsep.reporting.printable import printable
from onnxsep.reporting.text import columns_of

_BAR, _WITH_BAR = 16, 80  # columns of the bar, and of a terminal that has room for one
_PER_SECOND = 5  # times that it is drawn


@contextmanager
def progress_line() -> Iterator[Line | None]:
    """What to tell how far the work is, while the line is shown; None where there is nothing to show it in."""
    console = Console(stderr=True, emoji=False, highlight=False)
    if console.is_jupyter:
        if find_spec("ipywidgets") is None:  # which rich needs there
            with _in_a_cell(Clock()) as line:
                yield line
            return
    else:
        if not console.is_terminal or console.is_dumb_terminal:
            yield None
            return
        if (columns := columns_of(sys.stderr)) != console.width:  # rich asks other streams first
            console.width = columns
    clock = Clock()
    bars = [BarColumn(_BAR, table_column=Column(no_wrap=True))] if console.width >= _WITH_BAR else []
    to_terminal = sys.stdout is not None and sys.stdout.isatty()  # what goes to a file or pipe is not the terminal's
    with Progress(
        *(*bars, _Count(), _Times(clock), _What()),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=_PER_SECOND,
        redirect_stdout=to_terminal,
    ) as bar:
        yield _Line(bar, clock)


@contextmanager
def _in_a_cell(clock: "Clock") -> Iterator[Line]:
    """The line in the output of a notebook's cell, which needs nothing but IPython."""
    line = _Cell(clock)
    try:
        yield line
    finally:
        line.show("")


class _Cell:
    def __init__(self, clock: "Clock") -> None:
        from IPython.display import display

        self._clock, self._drawn = clock, -1.0
        self._shown = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        self._clock.tell(done, total)
        if self._clock.elapsed - self._drawn >= 1 / _PER_SECOND:
            self._drawn = self._clock.elapsed
            count = f"{done}/{total}" if total > 1 else ""
            self.show("  ".join(part for part in (count, _times(self._clock), printable(what)) if part))

    begin = __call__

    def note(self, text: str) -> None:
        from IPython.display import display

        display({"text/plain": printable(text)}, raw=True)

    def show(self, text: str) -> None:
        self._shown.update({"text/plain": text}, raw=True)


class _Line:
    def __init__(self, bar: Progress, clock: "Clock") -> None:
        self._bar, self._clock = bar, clock
        self._task = bar.add_task("beginning", total=None)

    def __call__(self, what: str, done: int, total: int) -> None:
        self._clock.tell(done, total)
        self._bar.update(self._task, description=printable(what), completed=done, total=total)

    begin = __call__

    def note(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, soft_wrap=True)


@dataclass
class Clock:
    """How long a run takes so far, and how long what it does now will take.

    Attributes:
        now: Tells the time, in seconds.
    """

    now: Callable[[], float] = time.monotonic
    _begun: float = field(init=False)
    _since: tuple[float, int] = field(init=False)  # when this work began, and how much was done then
    _last: tuple[float, int, int] = field(init=False)  # when how much of how much was done

    def __post_init__(self) -> None:
        self._begun = self.now()
        self._since, self._last = (self._begun, 0), (self._begun, 0, 0)

    def tell(self, done: int, total: int) -> None:
        """So much is done; fewer than before, or of another number, is other work."""
        now = self.now()
        at, before, of = self._last
        if total != of or done < before:
            self._since = (
                (at, 0) if done == 1 else (now, done)
            )  # the first of it is done: it began after what was before
        self._last = (now, done, total)

    @property
    def elapsed(self) -> float:
        """Seconds of the run."""
        return self.now() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds that are left of what is being done, as fast as it was so far; None where that cannot be known."""
        (since, first), (at, done, total) = self._since, self._last
        if total <= 1 or done >= total or done <= first:
            return None
        return max((at - since) * (total - done) / (done - first) - (self.now() - at), 0.0)


class _Count(ProgressColumn):
    """How many of how many, where there are several."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None or task.total <= 1 else f"{int(task.completed)}/{int(task.total)}")


class _What(ProgressColumn):
    """What is being done, without its middle where there is no room: the end of a layer's name tells most."""

    def __init__(self) -> None:
        super().__init__(Column(ratio=1, no_wrap=True))

    def render(self, task: Task) -> RenderableType:
        return _Shortened(task.description)


@dataclass(frozen=True)
class _Shortened:
    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width
        yield Text(self.text if cell_len(self.text) <= room else shortened(self.text, room), no_wrap=True)


def shortened(text: str, room: int) -> str:
    """A text without its middle, in so many columns."""
    first = chop_cells(text, max(room // 2, 1))[0]
    last = ""
    for char in reversed(text):
        if cell_len(first) + 1 + cell_len(char + last) > room:
            break
        last = char + last
    return f"{first}\u2026{last}"


class _Times(ProgressColumn):
    """How long the run takes, and how long it will take."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Column(no_wrap=True))
        self._clock = clock

    def render(self, task: Task) -> Text:
        return Text(_times(self._clock))


def _times(clock: Clock) -> str:
    left = clock.left
    return duration(clock.elapsed) + ("" if left is None else f", {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds as ``7 s``, ``1:07`` or ``1:02:07``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
