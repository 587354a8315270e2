"""fire: a k x k Conv as SqueezeNet's Fire module: 1 x 1 to few channels, then 1 x 1 and k x k side by side.

What it does
    s = A x + a (1 x 1, to q channels), then the first e outputs B s + b (1 x 1) and the others C * s + c (k x k, with
    the Conv's stride, pads and dilation), joined along the channels (F. Iandola et al. 2016; paper 004, V5: q is an
    eighth of the outputs, e a half). q (I + 1) + e (q + 1) + (O - e)(k^2 q + 1) parameters in place of O (k^2 I + 1).

Pattern
    A Conv. BatchNormalization and activations behind it, whatever they are, work channel by channel, so what the paper
    has behind each of the two branches is the same as what stands behind the joined one: these nodes stay as they are.
    (The paper's BatchNormalization and Relu of the squeezed channels are never used, so they are not made.)

Initialisation
    Of the kernels of the first e outputs only the tap at the position itself can stay. With D [e, I] these taps and
    E [(O - e) k^2, I] the other kernels, the truncated SVD of [D; E] = U S V^T to rank q gives A = sqrt(S) V^T and
    [B; C] = U sqrt(S): the least error of the weights that the form allows, so that of the outputs for inputs that are
    white noise. Biases: a = 0; b and c are the Conv's own, or 0. Where q is above I, further rows of A are random (a
    fixed seed) and read by zeros.

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: fine-tune the result.

When it refuses
    1 x 1 and grouped Convs; less than two outputs; pads that are not those of a Conv with equal sizes of input and
    output (at stride 1), for the two branches would differ in size.

Settings
    squeeze: q as a share of the outputs; pointwise: e as a share of the outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxsep.modes import (
    INPUT,
    NOTHING_TO_SEPARATE,
    Array,
    Block,
    BlockMode,
    ConcatLayer,
    Const,
    Conv,
    ConvLayer,
    Layer,
    Op,
    Pattern,
    Setting,
    Value,
)

_SHARE = (lambda share: 0 < share < 1, "above 0 and below 1")


class Fire(BlockMode):
    """Squeeze, then two kinds of expanding Convs."""

    name = "fire"
    summary = "1 x 1 to few channels, then 1 x 1 and k x k side by side (Fire); far from exact"
    pattern = Pattern("Conv", Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True)))
    anchor = "conv"
    exact = False
    saves = True
    untrained = "new blocks start from a factorisation of the old weights: the network needs training"
    settings = (
        Setting("squeeze", 0.125, "channels in between, as a share of the outputs", _SHARE),
        Setting("pointwise", 0.5, "outputs of the 1 x 1 branch, as a share of all", _SHARE),
    )

    def accepts(self, block: Block) -> str | None:
        """Refuse Convs whose outputs a 1 x 1 Conv cannot stand beside."""
        conv = block.conv
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"it has {conv.group} groups"
        if conv.out_channels < 2:
            return "it has one output channel, and the form needs two"
        if conv.own_tap() is None:
            return (
                "its pads are not those that a 1 x 1 Conv beside it needs: for each axis dilation * (kernel - 1) in all"
            )
        return None

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """Squeeze; both expands; joined."""
        conv, (between, first) = block.conv, self._widths(block.conv)
        strided = replace(conv.pointwise(between, first, bias=True), strides=conv.strides)
        wide = replace(conv, in_channels=between, out_channels=conv.out_channels - first, bias=True)
        return (
            ConvLayer("squeeze", INPUT, conv.pointwise(conv.in_channels, between, bias=True)),
            ConvLayer("expand1", "squeeze", strided),
            ConvLayer("expand3", "squeeze", wide),
            ConcatLayer("fire", ("expand1", "expand3"), channels=conv.out_channels),
        )

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The truncated SVD of what the form can hold."""
        conv, (between, first) = block.conv, self._widths(block.conv)
        weight, centre = values["weight"], conv.own_tap()
        assert centre is not None
        taps = np.moveaxis(weight[first:], 1, -1)  # [O - e, *kernel, I]
        middle: tuple[Any, ...] = (slice(first), slice(None), *centre)
        both = np.concatenate([weight[middle], taps.reshape(-1, conv.in_channels)])
        u, s, vt = np.linalg.svd(both, full_matrices=False)
        used = min(between, len(s))
        squeeze = np.random.default_rng(0).normal(0, np.sqrt(1 / conv.in_channels), (between, conv.in_channels))
        squeeze[:used] = np.sqrt(s[:used, None]) * vt[:used]
        expand = np.zeros((len(both), between))
        expand[:, :used] = u[:, :used] * np.sqrt(s[:used])
        ones = (1,) * conv.dims
        bias = values.get("bias", np.zeros(conv.out_channels)).reshape(-1)
        return [
            squeeze.reshape(*squeeze.shape, *ones),
            np.zeros(between),
            expand[:first].reshape(first, between, *ones),
            bias[:first],
            np.moveaxis(expand[first:].reshape(*taps.shape[:-1], between), -1, 1),
            bias[first:],
        ]

    def _widths(self, conv: Conv) -> tuple[int, int]:
        """Channels in between, and outputs of the 1 x 1 branch; one at least."""
        between = max(1, round(conv.out_channels * self.setting("squeeze")))
        first = round(conv.out_channels * self.setting("pointwise"))
        return between, min(max(1, first), conv.out_channels - 1)
