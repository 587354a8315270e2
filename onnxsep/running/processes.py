"""Processes of this machine that do pieces of work (``onnxsep.running.crew``).

They are started when there is something to do, and wait between two rounds. ``multiprocessing`` would import the
caller's program again, which may have no guard against that. One that dies is replaced when there is more to do.
"""

import contextlib
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from onnxsep.errors import OptionError, spelled, worded
from onnxsep.model.files import temporary_folder
from onnxsep.running.child import environment, read_message, write_message
from onnxsep.running.crew import Gone, Task, Told, ignore

_TICK = 0.2  # seconds: waiting without a limit cannot be interrupted on Windows
_PATIENCE = 2.0  # seconds for a process that was told to end
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from onnxsep.running.child import main; main()"


class _Worker:
    """One process, and what it is doing."""

    def __init__(self, number: int, folder: Path, threads: int, answers: "SimpleQueue[tuple[_Worker, Any]]") -> None:
        self._said = folder / f"worker{number}.txt"
        self.item: int | None = None
        self.last = -1  # item
        self.alive, self.ready = True, False
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment(threads, folder),
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input = self.process.stdin
        threading.Thread(target=self._listen, args=(self.process.stdout, answers), daemon=True).start()

    def _listen(self, stream: IO[bytes], answers: "SimpleQueue[tuple[_Worker, Any]]") -> None:
        with stream:
            while (content := read_message(stream)) is not None:
                answers.put((self, pickle.loads(content)))
        answers.put((self, None))

    def send(self, item: int, content: object) -> None:
        self.item = self.last = item
        try:
            write_message(self._input, content)
        except OSError:  # it has ended, which its listener will say
            return

    def end(self, *, now: bool) -> None:
        self.alive = False
        if now:
            self.process.kill()
        with contextlib.suppress(OSError):  # it has not read all
            self._input.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """How it ended."""
        self.end(now=False)
        status = self.process.wait()
        lines = self._said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"{how}{': ' if lines else ''}{lines[-1] if lines else ''}"


class Processes:
    """Processes of this machine.

    Args:
        count: How many there are at most.
        threads: Of the linear algebra of each.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count, self._threads = count, threads
        self._workers: list[_Worker] = []
        self._answers: SimpleQueue[tuple[_Worker, Any]] = SimpleQueue()
        self._stored: dict[str, object] = {}  # by the place of a file
        self._folder = temporary_folder()
        self._started = self._files = 0

    def each(
        self, task: Task, shared: Sequence[object], items: Sequence[Any], told: Told = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """See :class:`onnxsep.running.crew.Crew`."""
        places = self._store(shared)
        waiting = list(range(len(items)))
        left = len(items)
        failed: dict[int, Exception] = {}
        dashes = worded("yes") == "yes"
        for worker in self._workers:
            worker.last = -1
        try:
            while left:
                self._start(min(self.count, left))
                for worker in self._workers:
                    if worker.ready and worker.item is None and waiting:
                        number = next((one for one in waiting if one > worker.last), waiting[0])
                        waiting.remove(number)
                        worker.send(number, (task, places, items[number], dashes))
                found = self._answer()
                if found is None:
                    continue
                worker, (kind, value) = found
                if kind == "ready":
                    worker.ready = True
                elif kind == "told" and worker.item is not None:
                    told(worker.item, value)
                elif kind == "failed" and worker.item is not None:
                    failed[worker.item], worker.item = value, None
                    waiting = []
                elif worker.item is not None:
                    number, worker.item = worker.item, None
                    left -= 1
                    yield number, value
                # The first of them is raised, as one process would: those before it are finished.
                if failed and all(one.item is None or one.item > min(failed) for one in self._workers):
                    raise failed[min(failed)]
        finally:
            for worker in self._workers:
                if worker.item is not None:  # nobody waits for it any longer
                    worker.end(now=True)
            self._workers = [worker for worker in self._workers if worker.alive]

    def _answer(self) -> tuple[_Worker, tuple[str, Any]] | None:
        """The next answer; the end of a worker is one."""
        try:
            worker, message = self._answers.get(timeout=_TICK)
        except Empty:
            return None
        if not worker.alive:
            return None
        if message is not None:
            return worker, message
        worker.alive = False
        self._workers.remove(worker)
        why = worker.last_words()
        if not worker.ready:
            raise OptionError(
                f"a worker process ended as soon as it was started ({why}); use {spelled('workers', 1)} where there can"
                " be none"
            )
        return (worker, ("done", Gone(why))) if worker.item is not None else None

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            if not sys.executable:
                raise OptionError(f"no Python is known that workers could run in; use {spelled('workers', 1)}")
            self._started += 1
            try:
                self._workers.append(_Worker(self._started, Path(self._folder.name), self._threads, self._answers))
            except OSError as error:
                raise OptionError(
                    f"a worker process cannot be started: {error.strerror or error}; use fewer {spelled('workers')}"
                ) from error

    def _store(self, shared: Sequence[object]) -> list[str]:
        """Files of what all pieces share; those of other rounds go."""
        places = []
        for one in shared:
            place = next((place for place, known in self._stored.items() if known is one), None)
            if place is None:
                self._files += 1
                place = str(Path(self._folder.name, f"shared{self._files}"))
                try:
                    Path(place).write_bytes(pickle.dumps(one, protocol=5))
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise OptionError(
                        f"workers cannot be given what they need ({error}); use {spelled('workers', 1)}"
                    ) from error
                self._stored[place] = one
            places.append(place)
        for place in set(self._stored) - set(places):
            del self._stored[place]
            Path(place).unlink(missing_ok=True)
        return places

    def close(self) -> None:
        """End all of them, and remove what was stored for them."""
        for worker in self._workers:
            worker.end(now=worker.item is not None)
        self._workers = []
        self._stored = {}
        self._folder.cleanup()
