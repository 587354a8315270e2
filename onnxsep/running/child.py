"""A process that ``onnxsep.running.processes`` has started: it does tasks, one after the other.

It ends when its input does, whatever it is in, so that none stays behind. Ctrl-C reaches all processes of a terminal:
the one that started this decides.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from onnxsep.errors import OnnxsepError, OptionError, on_the_command_line, spelled

SIZE = 8  # bytes that say how long a message is


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = stream.read(SIZE)
    if len(head) < SIZE:
        return None
    length = int.from_bytes(head, "little")
    content = stream.read(length)
    return content if len(content) == length else None


def write_message(stream: IO[bytes], content: object) -> None:
    """Write a message.

    Raises:
        OSError: Nobody reads any more.
    """
    data = pickle.dumps(content)
    stream.write(len(data).to_bytes(SIZE, "little") + data)
    stream.flush()


def main() -> None:
    """Do what is asked for on standard input; answers are on what was standard output."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a mode prints is no answer
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    write_message(answers, ("ready", None))
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError):  # nobody reads any more
        while True:
            write_message(answers, _done(messages.get(), known, answers))
    os._exit(0)


def _listen(messages: "SimpleQueue[bytes]") -> None:
    while (content := read_message(sys.stdin.buffer)) is not None:
        messages.put(content)
    os._exit(0)


def _done(message: bytes, known: dict[str, Any], answers: IO[bytes]) -> tuple[str, Any]:
    """The answer to one message."""
    try:
        task, places, item, dashes = pickle.loads(message)
        with on_the_command_line() if dashes else nullcontext():
            shared = _shared(places, known)
            return "done", task(*shared, item, lambda part: write_message(answers, ("told", part)))
    except Exception as error:
        return "failed", sendable(error)


def _shared(places: Sequence[str], known: dict[str, Any]) -> list[Any]:
    """What was stored for all pieces; what is no longer asked for is forgotten."""
    for place in set(known) - set(places):
        del known[place]
    for place in places:
        if place not in known:
            try:
                known[place] = pickle.loads(Path(place).read_bytes())
            except (AttributeError, ImportError) as error:
                raise OptionError(
                    f"a worker cannot find what it needs ({error}); put modes of your own into a module that can be"
                    f" imported, or use {spelled('workers', 1)}"
                ) from error
    return [known[place] for place in places]


def sendable(error: Exception) -> Exception:
    """An error that another process can read: ours as it is, others that cannot be sent in words."""
    if isinstance(error, OnnxsepError):
        return error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def environment(threads: int, folder: Path) -> Mapping[str, str]:
    """Variables for a process whose linear algebra has so many threads, and whose temporary files go into a folder."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))  # which is removed even if the process is killed
    return {**os.environ, **dict.fromkeys(names, str(threads)), **places}
