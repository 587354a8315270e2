"""Timing: warm runs on real inputs, the models taking turns so that drift of the machine hits all alike.

A model's time is the median of its runs. How it compares with the first model's is measured turn by turn: in each round
the medians (or means) of the two turns are divided, and the ratio is the median over the rounds. What slows
the whole machine down for a while slows both turns of a round, and is nearly gone from their ratio.

This module needs numpy alone, and Python 3.9: ``onnxsep profile`` writes its text into the script for other devices.
"""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[Mapping[str, Any]], Any]
Told = Callable[[str, int, int], None]
Clock = Callable[[], float]

_BLOCK = 5  # timed runs of one model before the next has its turn, unless it is fast enough for more, or too slow
_DRIFT = 0.01  # of a ratio: what two processes measure differs by about so much (memory, threads, the clock)
_FINE = 1e-6  # seconds, of a clock that single layers can be timed with
_NORMAL = 1.2533  # standard error of a median over that of a mean, sqrt(pi / 2)
_QUARTILES = 1.349  # interquartile range of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Effort:
    """How long is measured where nobody says how many runs.

    Attributes:
        turn: Seconds that a turn of a fast model takes.
        rounds: At least so many.
        slow_rounds: At least so many where the time is up.
        shortest: At least so many seconds of timed runs of each model.
        longest: Seconds of timed runs of a model after which a large spread stays.
        enough: Relative standard error of each model's figures, and of its ratio, that ends it.
        by_mean: A turn's figure is the mean of its runs, and not their median. What disturbs a few of many short runs
            disturbs each long one, and the mean of both by the same share: for models of unlike size.
        lead_in: Seconds of untimed runs before each turn; after some milliseconds the threads of another session, which
            wait for work by spinning, are asleep.
    """

    turn: float = 0.02
    rounds: int = 8
    slow_rounds: int = 3
    shortest: float = 1.0
    longest: float = 10.0
    enough: float = 0.01
    by_mean: bool = False
    lead_in: float = 0.003


QUICK = Effort(turn=0.002, rounds=4, slow_rounds=1, shortest=0.008, longest=1.0, enough=0.03)
"""For a look in passing: does it get slower?"""
PIECES = Effort(
    turn=0.003, rounds=12, slow_rounds=5, shortest=0.03, longest=0.15, enough=0.02, by_mean=True, lead_in=0.001
)
"""For single layers, of which there are many: what counts is a sum of differences."""
SHARES = Effort(
    turn=0.006, rounds=20, slow_rounds=8, shortest=0.1, longest=1.5, enough=0.01, by_mean=True, lead_in=0.001
)
"""For single layers beside the whole model."""
THOROUGH = Effort()


@dataclass(frozen=True)
class Ratio:
    """How long a model takes as a share of the first one's time: the median over rounds in which both had a turn.

    Attributes:
        value: The share.
        standard_error: None where there was one round.
    """

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Timed:
    """Times of warm runs, in seconds.

    Attributes:
        figure: The median over turns of each turn's figure: the median of all runs, but for the turns of ``Effort``.
        median: Of all runs.
        lower_quartile: The same.
        upper_quartile: The same.
        runs: How many were timed.
        standard_error: Of the median; None where it is not known.
        against_first: None for the first model.
    """

    figure: float
    median: float
    lower_quartile: float
    upper_quartile: float
    runs: int
    standard_error: float | None
    against_first: Ratio | None


@dataclass
class _Times:
    """The timed runs of one model, in seconds, turn by turn."""

    by_mean: bool
    turns: list[list[float]] = field(default_factory=list)

    @property
    def figures(self) -> np.ndarray:
        """One of each turn."""
        figure = np.mean if self.by_mean else np.median
        return np.array([float(figure(turn)) for turn in self.turns])

    @property
    def runs(self) -> list[float]:
        """All of them."""
        return [run for turn in self.turns for run in turn]

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(map(sum, self.turns))


def measure_times(
    calls: Sequence[Call],
    feeds: Sequence[Mapping[str, Any]],
    runs: int | None = None,
    progress: Told | None = None,
    effort: Effort = THOROUGH,
    clock: Clock | None = None,
) -> list[Timed]:
    """Time each model on the same inputs.

    First every model runs on the feeds, untimed. Then the models take turns: a lead-in that is not timed, so that
    caches and threads are this model's, then a few timed runs. Every second round goes the other way round.

    Args:
        calls: Each runs a model.
        feeds: Inputs, taken in turn.
        runs: Timed runs of each model, 1 or more; None: until the standard errors of medians and ratios are small.
        progress: Called after each round.
        effort: How small, and how long that may take.
        clock: Says how late it is, in seconds; None: that of the wall.

    Returns:
        Median and quartiles for each model, and its ratio to the first.
    """
    clock = clock or time.perf_counter
    if runs is not None:
        for call in calls:
            for feed in feeds:
                call(feed)
    blocks = [_BLOCK if runs is not None else _block(_warm(clock, call, feeds, effort), effort) for call in calls]
    times = [_Times(effort.by_mean) for _ in calls]
    collecting = gc.isenabled()
    gc.disable()  # a collection within a run would be counted as the model's
    try:
        share = 0.0
        while share < 1:
            done = len(times[0].runs)
            wanted = blocks if runs is None else [min(_BLOCK, runs - done)] * len(calls)
            _round(clock, calls, feeds, times, wanted, effort.lead_in)
            done = len(times[0].runs)
            share = _share(times, effort) if runs is None else done / runs
            if progress is not None:
                progress("latency", *((int(100 * share), 100) if runs is None else (done, runs)))
    finally:
        if collecting:
            gc.enable()
    return [_summed_up(found, None if found is times[0] else times[0]) for found in times]


def clock_for(threads: int, *, on_cpu: bool) -> Clock:
    """The clock that a model is timed by.

    One that runs in one thread, on the processor, is timed by the time that the processor gave to this thread: what it
    gave to other programs meanwhile is not the model's. Of more threads nobody can tell, so theirs is the wall's.

    Args:
        threads: That the runtime was told to use; 0: its own choice.
        on_cpu: Whether all of the model runs on the processor.
    """
    fine = time.get_clock_info("thread_time").resolution <= _FINE if hasattr(time, "thread_time") else False
    return time.thread_time if threads == 1 and on_cpu and fine else time.perf_counter


def processor() -> str:
    """What the processor of this machine is called."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:  # Linux, Android
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        named = {key.strip(): value.strip() for key, value in lines.items()}
    except OSError:
        named = {}
    known = named.get("model name") or named.get("Hardware") or named.get("Model") or platform.processor()
    return known or platform.machine() or "unknown"


def _warm(clock: Clock, call: Call, feeds: Sequence[Mapping[str, Any]], effort: Effort) -> float:
    """Run a model on each feed, as far as time allows; the shortest time of a run."""
    begin, best = time.perf_counter(), math.inf
    for feed in feeds:
        best = min(best, _timed(clock, call, feed))
        if time.perf_counter() - begin > effort.longest / 10:
            break
    return best


def _block(seconds: float, effort: Effort) -> int:
    """Runs in a turn: some milliseconds, and one of a model that is so slow that more would take all the time."""
    wanted = max(_BLOCK, math.ceil(effort.turn / max(seconds, 1e-6)))
    return max(1, min(wanted, int(effort.longest / effort.rounds / max(seconds, 1e-6))))


def _round(
    clock: Clock,
    calls: Sequence[Call],
    feeds: Sequence[Mapping[str, Any]],
    times: Sequence[_Times],
    blocks: Sequence[int],
    lead_in: float,
) -> None:
    """A turn of each model."""
    order = range(len(calls))
    for index in order if len(times[0].turns) % 2 == 0 else reversed(order):
        call, start, count = calls[index], len(times[index].runs), blocks[index]
        if count > 1:
            _lead_in(call, feeds[start % len(feeds)], lead_in)
        times[index].turns.append(
            [_timed(clock, call, feeds[step % len(feeds)]) for step in range(start, start + count)]
        )


def _share(times: Sequence[_Times], effort: Effort) -> float:
    """How much of the measuring is done; 1 where it is enough."""
    least = min(found.total for found in times)
    most = max(found.total for found in times)
    rounds = len(times[0].turns)
    if most >= effort.longest and rounds >= effort.slow_rounds:
        return 1.0
    if least >= effort.shortest and rounds >= effort.rounds:
        first = times[0].figures
        errors = [_error(found.figures) for found in times] + [_error(found.figures / first) for found in times[1:]]
        if max(errors) <= effort.enough:
            return 1.0
    return min(0.99, max(most / effort.longest, min(least / effort.shortest, rounds / effort.rounds) / 2))


def _error(values: np.ndarray) -> float:
    """Relative standard error of the median of values, from their quartiles, which a few outliers leave as they are."""
    if len(values) < 2:
        return math.inf
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return _NORMAL * (upper - lower) / _QUARTILES / math.sqrt(len(values)) / median if median else math.inf


def _lead_in(call: Call, feed: Mapping[str, Any], seconds: float) -> None:
    end = time.perf_counter() + seconds
    call(feed)
    while time.perf_counter() < end:
        call(feed)


def _timed(clock: Clock, call: Call, feed: Mapping[str, Any]) -> float:
    start = clock()
    call(feed)
    return clock() - start


def _summed_up(found: _Times, first: _Times | None) -> Timed:
    lower, median, upper = np.quantile(np.asarray(found.runs), (0.25, 0.5, 0.75)).tolist()
    ratio = None
    if first is not None:
        ratios = found.figures / first.figures
        middle, error = float(np.median(ratios)), math.hypot(_error(ratios), _DRIFT)
        ratio = Ratio(middle, middle * error if math.isfinite(error) else None)
    error = _error(found.figures)
    figure = float(np.median(found.figures))
    return Timed(figure, median, lower, upper, len(found.runs), median * error if math.isfinite(error) else None, ratio)
