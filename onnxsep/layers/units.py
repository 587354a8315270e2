"""Groups of layers that several block modes are made of: gates of channels, DiCE units."""

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxsep.layers.block_layers import (
    AveragePoolLayer,
    ClipLayer,
    ConcatLayer,
    ElementwiseLayer,
    GateLayer,
    GlobalPoolLayer,
    NormLayer,
    ShuffleLayer,
    TransposeLayer,
)
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import AddLayer, ConvLayer, Layer

ACTIVATION_FORMS = ("relu", "relu6", "hardswish", "silu")
SHUFFLE_OPSET = 9  # below it a Constant node holds no integers
DICE_REDUCTION = 4  # of the channels within the gate of a DiCE unit


def gate(prefix: str, pooled: str, gated: str, widths: tuple[int, int, int], *, dims: int, twice: bool) -> list[Layer]:
    """A gate for each channel, from the means of channels (J. Hu, L. Shen and G. Sun 2018).

    Args:
        prefix: of the names; the last layer has it as its name.
        pooled: the layer whose channels' means are taken.
        gated: the layer that is multiplied.
        widths: channels of ``pooled``, in between, of ``gated``.
        dims: spatial axes.
        twice: whether the gate lies between 0 and 2, so that it can start as 1, and not between 0 and 1.
    """
    reduce, expand = (pointwise(dims, *pair, bias=False) for pair in (widths[:2], widths[1:]))
    layers: list[Layer] = [
        GlobalPoolLayer(f"{prefix}_pool", pooled),
        ConvLayer(f"{prefix}_reduce", f"{prefix}_pool", reduce),
        ElementwiseLayer(f"{prefix}_relu", f"{prefix}_reduce", "Relu"),
        ConvLayer(f"{prefix}_expand", f"{prefix}_relu", expand),
        ElementwiseLayer(f"{prefix}_sigmoid", f"{prefix}_expand", "Sigmoid"),
    ]
    if twice:
        layers.append(AddLayer(f"{prefix}_twice", (f"{prefix}_sigmoid",) * 2))
    return [*layers, GateLayer(prefix, gated, layers[-1].name)]


def dice(
    prefix: str, source: str, widths: tuple[int, int], size: Sequence[int], *, paper: bool, norm: bool = True
) -> list[Layer]:
    """A DiCE unit (S. Mehta, H. Hajishirzi and M. Rastegari 2019, DiCENet) at stride 1.

    A k x k Conv within each channel, within each row and within each column (a row or column stands in the place of a
    channel there), their outputs beside one another and shuffled, a 1 x 1 Conv that joins the three of each channel;
    then a grouped 3 x 3 Conv to the outputs, with a gate from the means.

    Args:
        prefix: of the names; the last layer has it as its name.
        source: what it reads.
        widths: channels that come in, and go out.
        size: spatial sizes of what it reads, two of them.
        paper: pads as in paper 004's own code: 1 at the 1 x 1 Conv and 0 at the last one; else 0 and 1, as DiCENet has.
        norm: BatchNormalization behind the Convs; else these have biases.
    """
    few, many = widths
    edge = int(paper)
    layers: list[Layer] = [ConvLayer(f"{prefix}_depth", source, depthwise(few))]
    for axis, (kind, lines) in enumerate(zip(("rows", "columns"), size, strict=True)):
        turned = f"{prefix}_{kind}"
        layers += [
            TransposeLayer(f"{turned}_first", source, axis, lines, few),
            ConvLayer(f"{turned}_conv", f"{turned}_first", depthwise(lines)),
            TransposeLayer(turned, f"{turned}_conv", axis, few, lines),
        ]
    layers.append(
        ConcatLayer(f"{prefix}_three", (f"{prefix}_depth", f"{prefix}_rows", f"{prefix}_columns"), channels=3 * few)
    )
    before = f"{prefix}_three"
    if norm:
        layers.append(NormLayer(f"{prefix}_three_norm", before, 3 * few))
        before = f"{prefix}_three_norm"
    layers += [
        ElementwiseLayer(f"{prefix}_three_relu", before, "Relu"),
        ShuffleLayer(f"{prefix}_shuffle", f"{prefix}_three_relu", 3),
    ]
    join = replace(pointwise(2, 3 * few, few, bias=not norm, group=few), pads=(edge,) * 4)
    layers += normed(f"{prefix}_join", f"{prefix}_shuffle", join, "Relu", norm=norm)
    spread = replace(depthwise(few, bias=not norm), out_channels=many, group=math.gcd(few, many), pads=(1 - edge,) * 4)
    layers += normed(f"{prefix}_spread", layers[-1].name, spread, "Relu", norm=norm)
    joined = next(layer.name for layer in reversed(layers) if layer.name.startswith(f"{prefix}_join"))
    inner = max(1, few // DICE_REDUCTION)
    return [*layers, *gate(prefix, joined, layers[-1].name, (few, inner, many), dims=2, twice=False)]


def strided_dice(
    prefix: str, source: str, widths: tuple[int, int], size: Sequence[int], window: Conv, *, paper: bool, norm: bool
) -> list[Layer]:
    """A DiCE unit where the sizes shrink: half of the outputs from a depthwise and a 1 x 1 Conv, half from DiCE.

    Args:
        prefix: of the names; the last layer, a channel shuffle of two groups, has it as its name.
        source: what it reads.
        widths: channels that come in, and go out.
        size: spatial sizes behind the window.
        window: kernel, strides and pads of the depthwise Conv, and of the means that DiCE reads.
        paper: as for ``dice``.
        norm: as for ``dice``.
    """
    few, many = widths
    first = -(-many // 2)
    slide = replace(window, in_channels=few, out_channels=few, group=few, bias=not norm)
    layers = normed(f"{prefix}_slide", source, slide, "Relu", norm=norm)
    mix = pointwise(2, few, first, bias=not norm)
    layers += normed(f"{prefix}_mix", layers[-1].name, mix, "Relu", norm=norm)
    beside = layers[-1].name
    layers.append(AveragePoolLayer(f"{prefix}_mean", source, window))
    layers += dice(f"{prefix}_unit", f"{prefix}_mean", (few, many - first), size, paper=paper, norm=norm)
    both = ConcatLayer(f"{prefix}_both", (beside, f"{prefix}_unit"), channels=many)
    return [*layers, both, ShuffleLayer(prefix, both.name, 2)]


def normed(name: str, source: str, conv: Conv, activation: str, *, norm: bool) -> list[Layer]:
    """A Conv, BatchNormalization where ``norm`` says so, and an activation ("": none).

    Args:
        name: of the Conv; the others have it as the start of theirs.
        source: what it reads.
        conv: its geometry.
        activation: one of ``ACTIVATION_FORMS``, or an operator's name.
        norm: whether there is a BatchNormalization.
    """
    layers: list[Layer] = [ConvLayer(name, source, conv)]
    if norm:
        layers.append(NormLayer(f"{name}_norm", name, conv.out_channels))
    if activation:
        layers += activated(f"{name}_act", layers[-1].name, activation)
    return layers


def activated(name: str, source: str, form: str) -> list[Layer]:
    """An activation: one of ``ACTIVATION_FORMS``, or an operator; the last layer has the name given."""
    if form == "relu6":
        return [ClipLayer(name, source)]
    if form in ("silu", "hardswish"):  # as products, which every operator set has
        sixth = (("alpha", 1 / 6), ("beta", 0.5))
        kind, given = ("Sigmoid", ()) if form == "silu" else ("HardSigmoid", sixth)
        return [ElementwiseLayer(f"{name}_gate", source, kind, given), GateLayer(name, source, f"{name}_gate")]
    return [ElementwiseLayer(name, source, "Relu" if form == "relu" else form)]


def pointwise(dims: int, inputs: int, outputs: int, *, bias: bool, group: int = 1) -> Conv:
    """A 1 x 1 Conv."""
    ones = (1,) * dims
    return Conv(inputs, outputs, ones, ones, (0,) * (2 * dims), ones, group=group, bias=bias)


def depthwise(channels: int, *, dims: int = 2, kernel: int = 3, bias: bool = False) -> Conv:
    """A Conv within each channel that keeps the sizes."""
    return replace(
        pointwise(dims, channels, channels, bias=bias, group=channels),
        kernel_shape=(kernel,) * dims,
        pads=(kernel // 2,) * (2 * dims),
    )
