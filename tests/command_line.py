"""The command line without a process of its own: ``main`` with these arguments, its streams caught.

A process costs over a second before it does anything, so tests start one only where that is what they are about:
signals, terminals, closed or full streams, limits of the system.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxsep.cli import main, options
from onnxsep.running.workers import any_left

_WAITS = 100
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run(*arguments: object, cwd: Path | None = None, columns: int = 200) -> subprocess.CompletedProcess[str]:
    """What ``onnxsep`` with these arguments prints, and its exit status."""
    for _ in range(_WAITS):  # an error ends the process at once beside runs that nobody waits for any more
        if not any_left():
            break
        time.sleep(0.1)
    return called(main, "onnxsep", *arguments, cwd=cwd, columns=columns)


def called(
    function: Callable[[], object], *argv: object, cwd: Path | None = None, columns: int = 200
) -> subprocess.CompletedProcess[str]:
    """What a program's function prints that finds these arguments, its own name among them, and its exit status."""
    given = [str(argument) for argument in argv]
    buffers = [io.BytesIO() for _ in range(2)]
    streams = [io.TextIOWrapper(buffer, encoding="utf-8", write_through=True) for buffer in buffers]
    status: object = 0
    with _as_found(given, cwd, columns):
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                function()
        except SystemExit as ended:
            status = ended.code
    texts = [buffer.getvalue().decode() for buffer in buffers]
    return subprocess.CompletedProcess(given[1:], status if isinstance(status, int) else int(bool(status)), *texts)


@contextlib.contextmanager
def _as_found(argv: list[str], cwd: Path | None, columns: int) -> Iterator[None]:
    """What a process of its own would have to itself: arguments, folder, environment, handlers, --debug."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    before, folder, width = sys.argv, Path.cwd(), os.environ.get("COLUMNS")
    sys.argv, os.environ["COLUMNS"] = argv, str(columns)
    try:
        if cwd is not None:
            os.chdir(cwd)
        yield
    finally:
        os.chdir(folder)
        sys.argv = before
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
        for number, handler in handlers.items():
            signal.signal(number, handler)
        options._debug = False
