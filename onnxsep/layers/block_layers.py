"""Layers that the replacements of block modes are made of, beside Convs and sums."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import Layer


@dataclass(frozen=True)
class _Unary(Layer):
    input: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Its input."""
        return (self.input,)


@dataclass(frozen=True)
class NormLayer(_Unary):
    """A BatchNormalization that normalises by constant statistics."""

    channels: int
    epsilon: float = 1e-5

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Gamma, beta, mean and variance, in ONNX's order."""
        return tuple((name, (self.channels,)) for name in ("scale", "bias", "mean", "variance"))


@dataclass(frozen=True)
class ElementwiseLayer(_Unary):
    """An operator of one tensor, element by element, with attributes alone: Relu, Sigmoid, LeakyRelu, ..."""

    op_type: str
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class GlobalPoolLayer(_Unary):
    """The mean of each channel over all positions: [N, C, 1, ...]."""

    @property
    def is_global(self) -> bool:
        """Always."""
        return True

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """One position."""
        return (1,) * len(size)


@dataclass(frozen=True)
class FlattenLayer(_Unary):
    """[N, C, 1, ...] as [N, C], behind a ``GlobalPoolLayer``."""

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """No spatial dimensions."""
        return ()


@dataclass(frozen=True)
class GateLayer(Layer):
    """The product of a tensor with numbers for each of its channels, [N, C, 1, ...]."""

    input: str
    gate: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensor, then the numbers."""
        return self.input, self.gate


@dataclass(frozen=True)
class ConcatLayer(Layer):
    """Earlier layers of the same sizes beside one another, along the channels."""

    inputs: tuple[str, ...]
    channels: int = field(kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """What stands beside one another, in order."""
        return self.inputs

    def output_channels(self, channels: int) -> int:
        """All of them."""
        return self.channels


@dataclass(frozen=True)
class ShuffleLayer(_Unary):
    """A channel shuffle (X. Zhang et al. 2018): channel k of group g becomes channel g of group k.

    Attributes:
        groups: how many the channels stand in before; they divide the channels.
    """

    groups: int

    def order(self, channels: int) -> tuple[int, ...]:
        """Which channel of the input each of the output is."""
        each = channels // self.groups
        return tuple(group * each + place for place in range(each) for group in range(self.groups))


@dataclass(frozen=True)
class ClipLayer(_Unary):
    """Values outside of a range become its ends; 0 and 6 make ReLU6 (A. Howard et al. 2017)."""

    least: float = 0.0
    most: float = 6.0


@dataclass(frozen=True)
class BoundsLayer(_Unary):
    """A Clip whose bounds are tensors of the source."""

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The lower and the upper bound."""
        return (("least", ()), ("most", ()))


@dataclass(frozen=True)
class TransposeLayer(_Unary):
    """The channels change places with one spatial axis.

    Attributes:
        axis: the spatial axis, 0 for the first.
        channels: of the output, which is the size of the input along that axis.
    """

    axis: int
    channels: int
    before: int
    """Channels of the input."""

    @property
    def density(self) -> Fraction:
        """As many elements in other channels."""
        return Fraction(self.before, self.channels)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The channels of the input stand along the axis."""
        return (*size[: self.axis], self.before, *size[self.axis + 1 :])

    def output_channels(self, channels: int) -> int:
        """The size along the axis."""
        return self.channels


@dataclass(frozen=True)
class AveragePoolLayer(_Unary):
    """The mean of the values under a window, its padding not counted.

    Attributes:
        window: kernel, strides and pads as those of a Conv; its channels do not matter.
    """

    window: Conv

    @property
    def density(self) -> Fraction:
        """The product of its strides."""
        return Fraction(1, math.prod(self.window.strides))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """As the window gives it."""
        return self.window.output_size(size)
