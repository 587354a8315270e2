"""The rows of a table: a file each, made by a process of its own, measured by another, and kept."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMED = 8  # samples, as many as `evaluate` takes turns with
_ENDED = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # by somebody, so that it is made again


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: What it is, for people.
        stem: The name of its file, without .onnx.
        words: The command that makes the file, run in its folder.
        source: The stem of what it is made of; None for the original.
    """

    label: str
    stem: str
    words: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class Work:
    """The folder of a network, where rows are kept.

    Attributes:
        folder: Has original.onnx, fit.npz and test.npz.
        limit: Seconds that a process may take.
        given: What else files depend on: they are made again where it changes.
    """

    folder: Path
    limit: int
    given: str

    def row(self, row: Row) -> bool:
        """Make and measure a row, what of it is missing; whether there is a new form to go on from."""
        if row.words and not self._make(row):
            return False
        loss = self.folder / f"{row.stem}.loss.json"
        if not loss.exists():
            self._measure(row, loss)
        return True

    def made(self, row: Row) -> dict[str, Any] | None:
        """What making it took: seconds, bytes, status, said, and replaced (layers); None where it was not made so."""
        made = _read(self.folder / f"{row.stem}.made.json")
        return made if made is not None and made["words"] == self._asked(row) else None

    def loss(self, row: Row) -> dict[str, Any] | None:
        """The report of ``onnxsep evaluate`` on it; None where there is none of a file that was made so."""
        return None if row.words and self.made(row) is None else _read(self.folder / f"{row.stem}.loss.json")

    def times(self) -> dict[str, dict[str, Any]]:
        """Latencies by the name of the file."""
        report = _read(self.folder / "latency.json") or {"models": []}
        return {model["path"]: model["latency"] for model in report["models"]}

    def time(self, rows: Sequence[Row]) -> None:
        """Time the files of all rows in turn, on one thread."""
        files = [f"{row.stem}.onnx" for row in rows if self.loss(row) is not None]
        words = ["--data", "test.npz", "--samples", str(_TIMED), "--threads", "1", "--no-memory", "--quiet"]
        found = self._run(["evaluate", *files, *words, "--report", "latency.json"])
        if found["status"]:
            print(f"  {self.folder.name}: latency: {found['said'][-300:].strip()}", flush=True)

    def _asked(self, row: Row) -> list[str]:
        return [*row.words[1:], self.given]

    def _make(self, row: Row) -> bool:
        made = self.made(row)
        if made is None:
            for old in (f"{row.stem}.onnx", f"{row.stem}.json", f"{row.stem}.loss.json"):
                (self.folder / old).unlink(missing_ok=True)
            made = {"words": self._asked(row), **self._run(row.words), "replaced": self._replaced(row)}
            (self.folder / f"{row.stem}.made.json").write_text(json.dumps(made))
            said = made["said"].strip().splitlines()[-1:] if made["status"] else ""
            print(f"  {row.label}: {made['seconds']:.0f} CPU s {''.join(said)[:300]}", file=sys.stderr, flush=True)
        return bool(made["status"] == 0 and made["replaced"] != [0])

    def _replaced(self, row: Row) -> list[int] | None:
        """Layers that a rewrite has replaced; None for other commands."""
        report = _read(self.folder / f"{row.stem}.json")
        return None if report is None else [sum(conv["status"] == "replaced" for conv in report["convs"])]

    def _measure(self, row: Row, loss: Path) -> None:
        words = ["--reference", "original.onnx", "--data", "test.npz", "--threads", "1", "--runs", "0", "--no-memory"]
        found = self._run(["evaluate", f"{row.stem}.onnx", *words, "--quiet", "--report", loss.name])
        if found["status"]:
            print(f"  {row.label}: not measured: {found['said'][-300:].strip()}", file=sys.stderr, flush=True)

    def _run(self, words: Sequence[str]) -> dict[str, Any]:
        """Run a command, or one of onnxsep, in the folder: its seconds, peak bytes, status and what it said."""
        whole = words if words[0] == sys.executable else [sys.executable, "-m", "onnxsep", *words]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            whole,
            cwd=self.folder,
            env={**os.environ, **one},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watch = threading.Timer(self.limit, process.kill)
        watch.start()
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not watch.is_alive() and process.returncode:
            said = f"ended after {self.limit} s"
        watch.cancel()
        if process.returncode in _ENDED:
            raise KeyboardInterrupt
        seconds = used.ru_utime + used.ru_stime
        return {
            "seconds": seconds,
            "bytes": used.ru_maxrss * 1024,
            "status": process.returncode,
            "said": said[-2000:],
        }


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None
