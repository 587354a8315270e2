"""A pseudo-terminal of a given width: what a program writes to it, and what then stands on its screen."""

import contextlib
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from command_line import _as_found
from rich.cells import cell_len

from onnxsep.cli import main

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CURSOR = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|[\r\n]|[^\r\n\x1b]+")


class Terminal:
    """What was written to a terminal."""

    def __init__(self) -> None:
        self.written = b""

    @property
    def text(self) -> str:
        """All that was written, without colours."""
        return ESCAPES.sub("", self.written.decode()).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.splitlines()

    @property
    def widest(self) -> int:
        """Columns of the widest line that was written."""
        return max((cell_len(line) for line in re.split(r"[\r\n]+", ESCAPES.sub("", self.written.decode()))), default=0)

    def screen(self) -> list[str]:
        """The lines that are on the screen in the end, for a terminal that has room for all of them."""
        lines, row, column = [""], 0, 0
        for found in _CURSOR.finditer(self.written.decode()):
            what = found[0]
            if what == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif what == "\r":
                column = 0
            elif found[2] == "A":
                row = max(row - int(found[1] or 1), 0)
            elif found[2] == "K":
                lines[row], column = ("", column) if found[1] == "2" else (lines[row][:column], column)
            elif found[2] is None:
                lines[row] = lines[row][:column].ljust(column) + what + lines[row][column + len(what) :]
                column += len(what)
            else:
                assert found[2] in "mhlG", what  # colours, and whether the cursor is seen
        return [line.rstrip() for line in lines]


@contextlib.contextmanager
def terminal(columns: int, term: str = "xterm-256color") -> Iterator[tuple[TextIO, Terminal]]:
    """A file that is a terminal, and what is written to it, complete behind the block."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals exist on POSIX only")
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    shown = Terminal()

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while data := os.read(ours, 65536):
                shown.written += data

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TERM", term)
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patched.delenv(name, raising=False)
        with open(theirs, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            yield file, shown
    reader.join(10)
    os.close(ours)


def on_terminal(
    *arguments: object, columns: int, term: str = "xterm-256color", stderr: bool = False, cwd: Path | None = None
) -> tuple[int, Terminal]:
    """The exit status of ``onnxsep`` in a terminal, and what it wrote there; its standard error where that is asked."""
    status: object = 0
    with terminal(columns, term) as (file, shown), open(os.devnull, "w") as null:  # noqa: PTH123
        with _as_found(["onnxsep", *map(str, arguments)], cwd, columns):
            os.environ.pop("COLUMNS")  # the terminal itself says it
            try:
                with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file if stderr else null):
                    main()
            except SystemExit as ended:
                status = ended.code
            finally:
                os.environ["COLUMNS"] = str(columns)
        sys.stdout.flush()
    return status if isinstance(status, int) else 0, shown
