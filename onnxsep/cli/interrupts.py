"""Ctrl-C, SIGTERM and SIGHUP: two seconds after the first of them the command is gone, with nothing half-written.

The first signal raises KeyboardInterrupt in the main thread, which removes what is not finished and says what is left.
Python raises it only when the call of C code is over that the main thread is in, and that can take minutes (linear
algebra, a run of a model). So a thread waits beside it, which Python's own C code wakes up as soon as a signal comes
(``signal.set_wakeup_fd``). If the process is still there after a moment, this thread removes what is not finished, and
ends it. Later signals change nothing.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from onnxsep.model.files import abandon

_GRACE = 1.2  # seconds for the main thread
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_DUMB = ("dumb", "unknown")  # terminals without a progress bar
_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"  # a progress bar has hidden it


class _State:
    """What has happened so far."""

    def __init__(self) -> None:
        self.first: int | None = None  # signal
        self.raised = False
        self.words: list[Callable[[], str]] = []  # what to say, the innermost last
        self.told = False


_state = _State()


def status() -> int:
    """The exit status of an interrupted command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + int(_state.first or signal.SIGINT)


def ignore_more() -> None:
    """An interrupt is being obeyed: another signal must not disturb that."""
    _state.raised = _state.first is not None


def say_nothing() -> None:
    """Another process says it."""
    _state.told = True


@contextmanager
def saying(words: Callable[[], str]) -> Iterator[None]:
    """End in one line and the right exit status where an interrupt comes.

    Args:
        words: say what was written, and how to go on.
    """
    _state.words.append(words)
    try:
        yield
    except KeyboardInterrupt:
        _tell()
        raise typer.Exit(status()) from None
    finally:
        _state.words.pop()


@contextmanager
def handled() -> Iterator[None]:
    """Obey signals as said above; what the caller ignores (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_watch, args=(reader, numbers), daemon=True).start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _interrupt) for number in numbers}
    previous_hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook
        if _state.first is not None:
            _tell()
            end(status())
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        writer.close()  # which ends the thread


def end(code: int) -> None:
    """End the process now, whatever its threads are in."""
    abandon()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or full
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _state.first = _state.first or number
    if not _state.raised:
        _state.raised = True
        raise KeyboardInterrupt


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    """An interrupt that comes in a finaliser is lost there; the thread that waits ends the process, so say no more."""
    if not (_state.raised and isinstance(args.exc_value, KeyboardInterrupt)):
        sys.__unraisablehook__(args)


def _watch(reader: socket.socket, numbers: Collection[int]) -> None:
    """Wait for a signal, give the main thread time to stop, and end the process where it does not."""
    with reader:
        while number := reader.recv(1):
            if number[0] in numbers:
                break
        else:
            return
    _state.first = _state.first or number[0]
    time.sleep(_GRACE)
    abandon()
    with contextlib.suppress(Exception):
        _tell()
    os._exit(status())


def _tell() -> None:
    if _state.told:
        return
    _state.told = True
    words = _state.words[-1]() if _state.words else ""
    bar = _SHOW_CURSOR if os.isatty(2) and os.environ.get("TERM") not in _DUMB else b""
    # Not by a stream: the main thread may hold its lock.
    text = f"onnxsep: interrupted{'; ' if words else ''}{words}\n"
    os.write(2, bar + text.encode("utf-8", "backslashreplace"))
