"""Calls in threads that nobody has to wait for: a signal or a time limit ends the wait, whatever the call is in.

The threads are daemons. Those of ``concurrent.futures`` are joined when a pool is left and again when the interpreter
ends, so that Ctrl-C would wait for the factors of the largest Conv.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
_TICK = 0.2  # seconds: waiting for a lock without a limit cannot be interrupted on Windows
_PATIENCE = 2.0  # seconds for a call that was told to stop
_left: list[threading.Thread] = []  # calls that nobody waits for any longer


class OutOfTime(Exception):  # noqa: N818 - the caller makes an error of it
    """A call took longer than it may."""


def within(call: Callable[[], T], limit: float = 0.0, stop: Callable[[], None] = lambda: None) -> T:
    """What a call gives, where the wait for it may end before it does.

    Args:
        call: it releases Python's global lock while it works.
        limit: seconds that it may take; 0: any time.
        stop: makes the call end soon, as far as that is possible.

    Raises:
        OutOfTime: it took longer.
        KeyboardInterrupt: a signal came.
        Exception: what the call raises.
    """
    outcome = _Outcome(call)
    thread = threading.Thread(target=outcome.run, daemon=True)
    end = time.monotonic() + limit if limit > 0 else float("inf")
    thread.start()
    try:
        while thread.is_alive():
            left = end - time.monotonic()
            if left <= 0:
                raise OutOfTime
            thread.join(min(_TICK, left))
    except BaseException:
        stop()
        thread.join(_PATIENCE)
        if thread.is_alive():
            _left.append(thread)
        raise
    return outcome.result()


def in_threads(jobs: Mapping[K, Callable[[], T]], count: int) -> Generator[tuple[K, T], None, None]:
    """What each call gives, as soon as it is done.

    Where the caller leaves early (an error, Ctrl-C) no further call starts, and those that run end as soon as they come
    back to Python.

    Args:
        jobs: the calls.
        count: how many run at a time.

    Raises:
        Exception: what a call raises.
    """
    waiting: SimpleQueue[tuple[K, Callable[[], T]]] = SimpleQueue()
    done: SimpleQueue[tuple[K, _Outcome[T]]] = SimpleQueue()
    for job in jobs.items():
        waiting.put(job)

    def work() -> None:
        while True:
            try:
                key, call = waiting.get_nowait()
            except Empty:
                return
            outcome = _Outcome(call)
            outcome.run()
            done.put((key, outcome))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(count, len(jobs)))]
    for thread in threads:
        thread.start()
    finished = 0
    try:
        while finished < len(jobs):
            try:
                key, outcome = done.get(timeout=_TICK)
            except Empty:
                continue
            finished += 1
            yield key, outcome.result()
    finally:
        if finished < len(jobs):
            while not waiting.empty():
                waiting.get_nowait()
            for thread in filter(threading.Thread.is_alive, threads):
                _raise_in(thread)
                _left.append(thread)


def any_left() -> bool:
    """Whether calls still run that nobody waits for: an interpreter that ends beside them may crash."""
    return any(thread.is_alive() for thread in _left)


class _Outcome(Generic[T]):
    """What a call gave or raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call, self._value, self._error = call, list[T](), list[BaseException]()

    def run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:
            self._error.append(error)

    def result(self) -> T:
        if self._error:
            raise self._error[0]
        return self._value[0]


def _raise_in(thread: threading.Thread) -> None:
    """Let a thread end at its next step of Python code; CPython alone can."""
    api: Any = getattr(ctypes, "pythonapi", None)
    if api is not None and thread.ident is not None:
        api.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
