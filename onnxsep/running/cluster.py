"""The workers of a Dask cluster, which do pieces of work (``onnxsep.running.crew``).

Dask gives the pieces of a worker that is gone to others, as often as its scheduler is set to (three times, if nothing
else is said: ``distributed.scheduler.allowed-failures``), and then says so.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any

from onnxsep._version import __version__
from onnxsep.errors import (
    CalibrationError,
    MissingDependencyError,
    OptionError,
    on_the_command_line,
    spelled,
    worded,
)
from onnxsep.running.child import sendable
from onnxsep.running.crew import Gone, Task, Told, ignore
from onnxsep.running.workers import OutOfTime, within

TIME_LIMIT = 10.0  # seconds for the scheduler to answer
_PATIENCE = 60.0  # seconds without any worker
_TICK = 0.5  # seconds


class Cluster:
    """The workers of a scheduler.

    Args:
        address: Of the scheduler, tcp://host:8786.

    Attributes:
        count: How many threads its workers have.

    Raises:
        MissingDependencyError: Dask's distributed is not installed.
        OptionError: The scheduler does not answer, has no workers, or they have no onnxsep of this version.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError as error:
            raise MissingDependencyError(
                f"{spelled('scheduler')} needs dask.distributed: pip install onnxsep[distributed]"
            ) from error
        self._address, self._distributed = address, distributed
        self._shared: list[tuple[object, Any]] = []
        try:
            self._client = within(self._connected, TIME_LIMIT + 1)  # Dask may wait for what takes it and says nothing
        except (OSError, ValueError, TypeError, OutOfTime) as error:  # TimeoutError is an OSError
            raise OptionError(
                f"{spelled('scheduler')} {address} did not answer within {TIME_LIMIT:g} s"
                f" ({_first_line(error)}); start one with `dask scheduler`, and workers with `dask worker {address}`"
            ) from error
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise
        self.count = max(sum(one["nthreads"] for one in self._workers().values()), 1)

    def _connected(self) -> Any:
        client: Any = self._distributed.Client  # its types are not complete
        return client(self._address, timeout=TIME_LIMIT, set_as_default=False)

    def _workers(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _check_workers(self) -> None:
        if not self._workers():
            try:
                self._client.wait_for_workers(1, timeout=TIME_LIMIT)
            except (TimeoutError, self._distributed.TimeoutError) as error:
                raise OptionError(
                    f"{spelled('scheduler')} {self._address} has had no worker for {TIME_LIMIT:g} s; start some with"
                    f" `dask worker {self._address}`"
                ) from error
        for address, found in self._client.run(_version, on_error="return").items():
            if found != __version__:
                has = isinstance(found, str)
                what = f"has onnxsep {found}" if has else f"cannot use onnxsep ({_first_line(found)})"
                raise OptionError(
                    f"the worker {address} {what}; all must have onnxsep {__version__}, which is this one's"
                )

    def check_resource(self, name: str) -> None:
        """Refuse a resource that no worker has.

        Raises:
            OptionError: None has it.
        """
        if not any(one.get("resources", {}).get(name, 0) >= 1 for one in self._workers().values()):
            raise OptionError(
                f"{spelled('latency_resource')} {name}: no worker of {self._address} has it; start one with"
                f" `dask worker {self._address}` and the resource {name}=1"
            )

    def each(
        self, task: Task, shared: Sequence[object], items: Sequence[Any], told: Told = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """See :class:`onnxsep.running.crew.Crew`; parts of results are not told."""
        sent = [self._sent(one) for one in shared]
        self._shared = [(one, future) for one, future in self._shared if any(one is other for other in shared)]
        dashes = worded("yes") == "yes"
        done: SimpleQueue[int] = SimpleQueue()
        futures = [self._client.submit(_do, dashes, task, *sent, item, pure=False) for item in items]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: done.put(number))
        try:
            for _ in items:
                number = self._next(done)
                yield number, self._result(futures[number])
        finally:
            self._client.cancel([future for future in futures if not future.done()])

    def once(self, task: Callable[..., Any], *arguments: object, resource: str) -> Any:
        """What a task gives that is done by one worker that has a resource, alone.

        Raises:
            Exception: What the task raises.
            OptionError: No worker has it.
            CalibrationError: The worker ended.
        """
        self.check_resource(resource)
        done: SimpleQueue[int] = SimpleQueue()
        dashes = worded("yes") == "yes"
        future = self._client.submit(_do, dashes, task, *arguments, None, pure=False, resources={resource: 1})
        future.add_done_callback(lambda _: done.put(0))
        try:
            self._next(done)
            found = self._result(future)
        finally:
            self._client.cancel([future])
        if isinstance(found, Gone):
            raise CalibrationError(f"the workers that have {resource} ended over latencies ({found.why})")
        return found

    def _sent(self, one: object) -> Any:
        for known, future in self._shared:
            if known is one:
                return future
        future = self._client.scatter(one, hash=False)
        self._shared.append((one, future))
        return future

    def _next(self, done: "SimpleQueue[int]") -> int:
        """The number of the next piece that is done.

        Raises:
            CalibrationError: There are no workers any more.
        """
        since = time.monotonic()
        while True:
            try:
                return done.get(timeout=_TICK)
            except Empty:
                pass
            if self._client.status == "running" and self._workers():
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise CalibrationError(
                    f"{self._address} has had no worker for {_PATIENCE:g} s; what was measured is kept in"
                    f" {spelled('cache')}, so start some and give the same command again"
                )

    def _result(self, future: Any) -> Any:
        if future.status == "finished":
            return future.result()
        if future.status != "error":
            raise CalibrationError(
                f"the scheduler {self._address} has lost what was measured; give the same command again"
            )
        error = future.exception()
        if isinstance(error, self._distributed.scheduler.KilledWorker):
            return Gone(f"{error.last_worker.address}")
        raise error

    def close(self) -> None:
        """Leave the cluster; what was sent to it is forgotten there."""
        self._shared = []
        self._client.close(timeout=TIME_LIMIT)


def _do(dashes: bool, task: Task, *arguments: Any) -> Any:
    """A task in a worker."""
    with on_the_command_line() if dashes else nullcontext():
        try:
            return task(*arguments, _nothing)
        except Exception as error:
            raise sendable(error) from None


def _nothing(part: object) -> None:
    """Parts of results are not sent."""


def _version() -> str:
    return __version__


def _first_line(error: object) -> str:
    if isinstance(error, OutOfTime):
        return "it takes connections and says nothing"
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
