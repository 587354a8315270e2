"""Latency: warm runs on real inputs, the models taking turns so that drift of the machine hits all alike."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxsep.evaluation.report import Latency
from onnxsep.options.progress import Progress

Call = Callable[[Mapping[str, Any]], Any]

_BLOCK = 5  # timed runs of one model before the next has its turn
_LEAD_IN = 0.003  # seconds; by then the threads of another session, which wait for work by spinning, are asleep


def measure_latency(
    calls: Sequence[Call], feeds: Sequence[Mapping[str, Any]], runs: int, progress: Progress | None = None
) -> list[Latency]:
    """Time each model on the same inputs.

    First every model runs once on each feed. Then the models take turns: a lead-in that is not timed, so that caches
    and threads are this model's, then a few timed runs. Every second turn goes the other way round.

    Args:
        calls: Each runs a model.
        feeds: Inputs, taken in turn.
        runs: Timed runs of each model, 1 or more.
        progress: Called after each round.

    Returns:
        Median and quartiles for each model.
    """
    for call in calls:
        for feed in feeds:
            call(feed)
    times: list[list[float]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()  # a collection within a run would be counted as the model's
    try:
        for number, start in enumerate(range(0, runs, _BLOCK)):
            order = range(len(calls))
            for index in order if number % 2 == 0 else reversed(order):
                _lead_in(calls[index], feeds[start % len(feeds)])
                for step in range(start, min(start + _BLOCK, runs)):
                    times[index].append(_timed(calls[index], feeds[step % len(feeds)]))
            if progress is not None:
                progress("latency", min(start + _BLOCK, runs), runs)
    finally:
        if collecting:
            gc.enable()
    return [_latency(found) for found in times]


def _lead_in(call: Call, feed: Mapping[str, Any]) -> None:
    end = time.perf_counter() + _LEAD_IN
    call(feed)
    while time.perf_counter() < end:
        call(feed)


def _timed(call: Call, feed: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    call(feed)
    return time.perf_counter() - start


def _latency(times: Sequence[float]) -> Latency:
    lower, median, upper = np.quantile(np.asarray(times) * 1000, (0.25, 0.5, 0.75)).tolist()
    return Latency(median_ms=median, lower_quartile_ms=lower, upper_quartile_ms=upper, runs=len(times))
