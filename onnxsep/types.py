"""The nouns of onnxsep: a convolution's geometry, the layers of a replacement, ranks.

Nothing here knows ONNX or holds weights, so parameters and MACs can be counted for a plan before any weight is read.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from onnxsep.errors import OptionError

AutoPad = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]


@dataclass(frozen=True)
class Conv:
    """The geometry of one convolution of any number of spatial dimensions, as ONNX's Conv defines it.

    A Gemm or a MatMul is one without spatial dimensions: kernel_shape (), and a weight [out_channels, in_channels].
    ``pads`` holds all begins, then all ends (ONNX's order) and counts only where ``auto_pad`` is NOTSET.
    """

    in_channels: int
    out_channels: int
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1
    bias: bool = False
    auto_pad: AutoPad = "NOTSET"

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel_shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[out_channels, in_channels / group, *kernel_shape]."""
        return (self.out_channels, self.in_channels // self.group, *self.kernel_shape)

    @property
    def weight_size(self) -> int:
        """Elements of the weight."""
        return math.prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """Elements of the weight and the bias."""
        return self.weight_size + (self.out_channels if self.bias else 0)

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial sizes of the output for an input of spatial sizes ``size`` (0 where the kernel does not fit)."""
        sizes = []
        for axis, extent in enumerate(size):
            stride = self.strides[axis]
            window = (self.kernel_shape[axis] - 1) * self.dilations[axis] + 1
            if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                sizes.append(-(-extent // stride))
                continue
            padding = 0 if self.auto_pad == "VALID" else self.pads[axis] + self.pads[axis + self.dims]
            sizes.append(max(0, (extent + padding - window) // stride + 1))
        return tuple(sizes)

    def macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulate operations for one image of spatial sizes ``size``, padding counted like data."""
        return math.prod(self.output_size(size)) * self.weight_size

    def along(self, axes: Collection[int], in_channels: int, out_channels: int, *, bias: bool) -> "Conv":
        """The convolution over ``axes`` only: they keep kernel, stride, pads and dilation."""
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_shape=_keep(self.kernel_shape, axes, 1),
            strides=_keep(self.strides, axes, 1),
            dilations=_keep(self.dilations, axes, 1),
            pads=_keep(self.pads[: self.dims], axes, 0) + _keep(self.pads[self.dims :], axes, 0),
            bias=bias,
        )

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool, group: int = 1) -> "Conv":
        """A 1 x 1 convolution with as many spatial dimensions as this one."""
        ones = (1,) * self.dims
        return Conv(in_channels, out_channels, ones, ones, (0,) * (2 * self.dims), ones, group=group, bias=bias)


def _keep(values: Sequence[int], axes: Collection[int], other: int) -> tuple[int, ...]:
    return tuple(value if axis in axes else other for axis, value in enumerate(values))


OpType = Literal["Conv", "Gemm", "MatMul"]
"""What a mode may replace; the last two only where it asks for them (``Mode.linear_layers``)."""

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


@dataclass(frozen=True)
class RankAxis:
    """One rank that a mode can choose: ``step``, 2 ``step``, ... up to ``full``, where the replacement is exact.

    ``unit`` is "channels" (the channels in between) or "terms" (parallel summands). For a grouped Conv ``step`` is
    the number of groups, for every group has the same rank.
    """

    unit: Literal["channels", "terms"]
    full: int
    paper: int
    step: int = 1

    def clamp(self, rank: int) -> int:
        """The nearest usable rank that is not above ``rank``, or the smallest one."""
        return max(self.step, min(rank, self.full) // self.step * self.step)


Rank = tuple[int, ...]


@dataclass(frozen=True)
class RankPolicy:
    """How ranks are chosen: the five forms of ``--rank``."""

    kind: Literal["paper", "integer", "fraction", "energy", "full"]
    value: float = 0.0

    @classmethod
    def parse(cls, rank: "RankPolicy | str | float") -> "RankPolicy":
        """Read ``paper``, ``full``, an integer, a fraction with a point, or ``energy=SHARE``.

        Raises:
            OptionError: the text is none of these, or the value is out of range.
        """
        if isinstance(rank, RankPolicy):
            return rank
        if isinstance(rank, bool):
            raise OptionError(_rank_message(rank))
        text = str(rank).strip()
        if text in ("paper", "full"):
            return cls("paper" if text == "paper" else "full")
        try:
            if text.startswith("energy="):
                return cls._share("energy", float(text.removeprefix("energy=")), text)
            if "." in text or "e" in text.lower():
                return cls._share("fraction", float(text), text)
            value = int(text)
        except ValueError:
            raise OptionError(_rank_message(rank)) from None
        if value < 1:
            raise OptionError(f"rank out of range: {text}; an integer rank must be at least 1")
        return cls("integer", value)

    @classmethod
    def _share(cls, kind: Literal["energy", "fraction"], value: float, text: str) -> "RankPolicy":
        if not 0.0 < value <= 1.0:
            raise OptionError(f"rank out of range: {text}; a share must be above 0 and at most 1")
        return cls(kind, value)

    def __str__(self) -> str:
        if self.kind == "integer":
            return str(int(self.value))
        if self.kind == "fraction":
            return repr(self.value)
        return f"energy={self.value!r}" if self.kind == "energy" else self.kind


def _rank_message(rank: object) -> str:
    return (
        f"cannot read the rank {rank!r}; use 'paper', 'full', an integer such as 16, "
        "a share of the parameters such as 0.5, or energy=0.95"
    )


Place = tuple[int, int]  # (scope, index of the node in it), in the order of onnxsep.scopes


@dataclass(frozen=True)
class Constant:
    """A constant tensor: Convs whose weights are equal ``Constant`` objects share the weight.

    ``nodes`` are the nodes that make it, producers first: none for an initialiser, one Constant node, or an
    expression of constants. ``scope`` is where the initialiser or the last of the nodes stands.
    """

    scope: int
    name: str
    nodes: tuple[Place, ...] = ()


@dataclass(frozen=True)
class ConvSite:
    """A Conv, Gemm or MatMul with constant weights that a mode may replace, and where it stands."""

    name: str  # the node's name, or its output's where it has none
    conv: Conv
    dtype: str  # of the weight: float32, float16, bfloat16, float64
    input_size: tuple[int, ...] | None  # spatial sizes of the input; None where the model does not tell
    batch: int | None  # first dimension of the input (Gemm, MatMul: all but the last multiplied); None: not told
    weight: Constant
    place: Place
    where: str  # the graph or function that holds the node, in words: "" for the main graph
    first: bool = False  # reached from a graph input without passing another Conv
    bias: Constant | None = None  # the bias, where it is a constant
    made_by: str = ""  # the mode of onnxsep that made this node, or ""
    stored: bool = True  # the weight is held by the file, not computed by an expression of constants
    pinned: tuple[str, ...] = ()  # what else uses the weight, so that it stays even when all its Convs are replaced
    op_type: OpType = "Conv"
    transposed: bool = False  # the stored weight is [in, out]: MatMul, and Gemm without transB


@dataclass(frozen=True)
class Rejected:
    """A convolution that is left alone, and why."""

    name: str
    op_type: str
    where: str
    reason: str
    place: Place
    site: ConvSite | None = None  # the Conv's geometry, where it is known
