"""What is measured for a plan, as pieces of work: the forms of one layer. Whoever does one, the figures are the same.

A ``Job`` is what does not change in a run, a ``Stand`` what all other layers are like in a round. Both can be sent to
other processes, with the samples; there they make the walks along the network again, and keep them for the next layer.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from onnxsep.calibration.candidates import Gathered, along
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.measuring import Dense, Samples
from onnxsep.running.runtime import RuntimeOptions

Feeds = Sequence[Mapping[str, NDArray[Any]]]


@dataclass
class Job:
    """What candidates are measured on.

    Attributes:
        model: The source.
        sites: Its layers.
        modes: The forms that they may get.
        samples: What candidates are fitted to.
        walk: Gives what measures effects, around a plan or in the source.
    """

    model: Model
    sites: Sites
    modes: tuple[Mode, ...]
    samples: Samples
    walk: Callable[[Dense | None], EffectWalk]

    @cached_property
    def by_place(self) -> dict[Place, ConvSite]:
        """The layers by their places."""
        return {site.place: site for site in self.sites.found if isinstance(site, ConvSite)}


@dataclass
class Sent:
    """A job for other processes.

    Attributes:
        model: The source, its weights in it or in files that the others can read.
        shapes: Of its inputs, where dimensions are free.
        modes: The forms that layers may get.
        fitted: What candidates are fitted to.
        measured: What effects are measured on.
        options: How the fits sample.
        runtime: How each process runs models.
        memory: Bytes for activations of each process.
        as_error: Whether effects are relative errors, of classifiers too.
    """

    model: Model
    shapes: Mapping[str, tuple[int, ...]]
    modes: tuple[Mode, ...]
    fitted: Feeds
    measured: Feeds
    options: CalibrationOptions
    runtime: RuntimeOptions
    memory: int
    as_error: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "job"}

    @cached_property
    def job(self) -> Job:
        """The job, where it has arrived."""
        sites = find_sites(self.model, self.shapes, linear_layers=any(mode.linear_layers for mode in self.modes))
        options = replace(self.options, memory=min(self.options.memory, self.memory))

        def walk(around: Dense | None) -> EffectWalk:
            return EffectWalk(
                self.model,
                sites,
                self.measured,
                self.runtime,
                around=around,
                memory=self.memory,
                as_error=self.as_error,
            )

        return Job(self.model, sites, self.modes, Samples(lambda: self.fitted, options, self.runtime), walk)


def here(job: Job | Sent) -> Job:
    """The job, in this process."""
    return job if isinstance(job, Job) else job.job


class Position:
    """A place along the network, from which one can only walk on.

    Args:
        job: The job.
        stand: What the other layers are like.
    """

    def __init__(self, job: Job, stand: "Stand") -> None:
        self._walk = job.walk(stand.around)
        chosen = [job.by_place[place] for place in stand.layers]
        samples = job.samples
        self._steps = along(
            job.model, job.sites, chosen, samples.fitted(), samples.options, samples.runtime, stand.around
        )
        self._order = {place: number for number, place in enumerate(stand.layers)}
        self.at: tuple[ConvSite, Callable[[], Gathered]] | None = None

    @property
    def number(self) -> int:
        """How far it is."""
        return -1 if self.at is None else self._order[self.at[0].place]

    def move_to(self, place: Place) -> tuple[Gathered, EffectWalk]:
        """Walk on to a layer, past all that are before it.

        Raises:
            CalibrationError: The runtime cannot run the network.
        """
        while self.at is None or self.at[0].place != place:
            self.at = next(self._steps)
            self._walk.walk_on(self.at[0])
        return self.at[1](), self._walk


@dataclass
class Stand:
    """What all other layers are like while one is measured.

    Attributes:
        around: The layers that a plan has replaced; None: the source.
        layers: Those that are measured, in the order of the walk.
    """

    around: Dense | None
    layers: tuple[Place, ...]
    _free: list[Position] = field(default_factory=list, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"around": self.around, "layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _free=[], _lock=threading.Lock())

    @contextmanager
    def position(self, job: Job, place: Place) -> Iterator[Position]:
        """A position before a layer, or at it; it is kept for the next one afterwards."""
        number = self.layers.index(place)
        with self._lock:
            usable = [one for one in self._free if one.number <= number]
            position = max(usable, key=lambda one: one.number, default=None)
            self._free = [one for one in self._free if one is not position and one.number <= number]
        position = position or Position(job, self)
        yield position
        with self._lock:
            self._free.append(position)
