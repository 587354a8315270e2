"""What a fit needs of memory, before it starts, and how it stays within what it may take.

What can be made smaller is: samples are run a few at a time, as their activations are large, and of the tensors between
two Convs, which are kept for all samples, those beyond a limit go to files (``onnxsep.calibration.frontier``). What
cannot are the rows and matrices of one Conv; a Conv for which they are too large keeps the factors of its weights.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxsep.algebra.gram import keeps_rows
from onnxsep.calibration.schedule import Step
from onnxsep.errors import CalibrationError, spelled
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import infer_shapes, skeleton, tensor_shapes
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.options.sizes import in_bytes

_MOST = 50  # samples that are run at a time: more gain nothing
_RUN = 2**27  # bytes of what the largest node reads and makes, for all of these
_STORE = 2**30  # bytes of tensors between Convs; more gain nothing, for the system keeps files in memory that is free
_BASE = 350 * 2**20  # bytes of the program itself, and of libraries
_ITEM = 4  # bytes


@dataclass(frozen=True)
class Needs:
    """How a calibration shares the memory that it may take.

    Attributes:
        batch: samples that are run at a time.
        store: bytes of tensors between Convs that stay in memory.
        expected: bytes in all.
        too_large: bytes in all, by the place of Convs whose fit would need more than there may be.
        limit: bytes that there may be; infinity where that is not known.
    """

    batch: int = _MOST
    store: int = 2 * _STORE
    expected: int = 0
    too_large: Mapping[Place, int] = field(default_factory=dict)
    limit: float = math.inf

    def check(self, place: Place) -> None:
        """Refuse the fit of a Conv that would need too much.

        Raises:
            CalibrationError: it would.
        """
        if place in self.too_large:
            need, limit = in_bytes(self.too_large[place]), in_bytes(self.limit)
            raise CalibrationError(
                f"it would need about {need} of memory, and there may be {limit}; give more"
                f" {spelled('memory_limit')}, or fewer {spelled('samples')} or {spelled('positions')}"
            )


def needs(
    model: Model,
    steps: Sequence[Step],
    feed: Mapping[str, NDArray[Any]],
    samples: int,
    positions: int,
    limit: float,
    together: int = 1,
) -> Needs:
    """What fits of these Convs need.

    Args:
        model: the source.
        steps: its Convs, as they are walked along.
        feed: some samples.
        samples: how many there are.
        positions: of a map that are sampled.
        limit: bytes that the process may take.
        together: samples in the feed.
    """
    light = infer_shapes(skeleton(model), {name: array.shape for name, array in feed.items()})
    weights = {tensor.name for tensor in light.graph.initializer}
    sizes = {
        name: _ITEM * math.prod(size if isinstance(size, int) else 1 for size in shape)
        for name, shape in tensor_shapes(light.graph).items()
        if name not in weights
    }
    per_node = [_total({*node.input, *node.output}, sizes) for node in light.graph.node]
    largest = max(per_node, default=1) or 1
    batch = int(max(1, min(_MOST, min(_RUN, limit / 24) // largest)))
    live = _live(light, steps, sizes) * samples // together
    live *= 1 if len(steps) == 1 else 2  # networks
    store = int(min(_STORE, limit / 4))
    model_bytes = sum(_ITEM * math.prod(tensor.dims) for tensor in light.graph.initializer)
    inputs = samples * sum(array.nbytes for array in feed.values()) // together
    base = _BASE + 3 * model_bytes + inputs + min(max(live, inputs), store)
    running = 4 * largest * (batch if together == 1 else 1)  # what a node reads and makes, in two layouts
    fits = {}
    for step in steps:
        read, channels = light.graph.node[step.site.place[1]].input[0], step.site.conv.in_channels
        there = math.ceil(sizes[read] / _ITEM / channels / together) if read in sizes else positions
        fits[step.site.place] = _fit(step.site.conv, samples * min(positions, there))
    too_large = {place: base + size for place, size in fits.items() if base + size > limit}
    kept = [size for place, size in fits.items() if place not in too_large]
    return Needs(batch, store, base + max([running, *kept]), too_large, limit)


def _total(names: Collection[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes.get(name, 0) for name in names)


def _live(light: onnx.ModelProto, steps: Sequence[Step], sizes: Mapping[str, int]) -> int:
    """Bytes of what stands between two Convs, at most; ``Step.keep`` names what later ones make, too."""
    made, most = {value.name for value in light.graph.input}, 0
    for step in steps:
        made |= {name for index in step.nodes for name in light.graph.node[index].output}
        most = max(most, _total(made & step.keep, sizes))
    return most


def _fit(conv: Conv, rows: int) -> int:
    """Bytes for the fit of one Conv to so many rows."""
    width = conv.weight_size // conv.out_channels  # of a group
    samples = rows * (conv.group * width + 6 * conv.out_channels) * _ITEM
    if keeps_rows(rows, width):
        statistics = conv.group * rows * width * 3 * _ITEM
    else:
        statistics = conv.group * width**2 * 3 * _ITEM + 2 * width**2 * _ITEM
    factors = 8 * conv.weight_size * 2 * _ITEM
    return samples + statistics + factors


def available() -> float:
    """Bytes that this process may still take, with those that it has; infinity where the system does not tell."""
    return min(_read(_free), _read(_group_limit))


def _read(ask: Callable[[], float]) -> float:
    try:
        return ask()
    except (OSError, ValueError, IndexError, KeyError):  # another system
        return math.inf


def _free() -> float:
    """What the system can give without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]
    return int(kilobytes) * 1024 + _held()


def _held() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _group_limit() -> float:
    """The limit of the control group of a container."""
    text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    return math.inf if text == "max" else int(text)
