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
from onnxsep.engine.replacements import BlockReplacement, Replacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.graph.places import Place
from onnxsep.layers.rank import Rank
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.planner.block_rows import block_rows
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.grid import replacement
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
        blocks: The forms that blocks of several nodes may get.
    """

    model: Model
    sites: Sites
    modes: tuple[Mode, ...]
    samples: Samples
    walk: Callable[[Dense | None], EffectWalk]
    blocks: tuple[BlockMode, ...] = ()

    @cached_property
    def by_place(self) -> dict[Place, ConvSite]:
        """The layers by their places."""
        return {site.place: site for site in self.sites.found if isinstance(site, ConvSite)}

    def number_of(self, mode: Mode | BlockMode) -> int:
        """A form among all of them, those of blocks behind the others."""
        return [*self.modes, *self.blocks].index(mode)

    def row(self, place: Place, number: int, rank: Rank) -> Replacement:
        """A layer, or the block that ends there, in a form; its number is that of ``number_of``."""
        if number < len(self.modes):
            return replacement(self.by_place[place], self.modes[number], rank)
        return self._of_blocks[number - len(self.modes)][place]

    @cached_property
    def _of_blocks(self) -> list[dict[Place, BlockReplacement]]:
        layers = list(self.by_place.values())
        found = (block_rows(self.model, self.sites, [mode], layers, recurse=True) for mode in self.blocks)
        return [{row.site.place: row for row in rows} for rows in found]


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
        blocks: The forms that blocks may get.
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
    blocks: tuple[BlockMode, ...] = ()

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

        samples = Samples(lambda: self.fitted, options, self.runtime)
        return Job(self.model, sites, self.modes, samples, walk, self.blocks)


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
