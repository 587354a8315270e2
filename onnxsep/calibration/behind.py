"""A region behind a Conv (``onnxsep.calibration.regions``) as a function of rows, run by ONNX Runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.frontier import Frontier
from onnxsep.calibration.regions import Region, model_of
from onnxsep.calibration.sampling import Floats
from onnxsep.errors import CalibrationError
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_STEP = 0.02  # of the spread of a channel, in which its slope is measured
_FLAT = 1e-3  # of the steepest channel: one that is flatter has no say


class Behind:
    """What becomes of values where a region starts.

    Args:
        region: the nodes.
        conv: whose channels they are.

    Raises:
        CalibrationError: the runtime cannot run the nodes.
    """

    def __init__(self, region: Region, conv: Conv) -> None:
        self._region, self._conv = region, conv
        try:
            self._runner = Runner(Model(model_of(region, conv)), RuntimeOptions(threads=1))
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run what stands behind it: {error}") from error

    def __call__(self, values: Floats, skips: Sequence[Floats]) -> Floats:
        """The values at the end of the region.

        Args:
            values: [rows, channels] at its start.
            skips: the same for each of its skips.
        """
        shape = (*values.shape, *(1,) * self._conv.dims)
        arrays = zip((self._region.start, *self._region.skips), (values, *skips), strict=True)
        feeds = {name: np.ascontiguousarray(array, np.float32).reshape(shape) for name, array in arrays}
        try:
            found: Floats = self._runner(feeds)[self._region.end]
        except CannotRun as error:
            raise CalibrationError(f"the runtime cannot run what stands behind it: {error}") from error
        return found.reshape(values.shape)


class End:
    """What counts of the sampled rows of a Conv where a region follows: what is reached at its end.

    With y' the outputs of the replacement, e(y') what these become at the end, and e what the original network has
    there, the target of the next round is y' + (e - e(y')) / L, with L the usual slope of e in that channel. It is
    reached where e(y') = e; where e is flat, as behind an activation that saturates, hardly anything is asked for.
    Where e rises everywhere and the weight is free this is the step of a convex problem (the matching loss of an
    activation, Auer, Herbster and Warmuth 1996). The step of the squared error has the slope of e at y' as a further
    factor. On three networks for digits (SiLU, HardSwish, LeakyRelu) and in six modes that was worse for the first two,
    better for the third, and no better on average; with single Convs before five activations never better.

    Args:
        behind: the region.
        skips: [rows, channels] of each of its skips, in the original network and in the rewritten one.
        wanted: [rows, channels] at its start in the original network.
    """

    def __init__(self, behind: Behind, skips: Sequence[tuple[Floats, Floats]], wanted: Floats) -> None:
        self._behind, self._skips = behind, skips
        self.reached = behind(wanted, [skip[0] for skip in skips])
        self._gain: Floats = np.zeros(0, np.float32)

    def measure_slopes(self, moved: Floats, step: Floats, rows: NDArray[np.bool_]) -> bool:
        """Take the slopes from what the end becomes where outputs move.

        Args:
            moved: [rows, channels] at the start of the region, for outputs that are a step higher.
            step: [channels].
            rows: which of them count.

        Returns:
            Whether all is finite.
        """
        slopes = (self._behind(moved, [skip[0] for skip in self._skips]) - self.reached) / step
        self._gain = inverse_slopes(slopes[rows]).astype(np.float32)
        return bool(np.isfinite(self.reached).all() and np.isfinite(slopes).all())

    def now(self, values: Floats, rows: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """The end in the rewritten network, for values of some rows at the start of the region."""
        return self._behind(values, [skip[1][rows] for skip in self._skips])

    def target(self, outputs: Floats, values: Floats, original: Floats) -> Floats:
        """What the outputs should be.

        Args:
            outputs: [rows, channels], what they are.
            values: the same at the start of the region.
            original: what they are in the original network, for channels that have no say at the end.
        """
        target = np.where(self._gain == 0, original, outputs + (self.reached - self.now(values)) * self._gain)
        finite: Floats = np.where(np.isfinite(target), target, original)
        return finite


def own_channels(value: NDArray[Any], conv: Conv, shape: tuple[int, ...], offset: int) -> NDArray[Any] | None:
    """The share of a skip that meets a Conv's channels, broadcast to the shape of its output.

    Args:
        value: the skip as it is.
        conv: the Conv.
        shape: of its output.
        offset: where its channels begin, behind a Concat.

    Returns:
        None where it would enlarge the output, or holds NaN or infinity.
    """
    axis = value.ndim - 1 - conv.dims
    if conv.dims and axis >= 0 and value.shape[axis] > 1 and (offset or value.shape[axis] != conv.out_channels):
        value = np.moveaxis(np.moveaxis(value, axis, 0)[offset : offset + conv.out_channels], 0, axis)
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    return np.broadcast_to(value, shape) if fits and np.isfinite(value).all() else None


def skip_values(
    region: Region, frontier: Frontier, batch: int, conv: Conv, shape: tuple[int, ...]
) -> list[NDArray[Any] | None]:
    """What a network has for each skip of a region, as ``own_channels`` gives it."""
    pairs = zip(region.skips, region.offset, strict=True)
    return [own_channels(frontier.value(batch, name), conv, shape, offset) for name, offset in pairs]


def fitting_region(
    region: Region | None,
    frontiers: Sequence[Frontier],
    conv: Conv,
    shape_of: Callable[[Frontier, int], tuple[int, ...]],
) -> Region | None:
    """The longest part of a region all of whose skips fit the Conv's output in all networks.

    Args:
        region: as found in the graph.
        frontiers: the networks.
        conv: the Conv.
        shape_of: the shape of its output in a batch of a network.
    """
    while region is not None:
        values = (
            value
            for frontier in frontiers
            for batch in range(frontier.batches)
            for value in skip_values(region, frontier, batch, conv, shape_of(frontier, batch))
        )
        if all(value is not None for value in values):
            break
        region = region.shorter
    return region


def inverse_slopes(slopes: Floats) -> Array:
    """[channels], one over the usual slope of each channel, with its sign; 0 for those that are (almost) flat.

    That is the root of the mean square. The steepest one would be safe whatever the data, and needs far more rounds.

    Args:
        slopes: [rows, channels].
    """
    usual: Array = np.sqrt(np.mean(np.square(slopes), axis=0, dtype=np.float64))
    sign = np.where(slopes.mean(axis=0, dtype=np.float64) < 0, -1.0, 1.0)
    usable = usual > _FLAT * usual.max(initial=0.0)
    return np.where(usable, sign / np.where(usable, usual, 1.0), 0.0)


def step_of(values: Floats) -> Floats:
    """[channels], a small step of the values of each channel."""
    spread = values.std(axis=0, dtype=np.float64) + 1e-3 * np.abs(values).mean(axis=0, dtype=np.float64)
    steps: Floats = np.where(spread > 0, _STEP * spread, _STEP).astype(np.float32)
    return steps
