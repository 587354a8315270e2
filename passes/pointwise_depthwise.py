"""pointwise-depthwise: a 1 x 1 Conv, then a k x k depthwise Conv; or the sum of T such pairs.

What it does
    W[o, i, :] ~ sum_t  P_t[o, i] D_t[o, :]        (T terms)

    The mode depthwise in the opposite order. For every OUTPUT channel o, the slice W[o, :, :] is an [in_channels, k*k]
    matrix; its T leading singular triplets give row o of the T pointwise weights (u sqrt(s)) and channel o of the T
    depthwise kernels (sqrt(s) v). Guo et al. (2018) name both orders; exact at T = min(in_channels, k*k).

When it wins
    At equal T it needs out_channels*k*k taps where depthwise needs in_channels*k*k, so it has fewer parameters where
    in_channels > out_channels. At stride 1 the MACs follow. At stride 2 the 1 x 1 Conv runs on the whole input, four
    times as often as after a depthwise Conv that strides: take depthwise there. Which of the two orders is nearer
    depends on the weights: compare the errors.

Form
    T parallel pairs and a chain of Adds, as in the mode depthwise. The depthwise Convs carry strides, pads, auto_pad
    and dilations (zeros that are padded after a 1 x 1 Conv without a bias are those that it would have made), the
    first one the bias. One term is the rank "paper", as in paper 000.

When it refuses
    A grouped Conv: its channels are separated already, wholly or in part. A 1 x 1 Conv: it has no taps to separate.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    NOTHING_TO_SEPARATE,
    Array,
    Conv,
    ConvLayer,
    Factors,
    Layer,
    Multilinear,
    Rank,
    RankAxis,
    Task,
    squared_singular_values,
    summed,
    truncated_svd,
)


class PointwiseDepthwise(Multilinear):
    """A 1 x 1 Conv and a depthwise Conv, or the sum of several such pairs."""

    name = "pointwise-depthwise"
    summary = "1 x 1, then k x k depthwise; the rank is the number of such pairs"

    def accepts(self, conv: Conv) -> str | None:
        """Refuse grouped Convs, and 1 x 1 Convs."""
        if max(conv.kernel_shape, default=1) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"grouped Conv ({conv.group} groups): this mode takes ungrouped ones only"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: the number of terms."""
        return None if chosen else RankAxis("terms", full=min(self.inputs(conv)), paper=1)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Pairs (pointwise, depthwise), the second and later ones followed by an Add."""
        (terms,) = rank
        pointwise = conv.pointwise(conv.in_channels, conv.out_channels, bias=False)
        depthwise = replace(conv, in_channels=conv.out_channels, group=conv.out_channels, bias=False)
        chains: list[list[ConvLayer]] = []
        for term in range(1, terms + 1):
            suffix = "" if terms == 1 else f"_{term}"
            last = replace(depthwise, bias=conv.bias and term == 1)
            first = ConvLayer(f"pointwise{suffix}", INPUT, pointwise)
            chains.append([first, ConvLayer(f"depthwise{suffix}", first.name, last)])
        return summed(chains)

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """[out_channels, min(in_channels, taps)]: one row for each output channel's slice."""
        return squared_singular_values(_slices(task.weight))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The leading singular triplets of every output channel's slice, sqrt(s) on either side."""
        u, s, vt = truncated_svd(_slices(task.weight), *rank)
        root = np.sqrt(s)  # [out, T]
        pointwise = (u * root[:, None, :]).transpose(2, 0, 1)  # [T, out, in]
        depthwise = (root[:, :, None] * vt).transpose(1, 0, 2)  # [T, out, taps]
        return self.join(task.conv, [pointwise[None], depthwise[None]])

    def equation(self, conv: Conv) -> str:
        """Pointwise [T, out, in] times depthwise [T, out, taps]."""
        return "toi,tok->oik"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps."""
        return conv.in_channels, math.prod(conv.kernel_shape)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """All pointwise weights, then all depthwise ones."""
        pointwise, depthwise = factors.weights[0::2], factors.weights[1::2]
        return [
            np.stack([weight.reshape(conv.out_channels, -1) for weight in pointwise])[None],
            np.stack([weight.reshape(conv.out_channels, -1) for weight in depthwise])[None],
        ]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Pointwise [out, in, 1, ...] and depthwise [out, 1, *kernel] weights, in turn."""
        ones = (1,) * conv.dims
        weights: list[Array] = []
        for pointwise, depthwise in zip(arrays[0][0], arrays[1][0], strict=True):
            weights.append(pointwise.reshape(conv.out_channels, conv.in_channels, *ones))
            weights.append(depthwise.reshape(conv.out_channels, 1, *conv.kernel_shape))
        return Factors(weights)


def _slices(weight: Array) -> Array:
    """[out, in, *kernel] -> [out, in, taps]."""
    return weight.reshape(*weight.shape[:2], -1)
