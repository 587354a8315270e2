"""Several processes that train one model, each on its share of every batch: torchrun starts them.

Every process has the whole model. PyTorch's DistributedDataParallel averages their gradients in each step, so all take
the same step. What may go wrong in one of them alone (reading data, Ctrl-C) is told to all before they compute
together, so all stop at the same step with the same error, and none waits for one that has gone.
"""

import contextlib
import functools
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from onnxsep.errors import MissingDependencyError, OnnxsepError, TrainingError
from onnxsep.training.devices import find_device

T = TypeVar("T")
_TOLD = "onnxsep_told_to_all"
_PATIENCE = 5.0  # seconds


def rank() -> int:
    """The number of this process among those that torchrun started; 0 where it started none."""
    return _number("RANK", 0) if _number("WORLD_SIZE", 1) > 1 else 0


def told(error: OnnxsepError) -> OnnxsepError:
    """The error, marked as one that every process raises."""
    setattr(error, _TOLD, True)
    return error


def was_told(error: BaseException) -> bool:
    """Whether the first process raises this error as well, and so can be the one that shows it."""
    return bool(getattr(error, _TOLD, False))


def wait_for_first() -> None:
    """Let the first process show an error before this one ends: torchrun ends all others as soon as one has failed."""
    with contextlib.suppress(KeyboardInterrupt):  # that is how torchrun's SIGTERM comes
        time.sleep(_PATIENCE)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else otherwise


class Group:
    """The processes of a run.

    Args:
        torch: The package.
        device: The device of this process.
        rank: Its number; 0 decides, writes and prints.
        count: How many there are.
    """

    def __init__(self, torch: Any, device: Any, rank: int = 0, count: int = 1) -> None:
        self._torch, self.device, self.rank, self.count = torch, device, rank, count
        self.interrupted = False

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrapped(self, module: Any, outputs: Collection[str]) -> Any:
        """What computes outputs of the module in a step, and averages gradients where there are several processes.

        Args:
            module: It takes and gives tensors by name.
            outputs: Names of those that the loss reads. Weights that only the others need get no gradient, which
                DistributedDataParallel has to know.
        """
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        chosen = _chosen_outputs_class()(module, outputs)
        parallel = self._torch.nn.parallel.DistributedDataParallel
        with warnings.catch_warnings():  # the new name of the option is not in the oldest torch that we support
            warnings.filterwarnings("ignore", message="`broadcast_buffers`", category=FutureWarning)
            return parallel(chosen, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True)

    def together(self, call: Callable[[], T]) -> list[T]:
        """What the call gives in each process, in the order of their numbers.

        Raises:
            Exception: what it raised in one of them; every process raises it.
            KeyboardInterrupt: one of them was interrupted.
        """
        if self.count == 1:
            return [call()]
        value, error = None, None
        try:
            value = call()
        except Exception as raised:
            error = raised
        told = (value, _plain(error), self.interrupted)
        found: list[Any] = [None] * self.count
        try:
            self._torch.distributed.all_gather_object(found, told)
        except RuntimeError as gone:
            raise error or _gone() from gone
        for number, (_, other, _) in enumerate(found):
            if other is not None:
                shown = error if number == self.rank and error is not None else other
                setattr(shown, _TOLD, True)
                raise shown
        if any(interrupted for _, _, interrupted in found):
            raise KeyboardInterrupt
        return [value for value, _, _ in found]

    def alike(self, call: Callable[[], T]) -> T:
        """What the call gives here, where every process must get through it.

        Raises:
            Exception: as :meth:`together`.
        """
        kept: list[T] = []
        self.together(lambda: kept.append(call()))
        return kept[0]

    def from_first(self, call: Callable[[], T]) -> T:
        """What the call gives in the first process; the others do not make it.

        Raises:
            Exception: as :meth:`together`.
        """
        return self.together(lambda: call() if self.leads else None)[0]  # type: ignore[return-value]

    def mean_of(self, tensors: list[Any]) -> None:
        """Replace tensors by their means over all processes."""
        if self.count == 1:
            return
        with self._torch.no_grad():
            for tensor in tensors:
                self._torch.distributed.all_reduce(tensor)
                tensor /= self.count

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Around what torch computes together: another process that has gone is an error of ours.

        Raises:
            TrainingError: it has.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Grad strides")  # copying a small gradient takes no time
                warnings.filterwarnings("ignore", message="find_unused_parameters")  # looking takes no time either
                yield
        except RuntimeError as error:
            if self.count > 1 and "onnection" in str(error):
                raise _gone() from error
            raise


@functools.cache
def _chosen_outputs_class() -> Callable[..., Any]:
    """The class of a module that gives some of another one's outputs; its base can only be imported when needed."""
    import torch

    class ChosenOutputs(torch.nn.Module):
        def __init__(self, module: Any, outputs: Collection[str]) -> None:
            super().__init__()
            self._module, self._outputs = module, tuple(outputs)

        def forward(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
            found = self._module(tensors)
            return {name: found[name] for name in self._outputs}

    return ChosenOutputs


def _gone() -> TrainingError:
    return TrainingError("another process of this run ended; its own message says why")


def _plain(error: Exception | None) -> Exception | None:
    """An error that can be sent: ours as it is, others in words."""
    if error is None or isinstance(error, OnnxsepError):
        return error
    return TrainingError(f"a process of this run failed: {type(error).__name__}: {error}")


@contextmanager
def joined(torch: Any, device: str) -> Iterator[Group]:
    """The processes that torchrun started (or that torch.distributed connects already), or this one alone.

    Args:
        torch: The package.
        device: The name of the device.

    Raises:
        OptionError: There is no such device.
        MissingDependencyError: This torch cannot connect processes.
    """
    distributed = torch.distributed
    available = distributed.is_available()
    connected = available and distributed.is_initialized()
    count = distributed.get_world_size() if connected else _number("WORLD_SIZE", 1)
    if count == 1:
        yield Group(torch, find_device(torch, device))
        return
    if not available:
        raise MissingDependencyError(
            f"{count} processes were started, and this torch is built without torch.distributed"
        )
    place = find_device(torch, device, _number("LOCAL_RANK", 0), count)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not connected:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    group = Group(torch, place, distributed.get_rank(), count)
    try:
        with _signals_noted(group):
            yield group
    finally:
        if not connected:
            distributed.destroy_process_group()


@contextmanager
def _signals_noted(group: Group) -> Iterator[None]:
    """Ctrl-C is noted, so that all processes stop at the same step; a later one stops this process at once.

    torchrun passes on what the terminal has sent to all processes already, so one soon after the first is the same one.
    """
    since = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal since
        now = time.monotonic()
        if now - since > _PATIENCE:
            signal.default_int_handler(number, frame)
        since, group.interrupted = min(since, now), True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
