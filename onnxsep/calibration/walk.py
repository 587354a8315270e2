"""Walking a network along its Convs with calibration inputs, and sampling what each Conv reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.calibration.fitting import PRIOR
from onnxsep.calibration.frontier import Frontier, Store
from onnxsep.calibration.memory import Needs
from onnxsep.calibration.sampling import Floats, Indices, choose_positions, gather_patches, input_sizes
from onnxsep.calibration.schedule import Step
from onnxsep.engine.matches import ConvSite
from onnxsep.errors import CalibrationError, spelled
from onnxsep.model.io import Model
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import RuntimeOptions

HELD_OUT = 0.1  # of the images


@dataclass(frozen=True)
class CalibrationOptions:
    """How calibration data are used.

    Attributes:
        positions: output positions sampled per image.
        seed: of the sampling.
        memory: bytes for activations, at most those of ``needs``; beyond that they go to temporary files.
        prior: pull towards the original weight, relative to the data; it is stronger where rows are few.
        refine: rounds in which two Convs in a row are fitted again, with "joint".
        needs: how memory is shared.
        block_steps: of training each block of a block mode, behind its fit.
    """

    positions: int = 64
    seed: int = 0
    memory: int = 2 * 2**30
    prior: float = PRIOR
    refine: int = 0
    needs: Needs = field(default_factory=Needs)
    block_steps: int = 0


@dataclass(frozen=True)
class Rows:
    """What one Conv reads in one batch, at sampled output positions.

    Attributes:
        batch: number of the batch.
        size: spatial sizes of the Conv's input.
        positions: [images, n], flat indices of output positions.
        patches: [images * n, in_channels * taps].
        held_out: [images * n], the rows that are not for fitting.
    """

    batch: int
    size: tuple[int, ...]
    positions: Indices
    patches: Floats
    held_out: NDArray[np.bool_]


class Walk:
    """The original network at some point of a schedule.

    Args:
        model: the source.
        batches: inputs by name, in the model's own types; the first dimension counts images.
        options: how positions are sampled.
        runtime: how pieces of the network are run.

    Attributes:
        frontier: of the network, from its inputs on.
        copied: whether it is a float32 copy of the source.
        samples: how many there are.
        images: how many of them each batch holds.
        held_out: which of them are not for fitting.
        nodes: of the network.

    Raises:
        CalibrationError: there are fewer than two samples, so that none could be held out.
    """

    def __init__(
        self,
        model: Model,
        batches: Iterable[Mapping[str, NDArray[Any]]],
        options: CalibrationOptions,
        runtime: RuntimeOptions,
    ) -> None:
        self.options = options
        self.copied = bool(held_types(model))  # the runtime has no Conv for float64 and bfloat16
        network = float32_copy(model) if self.copied else model
        self.images: list[int] = []
        self.frontier = Frontier(
            network, self._counted(batches), runtime, Store(min(options.memory, options.needs.store))
        )
        self.samples = sum(self.images)
        if self.samples < 2:
            raise CalibrationError(
                f"calibration needs at least 2 samples, for some are held out to measure the error; got {self.samples}"
            )
        self.nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in network.proto.graph.node]
        self.held_out = _held_out(self.samples, options.seed)
        self._step: Step | None = None
        self._gates: dict[str, list[NDArray[Any]]] | None = None

    def _counted(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[Mapping[str, NDArray[Any]]]:
        for batch in batches:
            self.images.append(_images(batch))
            yield {name: as_float32(array) for name, array in batch.items()} if self.copied else batch

    def advance(self, step: Step, told: Callable[[int, int], None] | None = None) -> None:
        """Move on to the Conv of this step; ``told`` is that of ``Frontier.advance``."""
        self.frontier.advance([self.nodes[index] for index in step.nodes], step.keep, told)
        self._step, self._gates = step, None

    def gated(self, frontier: Frontier) -> Frontier:
        """A network at this step, with the gates that the original one has behind the Conv."""
        if self._step is None or not self._step.aside:
            return frontier
        if self._gates is None:
            names = self._step.tail.gates
            run = self.frontier.piece([self.nodes[index] for index in self._step.aside], names)
            found = [run(batch, {}) for batch in range(self.frontier.batches)]
            self._gates = {name: [values[name] for values in found] for name in names}
        return frontier.having(self._gates)

    def rows(self, site: ConvSite) -> Iterator[Rows]:
        """What the Conv reads, batch by batch; the same positions every time.

        Raises:
            CalibrationError: it reads NaN or infinity, or nothing at all.
        """
        name = self.nodes[site.place[1]].input[0]
        rng = np.random.default_rng([self.options.seed, *site.place])
        first = 0
        for batch, images in enumerate(self.images):
            values = self.frontier.value(batch, name)
            if values.ndim == 1:  # of a MatMul: one row
                values = values[None]
            if not values.size:
                raise CalibrationError(
                    f"{site.op_type} {site.name!r} reads an empty tensor on the calibration data; leave it out with "
                    f"{spelled('skip')}"
                )
            size = input_sizes(site.conv, values.shape)
            positions = choose_positions(site.conv, size, len(values), self.options.positions, rng)
            mask = self.held_out[first : first + images]
            # Where a batch has become more entries, or fewer, each belongs to the image at its place in the batch.
            owner = np.arange(len(values)) * images // len(values)
            by_row = np.repeat(mask[owner], positions.shape[1])
            patches = finite(gather_patches(site.conv, values, positions), site)
            yield Rows(batch, size, positions, patches, by_row)
            first += images


def split(held_out: NDArray[np.bool_], seed: int, site: ConvSite) -> NDArray[np.bool_]:
    """The rows that are not for fitting: as given, or, if they are all of one kind, a tenth of them.

    Raises:
        CalibrationError: there are fewer than two rows.
    """
    if held_out.any() and not held_out.all():
        return held_out
    if len(held_out) < 2:
        raise CalibrationError(
            f"{site.op_type} {site.name!r} has only {len(held_out)} output positions on the calibration data, too few "
            f"to fit and to measure; give more {spelled('samples')} or {spelled('positions')}, or leave it"
            f" out with {spelled('skip')}"
        )
    return _held_out(len(held_out), seed)


def finite(patches: Floats, site: ConvSite) -> Floats:
    """The patches, if there is no NaN or infinity among them.

    Raises:
        CalibrationError: there is.
    """
    if not np.isfinite(patches).all():
        raise CalibrationError(
            f"{site.op_type} {site.name!r} reads NaN or infinity on the calibration data; check the data and their "
            f"preprocessing, or leave it out with {spelled('skip')}"
        )
    return patches


def _images(batch: Mapping[str, NDArray[Any]]) -> int:
    """How many samples a batch holds: the first dimension that its inputs share, else one."""
    sizes = {array.shape[0] if array.ndim else 1 for array in batch.values()}
    return int(sizes.pop()) if len(sizes) == 1 else 1


def _held_out(images: int, seed: int) -> NDArray[np.bool_]:
    """Which samples are not for fitting: a tenth of them, at least one."""
    mask = np.zeros(images, bool)
    mask[np.random.default_rng(seed).permutation(images)[: max(1, round(HELD_OUT * images))]] = True
    return mask
