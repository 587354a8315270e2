"""linear-bottleneck: a 1 x 1 Conv, a depthwise Conv with the whole kernel, and a 1 x 1 Conv, on R channels.

What it does
    W[o, i, k] ~ sum_r  P[o, r] D[r, k] Q[r, i]

    k counts all taps of the kernel, so this is the canonical polyadic decomposition of the weight as a tensor of three
    axes (Carroll and Chang 1970; Harshman 1970), and the form is MobileNetV2's block without its activations (Sandler
    et al. 2018). The start is the best sum of mutually orthogonal terms of one family, which
    ``onnxsep.algebra.polyadic`` explains, and alternating least squares improves it. A grouped Conv is decomposed
    group by group.

    The smallest number of terms that is exact is not known in general. "full" is the weight's size over its longest
    dimension, an upper bound at which the start is exact already.

    The start's error never rises with the rank. Least squares may stop in a local optimum, so the final errors do not
    rise only nearly: in the tests they are held to a rise of 2 % of the weight's norm at most.

Why
    Parameters shrink to R*(in + out + k*k). It has three layers where the mode cp has four, and the depthwise kernel
    is free where that of cp is a product of one vector for each axis; depthwise with T terms is the case of T*in
    channels whose first Conv only repeats the inputs.

Form
    The first Conv has no bias, so zeros padded after it are those that it would have made. The depthwise Conv carries
    strides, pads (or auto_pad) and dilations, the last Conv the bias. Of a ConvTranspose the depthwise one is a
    ConvTranspose, and the last Conv runs on the whole output. "paper" takes the largest rank with at most a quarter of
    the weights.

When it refuses
    A 1 x 1 Conv: that is the mode pointwise.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    Array,
    Conv,
    ConvLayer,
    Factors,
    Layer,
    Multilinear,
    Rank,
    RankAxis,
    Task,
    exact_rank,
    improved,
    orthogonal_terms,
    scale_product,
    scaled_to_one,
)

_SWEEPS = 30
_SHARE = 4  # "paper" keeps at most the fourth part of the weights


class LinearBottleneck(Multilinear):
    """A 1 x 1 Conv, a depthwise Conv and a 1 x 1 Conv."""

    name = "linear-bottleneck"
    transposed = True
    summary = "1 x 1, depthwise k x k, 1 x 1; the rank is the number of channels in between"

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: the number of channels in between."""
        if chosen:
            return None
        inputs, taps = self.inputs(conv)
        outputs = conv.out_channels // conv.group
        full = exact_rank((outputs, inputs, taps))
        affordable = outputs * inputs * taps // (_SHARE * (outputs + inputs + taps))
        paper = min(max(1, affordable), full)
        return RankAxis("channels", full=conv.group * full, paper=conv.group * paper, step=conv.group)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Three Convs in a row."""
        (channels,) = rank
        reduce = conv.pointwise(conv.in_channels, channels, bias=False, group=conv.group)
        depthwise = replace(conv, in_channels=channels, out_channels=channels, group=channels, bias=False)
        expand = conv.pointwise(channels, conv.out_channels, bias=conv.bias, group=conv.group)
        return (
            ConvLayer("reduce", INPUT, reduce),
            ConvLayer("depthwise", "reduce", depthwise),
            ConvLayer("expand", "depthwise", expand),
        )

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """Orthogonal terms, improved by alternating least squares; every factor of a term has the same norm."""
        conv = task.conv
        weight, exponent = scaled_to_one(task.weight)
        tensors = weight.reshape(conv.group, conv.out_channels // conv.group, *self.inputs(conv))
        terms = orthogonal_terms(tensors, rank[0] // conv.group)
        if not self.is_exact(conv, rank):
            terms = improved(tensors, terms, _SWEEPS)
        outputs, inputs, taps = scale_product(terms, exponent)
        return self.join(conv, [np.swapaxes(inputs, 1, 2), np.swapaxes(taps, 1, 2), outputs])

    def equation(self, conv: Conv) -> str:
        """First weight [r, in], depthwise one [r, taps], last weight [out, r]."""
        return "ri,rk,or->oik"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps."""
        return conv.in_channels // conv.group, math.prod(conv.kernel_shape)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The weights with a leading axis for the groups."""
        reduce, depthwise, expand = factors.weights
        rank = len(reduce) // conv.group
        return [
            reduce.reshape(conv.group, rank, -1),
            depthwise.reshape(conv.group, rank, -1),
            expand.reshape(conv.group, -1, rank),
        ]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [R, in, 1, ...], [R, 1, *kernel] and [out, R, 1, ...]."""
        reduce, depthwise, expand = arrays
        ones = (1,) * conv.dims
        return Factors(
            [
                reduce.reshape(-1, reduce.shape[2], *ones),
                depthwise.reshape(-1, 1, *conv.kernel_shape),
                expand.reshape(-1, expand.shape[2], *ones),
            ]
        )
