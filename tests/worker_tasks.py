"""Modes that end the process that fits them, or fail there, and other tasks; workers import them from here."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from onnxsep.modes import Factors
from onnxsep.passes.spatial import Spatial


class Deadly(Spatial):
    """Spatial whose fits at one rank end the process, but that of the test.

    Args:
        rank: which.
        once: a file that says that it has happened, where it happens once only.
    """

    name = "deadly"

    def __init__(self, rank: int, once: Path | None = None) -> None:
        self.rank, self.once, self.home = rank, once, os.getpid()

    def fit(self, task: Any, rank: Any, init: str) -> Factors:
        if os.getpid() != self.home and rank[0] == self.rank and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(task, rank, init)


class Broken(Spatial):
    """Spatial that breaks its promise."""

    name = "broken"

    def fit(self, task: Any, rank: Any, init: str) -> Factors:
        raise ValueError("no such thing")


class Counting(Spatial):
    """Spatial that writes a byte into a file for each fit, and interrupts the process of the test at one of them.

    Args:
        file: where.
        stop: after so many fits.
    """

    name = "counting"

    def __init__(self, file: Path, stop: int = 10**9) -> None:
        self.file, self.stop = file, stop

    def fit(self, task: Any, rank: Any, init: str) -> Factors:
        with self.file.open("ab") as file:
            file.write(b".")
        if self.file.stat().st_size == self.stop:
            raise KeyboardInterrupt
        return super().fit(task, rank, init)


def where(shared: list[str], item: int, tell: Callable[[object], None]) -> tuple[int, list[str], list[int]]:
    print("what a task prints disturbs nobody")
    tell("begun")
    assert np.ones(3).sum() == 3
    pools = [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]
    return os.getpid(), [*shared, str(item)], pools


def slow(item: float, tell: Callable[[object], None]) -> float:
    time.sleep(item)
    return item


def ends(item: int, tell: Callable[[object], None]) -> int:
    if item:
        print("no room left", file=sys.stderr, flush=True)
        os._exit(item)
    return item
