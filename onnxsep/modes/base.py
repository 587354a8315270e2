"""What a mode is, and where modes are found.

A Conv mode (``Mode``) says how one Conv becomes several layers, a block mode (``BlockMode``) how several nodes do, a
width mode (``WidthMode``) how many channels layers keep. It is a class with a handful of small methods on plain arrays
and geometry; matching, choosing ranks, counting, building nodes, sharing weights and verifying are the engine's work.
The built-in modes live in ``passes/``, one file each, and enter by the same door as those of other packages: the
entry-point group ``onnxsep.modes``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import Statistics
from onnxsep.algebra.weight_metric import Inputs
from onnxsep.errors import FactorizationError, ModeNotFoundError
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import ConvLayer, Layer
from onnxsep.layers.rank import Rank, RankAxis
from onnxsep.modes.block import BlockMode
from onnxsep.modes.settings import Adjustable
from onnxsep.modes.width import WidthMode
from onnxsep.options.proposals import MODES_GROUP
from onnxsep.options.tomlfile import nearest

NOTHING_TO_SEPARATE = "a 1 x 1 kernel has nothing to separate"
"""Why modes that separate the kernel refuse a 1 x 1 Conv."""
IS_POINTWISE = "a 1 x 1 kernel: that is the mode pointwise"
"""Why modes that lower the rank between channels refuse a 1 x 1 Conv."""


@dataclass(frozen=True)
class Factors:
    """What a mode found: one weight for each Conv among its layers, in their order. Fields may be added."""

    weights: Sequence[Array]


@dataclass(frozen=True)
class Task:
    """What a mode factorises. Fields may be added; a mode reads those that it knows."""

    conv: Conv
    weight: Array
    """float64 [out_channels, in_channels / group, *kernel_shape], finite."""
    statistics: Statistics | None = None
    """What calibration data tell about the Conv, the prior included; None where there are none."""
    start: Factors | None = None
    """Factors of this rank to improve, where there are some."""
    sweeps: int = 12
    """Limit for iterative fits."""
    inputs: Inputs | None = None
    """What is known, without data, of what the Conv reads; None where that is nothing."""
    gains: Array | None = None
    """What a BatchNormalization behind the Conv multiplies each output channel by, [out_channels]; None without one."""
    told: Callable[[int, int], None] | None = None
    """To be told of each sweep that begins, and how many there may be."""


class Mode(Adjustable, ABC):
    """How one Conv becomes several layers.

    The engine calls ``accepts``; then ``rank_axis`` until it returns None, choosing one rank each time; then ``layers``
    for the counts; then ``factorize``, whose weights must have the shapes of the Convs among ``layers``, in that order.
    The bias stays the source's own tensor, on the one layer whose ``conv.bias`` is true.
    """

    name: ClassVar[str]
    """What the user writes after ``--mode``."""
    summary: ClassVar[str]
    """One line for ``--help`` and for the list of modes."""
    inits: ClassVar[tuple[str, ...]] = ("svd",)
    """How its factors can be found: "svd" (``factorize``), and what ``fit`` can do with calibration data."""
    linear_layers: ClassVar[bool] = False
    """Whether it takes Gemm and MatMul nodes too: a Conv without spatial dimensions, kernel_shape ()."""
    ranks_as_inputs: ClassVar[bool] = False
    """Whether it has the rank ``in``, which is ``RankAxis.inputs``."""

    transposed: ClassVar[bool] = False
    """Whether it takes ConvTranspose nodes too: Convs that say ``transposed``, with weights like all others."""

    @abstractmethod
    def accepts(self, conv: Conv) -> str | None:
        """None if the mode can replace ``conv``; else the reason why not, in words for the user."""

    @abstractmethod
    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """The range of the next rank, given those that were chosen already; None when all are chosen."""

    @abstractmethod
    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """The replacement: its last layer computes the output of ``conv``, and exactly at full rank."""

    def is_exact(self, conv: Conv, rank: Rank) -> bool:
        """Whether the replacement equals the Conv at these ranks, whatever its weight: by default, if all are full."""
        for position, used in enumerate(rank):
            axis = self.rank_axis(conv, rank[:position])
            if axis is None or used < axis.full:
                return False
        return True

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """Squared singular values [slices, n], descending, that the next rank truncates (for ``energy=``).

        Raises:
            FactorizationError: the mode has no such values.
        """
        raise FactorizationError(
            f"mode {self.name} has no singular values to keep a share of; use an integer or a share of the parameters"
        )

    @abstractmethod
    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The weights of ``layers(task.conv, rank)`` that come nearest to the Conv's.

        Args:
            task: the Conv and its weight.
            rank: as chosen within the ranges of ``rank_axis``.
        """

    def from_weights(self, task: Task, rank: Rank) -> Factors:
        """The weights of ``layers`` where there are no data: by default, those of ``factorize``.

        A mode may weigh errors by what is known of trained networks in general; ``factorize`` does not.
        """
        return self.factorize(task, rank)

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """The weights of ``layers`` that come nearest to the Conv's outputs, as ``task.statistics`` describe them.

        With x a patch and y the wanted outputs, all minimise the mean of |y - M x|^2 over what M the form can express;
        they differ in how far they go: "response" and "compensated" are Algorithms 1 and 2 of paper 002, "joint" solves
        for all factors together.

        Args:
            task: the Conv, its weight and the statistics.
            rank: as for ``factorize``.
            init: one of ``inits``, but not "svd".
        """
        raise NotImplementedError(f"mode {self.name} does not offer {init!r}")

    @abstractmethod
    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        """The weight, in the shape of ``conv``'s, of the one Conv that equals the replacement with these factors."""

    def apply(self, conv: Conv, factors: Factors, inputs: NDArray[Any]) -> NDArray[Any]:
        """What the replacement computes without its bias, in the type of what it reads.

        Args:
            conv: the Conv that is replaced.
            factors: the weights of the layers.
            inputs: patches under its kernel, [rows, in_channels * taps].

        Returns:
            [rows, out_channels].
        """
        dense = self.reconstruct(conv, factors).reshape(conv.group, conv.out_channels // conv.group, -1)
        dense = dense.astype(inputs.dtype)
        parts = inputs.reshape(len(inputs), conv.group, -1)
        return np.concatenate([parts[:, group] @ dense[group].T for group in range(conv.group)], axis=1)


AnyMode = Mode | BlockMode | WidthMode
"""What ``--mode`` names."""


@cache
def _installed() -> dict[str, AnyMode]:
    found: dict[str, AnyMode] = {}
    listed: dict[str, dict[str, EntryPoint]] = {}
    for entry_point in sorted(entry_points(group=MODES_GROUP), key=lambda entry: (entry.name, entry.value)):
        listed.setdefault(entry_point.name, {})[entry_point.value] = entry_point
    for name, places in listed.items():
        if len(places) > 1:
            _broken()[name] = f"several packages bring a mode of this name: {', '.join(places)}; uninstall all but one"
            continue
        (entry_point,) = places.values()
        try:
            mode = entry_point.load()()
            named = getattr(mode, "name", "") == name and getattr(mode, "summary", "")
            if not isinstance(mode, AnyMode) or not named:
                what = "an onnxsep.Mode, BlockMode or WidthMode"
                raise TypeError(f"{entry_point.value} must give {what} with the name {name!r} and a summary")
        except Exception as error:  # one broken package must not take the other modes away; find_mode() tells why
            _broken()[name] = f"{type(error).__name__}: {error}"
            continue
        found[name] = mode
    return found


@cache
def _broken() -> dict[str, str]:
    return {}


def available_modes() -> dict[str, AnyMode]:
    """All installed modes by name, in alphabetical order."""
    return dict(_installed())


def conv_modes() -> dict[str, Mode]:
    """The installed modes that take the place of one Conv each, by name."""
    return {name: mode for name, mode in _installed().items() if isinstance(mode, Mode)}


def broken_modes() -> dict[str, str]:
    """Why modes that are listed by a package cannot be used, by name."""
    _installed()
    return dict(_broken())


def find_mode(mode: str | AnyMode) -> AnyMode:
    """The mode of that name, of either kind; an object is returned as it is.

    Raises:
        ModeNotFoundError: no such mode is installed, or the package that brings it cannot be imported.
    """
    if not isinstance(mode, str):
        return mode
    modes = _installed()
    if mode in modes:
        return modes[mode]
    if mode in _broken():
        raise ModeNotFoundError(f"the mode {mode!r} is installed but cannot be loaded: {_broken()[mode]}")
    known = ", ".join(modes) or "none: is onnxsep installed? (entry points of group onnxsep.modes)"
    near = nearest(mode, modes)
    raise ModeNotFoundError(f"unknown mode {mode!r}{f'{near} The' if near else '; the'} installed modes are: {known}")


def get_mode(mode: str | Mode) -> Mode:
    """The Conv mode of that name; a Mode object is returned as it is.

    Raises:
        ModeNotFoundError: as for ``find_mode``, or it is a block mode.
    """
    found = find_mode(mode)
    if not isinstance(found, Mode):
        kind = "block" if isinstance(found, BlockMode) else "width"
        raise ModeNotFoundError(f"{found.name!r} is a {kind} mode, and a mode for one Conv is needed here")
    return found


def factor_shapes(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """The weight shapes that ``factorize`` must return for ``layers``."""
    return [layer.conv.weight_shape for layer in layers if isinstance(layer, ConvLayer)]
