"""The layers of a replacement, and their parameters and MACs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnxsep.layers.conv import Conv

INPUT = "input"  # the name by which layers of a replacement refer to the input of the Conv that they replace


@dataclass(frozen=True)
class ConvLayer:
    """One Conv of a replacement. ``name`` becomes the suffix of its node, its output and its weight."""

    name: str
    input: str
    conv: Conv


@dataclass(frozen=True)
class AddLayer:
    """The element-wise sum of two earlier layers of the same shape; it has no parameters."""

    name: str
    inputs: tuple[str, str]


@dataclass(frozen=True)
class ChannelPadLayer:
    """The first ``channels`` channels of an earlier layer, or zeros behind them where it has fewer; no parameters."""

    name: str
    input: str
    channels: int


Layer = ConvLayer | AddLayer | ChannelPadLayer


def parameters(layers: Sequence[Layer]) -> int:
    """Parameters (weights and biases) of a replacement."""
    return sum(layer.conv.parameters for layer in layers if isinstance(layer, ConvLayer))


def macs(layers: Sequence[Layer], size: Sequence[int]) -> int:
    """MACs of a replacement for one image whose spatial sizes at the replacement's input are ``size``."""
    sizes: dict[str, tuple[int, ...]] = {INPUT: tuple(size)}
    total = 0
    for layer in layers:
        if isinstance(layer, ConvLayer):
            total += layer.conv.macs(sizes[layer.input])
            sizes[layer.name] = layer.conv.output_size(sizes[layer.input])
        else:
            sizes[layer.name] = sizes[layer.inputs[0] if isinstance(layer, AddLayer) else layer.input]
    return total


def channels(layers: Sequence[Layer], in_channels: int) -> dict[str, int]:
    """The channels of the input and of every layer, by name."""
    found = {INPUT: in_channels}
    for layer in layers:
        if isinstance(layer, ConvLayer):
            found[layer.name] = layer.conv.out_channels
        else:
            found[layer.name] = found[layer.inputs[0]] if isinstance(layer, AddLayer) else layer.channels
    return found


def relative_macs(layers: Sequence[Layer]) -> Fraction:
    """MACs per input position where sizes are unknown: padding is neglected and strides divide the sizes evenly."""
    density: dict[str, Fraction] = {INPUT: Fraction(1)}
    total = Fraction(0)
    for layer in layers:
        if isinstance(layer, ConvLayer):
            density[layer.name] = density[layer.input] / math.prod(layer.conv.strides)
            total += density[layer.name] * layer.conv.weight_size
        else:
            density[layer.name] = density[layer.inputs[0] if isinstance(layer, AddLayer) else layer.input]
    return total
