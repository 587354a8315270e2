"""How the layers of a replacement are written as ONNX nodes: operator, attributes, the orientation of the weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.matches import BlockMatch, Match
from onnxsep.errors import PassError
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.layers.block_layers import (
    AveragePoolLayer,
    BoundsLayer,
    ClipLayer,
    ConcatLayer,
    ElementwiseLayer,
    FlattenLayer,
    GateLayer,
    GlobalPoolLayer,
    NormLayer,
    ShuffleLayer,
    TransposeLayer,
)
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import AddLayer, ChannelPadLayer, ConvLayer, Layer

ADD_BROADCASTS = 7  # below it Add and Gemm broadcast only where an attribute says so, and ONNX Runtime has neither
GEMM_WITHOUT_BIAS = 11  # the first operator set in which Gemm's C may be left out
PADS_ARE_AN_INPUT = 11  # below it an attribute of Pad
BOUNDS_ARE_INPUTS = 11  # below it attributes of Clip
CONV_HAS_DEFAULTS = 11  # below it what a Conv without strides or dilations does is not written down


@dataclass(frozen=True)
class Form:
    """One node: operator and attributes, and whether its weight is stored as [in_channels, out_channels].

    ``integers`` are constant operands that follow the inputs, by the suffix of their names; ``scalars`` are such
    operands in the type of the weights.
    """

    op_type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False
    integers: Mapping[str, list[int]] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    def operands(self, dtype: str) -> dict[str, NDArray[np.generic]]:
        """The constant operands, where weights are of this type."""
        integers = {suffix: np.array(values, np.int64) for suffix, values in self.integers.items()}
        return integers | {suffix: np.array(value, STORED_TYPES[dtype]) for suffix, value in self.scalars.items()}


@dataclass(frozen=True)
class Surroundings:
    """Where a layer is written: in place of what, in which operator set, and the channels that it reads."""

    match: Match
    opset: int
    channels: int


@singledispatch
def node_form(layer: Layer, around: Surroundings) -> Form:
    """The node of a layer.

    Raises:
        PassError: a Gemm or MatMul would need several groups, or nothing here can write such a layer.
    """
    raise PassError(f"{type(layer).__name__} {layer.name!r}: there is no node for such a layer")


@node_form.register
def _(layer: AddLayer, around: Surroundings) -> Form:
    # ONNX Runtime has no Add below 7, but Sum.
    return Form("Add" if around.opset >= ADD_BROADCASTS else "Sum")


@node_form.register
def _(layer: ChannelPadLayer, around: Surroundings) -> Form:
    pads = channel_pads(around.match.conv.dims, around.channels, layer.channels)
    if around.opset < PADS_ARE_AN_INPUT:
        return Form("Pad", {"pads" if around.opset > 1 else "paddings": pads})
    return Form("Pad", integers={"pads": pads})


@node_form.register
def _(layer: NormLayer, around: Surroundings) -> Form:
    attributes: dict[str, Any] = {"epsilon": layer.epsilon}
    return Form("BatchNormalization", attributes if around.opset >= ADD_BROADCASTS else {**attributes, "is_test": 1})


@node_form.register
def _(layer: ElementwiseLayer, around: Surroundings) -> Form:
    return Form(layer.op_type, dict(layer.attributes))


@node_form.register
def _(layer: GlobalPoolLayer, around: Surroundings) -> Form:
    return Form("GlobalAveragePool")


@node_form.register
def _(layer: FlattenLayer, around: Surroundings) -> Form:
    return Form("Flatten")


@node_form.register
def _(layer: GateLayer, around: Surroundings) -> Form:
    return Form("Mul")


@node_form.register
def _(layer: ConcatLayer, around: Surroundings) -> Form:
    return Form("Concat", {"axis": 1})


@node_form.register
def _(layer: ShuffleLayer, around: Surroundings) -> Form:
    return Form("Gather", {"axis": 1}, integers={"order": list(layer.order(around.channels))})


@node_form.register
def _(layer: ClipLayer, around: Surroundings) -> Form:
    if around.opset < BOUNDS_ARE_INPUTS:
        return Form("Clip", {"max": layer.most, "min": layer.least})
    return Form("Clip", scalars={"least": layer.least, "most": layer.most})


@node_form.register
def _(layer: BoundsLayer, around: Surroundings) -> Form:
    return Form("Clip")


@node_form.register
def _(layer: TransposeLayer, around: Surroundings) -> Form:
    perm = list(range(around.match.conv.dims + 2))
    perm[1], perm[layer.axis + 2] = layer.axis + 2, 1
    return Form("Transpose", {"perm": perm})


@node_form.register
def _(layer: AveragePoolLayer, around: Surroundings) -> Form:
    window = layer.window
    return Form(
        "AveragePool",
        {"kernel_shape": list(window.kernel_shape), "pads": list(window.pads), "strides": list(window.strides)},
    )


@node_form.register
def _(layer: ConvLayer, around: Surroundings) -> Form:
    """Convs for a Conv or ConvTranspose, a Gemm or MatMul for the same; a Gemm's weight keeps its orientation."""
    match, conv, opset = around.match.anchor, layer.conv, around.opset
    if match.conv.dims or (conv.dims and isinstance(around.match, BlockMatch)):
        return Form(
            "ConvTranspose" if conv.transposed else "Conv", conv_attributes(conv, opset), transposed=conv.transposed
        )
    if conv.group > 1 or conv.dims:
        what = "a grouped product" if conv.group > 1 else "a convolution"
        raise PassError(f"{match.op_type} {match.name!r} cannot be replaced by {what} (layer {layer.name!r})")
    if not conv.bias and (match.op_type == "MatMul" or opset < GEMM_WITHOUT_BIAS):
        return Form("MatMul", transposed=True)
    attributes = {} if match.transposed else {"transB": 1}
    if opset < ADD_BROADCASTS:
        attributes["broadcast"] = 1
    return Form("Gemm", attributes, match.transposed)


def channel_pads(dims: int, before: int, after: int) -> list[int]:
    """Pads that give an image of ``dims`` spatial dimensions ``after`` channels: negative ones leave channels out."""
    pads = [0] * (2 * (dims + 2))
    pads[dims + 3] = after - before
    return pads


def conv_attributes(conv: Conv, opset: int) -> dict[str, Any]:
    """The attributes of a Conv or ConvTranspose node, in alphabetical order, but for those that equal their defaults.

    The shape of the kernel, which is that of the weight, is given: some readers of ONNX files want it.
    """
    ones = [1] * conv.dims
    attributes: dict[str, Any] = {} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad}
    attributes.update(dilations=list(conv.dilations), group=conv.group, kernel_shape=list(conv.kernel_shape))
    if conv.output_padding:
        attributes["output_padding"] = list(conv.output_padding)
    if conv.auto_pad == "NOTSET":
        attributes["pads"] = list(conv.pads)
    attributes["strides"] = list(conv.strides)
    if opset >= CONV_HAS_DEFAULTS:
        nothing = [0] * conv.dims
        defaults = {"dilations": ones, "group": 1, "output_padding": nothing, "pads": nothing * 2, "strides": ones}
        attributes = {name: value for name, value in attributes.items() if value != defaults.get(name)}
    return attributes
