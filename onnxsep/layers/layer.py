"""The layers of a replacement, and their parameters and MACs.

Each kind of layer is one class that says what it does to channels and sizes; how it is written as a node is said in
``onnxsep.engine.node_forms``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnxsep.layers.conv import Conv

INPUT = "input"  # the name by which layers of a replacement refer to the input of what they replace


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of a replacement. ``name`` becomes the suffix of its node, its output and its tensors."""

    name: str

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """What it reads: names of earlier layers, or ``INPUT``. All have the same spatial sizes."""

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of each constant tensor that it computes with, in the order of its node's operands."""
        return ()

    @property
    def parameters(self) -> int:
        """Elements of its tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def density(self) -> Fraction:
        """Positions of its output for each position of its input, far from the border."""
        return Fraction(1)

    @property
    def relative_macs(self) -> Fraction:
        """MACs for each position of its input, far from the border."""
        return Fraction(0)

    def macs(self, size: Sequence[int]) -> int:
        """MACs for inputs of spatial sizes ``size``."""
        return 0

    @property
    def is_global(self) -> bool:
        """Whether its output has one position, however many its input has."""
        return False

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of its output for inputs of spatial sizes ``size``."""
        return tuple(size)

    def output_channels(self, channels: int) -> int:
        """Channels of its output where its first source has ``channels``."""
        return channels


@dataclass(frozen=True)
class ConvLayer(Layer):
    """One Conv of a replacement."""

    input: str
    conv: Conv

    @property
    def sources(self) -> tuple[str, ...]:
        """Its input."""
        return (self.input,)

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The weight, and the bias where there is one."""
        bias = (("bias", (self.conv.out_channels,)),) if self.conv.bias else ()
        return (("weight", self.conv.weight_shape), *bias)

    @property
    def density(self) -> Fraction:
        """The product of its strides, which is below the line unless it is a transposed one."""
        strides = math.prod(self.conv.strides)
        return Fraction(strides) if self.conv.transposed else Fraction(1, strides)

    @property
    def relative_macs(self) -> Fraction:
        """One for each element of the weight, at each output, or at each input of a transposed one."""
        return Fraction(self.conv.weight_size) * (1 if self.conv.transposed else self.density)

    def macs(self, size: Sequence[int]) -> int:
        """As the Conv's geometry gives it."""
        return self.conv.macs(size)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """As the Conv's geometry gives it."""
        return self.conv.output_size(size)

    def output_channels(self, channels: int) -> int:
        """Those of the Conv."""
        return self.conv.out_channels


@dataclass(frozen=True)
class AddLayer(Layer):
    """The element-wise sum of two earlier layers of the same shape; it has no parameters."""

    inputs: tuple[str, str]

    @property
    def sources(self) -> tuple[str, ...]:
        """The two summands."""
        return self.inputs


@dataclass(frozen=True)
class ChannelPadLayer(Layer):
    """The first ``channels`` channels of an earlier layer, or zeros behind them where it has fewer; no parameters."""

    input: str
    channels: int

    @property
    def sources(self) -> tuple[str, ...]:
        """Its input."""
        return (self.input,)

    def output_channels(self, channels: int) -> int:
        """Those that it is told to give."""
        return self.channels


def parameters(layers: Sequence[Layer]) -> int:
    """Parameters (weights and biases) of a replacement."""
    return sum(layer.parameters for layer in layers)


def macs(layers: Sequence[Layer], size: Sequence[int]) -> int:
    """MACs of a replacement for one image whose spatial sizes at the replacement's input are ``size``."""
    sizes: dict[str, tuple[int, ...]] = {INPUT: tuple(size)}
    total = 0
    for layer in layers:
        read = sizes[layer.sources[0]]
        sizes[layer.name] = layer.output_size(read)
        total += layer.macs(read)
    return total


def channels(layers: Sequence[Layer], in_channels: int) -> dict[str, int]:
    """The channels of the input and of every layer, by name."""
    found = {INPUT: in_channels}
    for layer in layers:
        found[layer.name] = layer.output_channels(found[layer.sources[0]])
    return found


def relative_macs(layers: Sequence[Layer]) -> Fraction:
    """MACs per input position where sizes are unknown: padding is neglected and strides divide the sizes evenly."""
    density: dict[str, Fraction] = {INPUT: Fraction(1)}
    total = Fraction(0)
    for layer in layers:
        read = density[layer.sources[0]]
        density[layer.name] = Fraction(0) if layer.is_global else read * layer.density
        total += read * layer.relative_macs
    return total
