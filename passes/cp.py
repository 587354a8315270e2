"""cp: a 1 x 1 Conv, a depthwise Conv along each axis, and a 1 x 1 Conv, on R channels.

What it does
    W[o, i, y, x] ~ sum_r  P[o, r] A[r, y] B[r, x] Q[r, i]

    The canonical polyadic decomposition of the weight (Lebedev et al. 2015; in 3-D one more depthwise Conv). The start
    is the best sum of mutually orthogonal terms of one family, which ``onnxsep.algebra.polyadic`` explains, and
    alternating least squares improves it. A grouped Conv is decomposed group by group.

    The smallest number of terms that is exact is not known in general. "full" is the weight's size over its longest
    dimension, an upper bound at which the start is exact already (for n >= c it is c*kh*kw).

    The start's error never rises with the rank. Least squares may stop in a local optimum, so the final errors do not
    rise only nearly: in the tests they are held to a rise of 2 % of the weight's norm at most.

Why
    Parameters shrink to R*(in + out + kh + kw).

Form
    The first Conv has no bias, so zeros padded after it are those that it would have made. Each depthwise Conv carries
    stride, pads (or auto_pad) and dilation of its axis, the last Conv the bias. Axes on which the kernel is 1 wide are
    left with the first depthwise Conv. Of a ConvTranspose the depthwise ones are ConvTransposes, and the last Conv runs
    on the whole output. No paper fixes the rank: "paper" takes the largest one with at most half of the parameters.

When it refuses
    A 1 x 1 Conv: that is the mode pointwise.
"""

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
    axis_name,
    exact_rank,
    half_rank,
    improved,
    kernel_axes,
    orthogonal_terms,
    scale_product,
    scaled_to_one,
)

_SWEEPS = 30
_TAPS = "abcdefgh"  # letters of the einsum for the taps of each axis


class CP(Multilinear):
    """A 1 x 1 Conv, depthwise Convs along the axes, and a 1 x 1 Conv."""

    name = "cp"
    transposed = True
    summary = "1 x 1, depthwise k x 1 and 1 x k, 1 x 1 (CP); the rank is the number of channels in between"

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: the number of terms of each group."""
        if chosen:
            return None
        full = conv.group * exact_rank((conv.out_channels // conv.group, *self.inputs(conv)))
        paper = half_rank(conv, lambda rank: self.layers(conv, (rank,)), full, conv.group)
        return RankAxis("channels", full=full, paper=paper, step=conv.group)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """A chain of Convs."""
        (channels,) = rank
        wide, narrow = kernel_axes(conv)
        layers = [ConvLayer("reduce", INPUT, conv.pointwise(conv.in_channels, channels, bias=False, group=conv.group))]
        for axis in wide:
            along = conv.along([axis, *narrow] if axis == wide[0] else [axis], channels, channels, bias=False)
            layers.append(ConvLayer(axis_name(conv, axis), layers[-1].name, replace(along, group=channels)))
        expand = conv.pointwise(channels, conv.out_channels, bias=conv.bias, group=conv.group)
        return (*layers, ConvLayer("expand", layers[-1].name, expand))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """Orthogonal terms, improved by alternating least squares; every factor of a term has the same norm."""
        conv = task.conv
        weight, exponent = scaled_to_one(task.weight)
        tensors = weight.reshape(conv.group, conv.out_channels // conv.group, *self.inputs(conv))
        terms = orthogonal_terms(tensors, rank[0] // conv.group)
        if not self.is_exact(conv, rank):
            terms = improved(tensors, terms, _SWEEPS)
        outputs, inputs, *taps = scale_product(terms, exponent)
        turned = [np.swapaxes(factor, 1, 2) for factor in (inputs, *taps)]
        return self.join(conv, [*turned, outputs])

    def equation(self, conv: Conv) -> str:
        """First weight [r, in], the depthwise ones [r, k], last weight [out, r]."""
        taps = _TAPS[: len(kernel_axes(conv)[0])]
        return f"ri,{','.join('r' + tap for tap in taps)},or->oi{taps}"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels, and the taps of each axis that the kernel has."""
        return (conv.in_channels // conv.group, *(conv.kernel_shape[axis] for axis in kernel_axes(conv)[0]))

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The weights with a leading axis for the groups."""
        *others, expand = factors.weights
        rank = len(others[0]) // conv.group
        return [*(array.reshape(conv.group, rank, -1) for array in others), expand.reshape(conv.group, -1, rank)]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [R, in, 1, ...], [R, 1, 1, ..., k, ..., 1] and [out, R, 1, ...]."""
        reduce, *along, expand = arrays
        ones = (1,) * conv.dims
        weights = [reduce.reshape(-1, reduce.shape[2], *ones)]
        for array, axis in zip(along, kernel_axes(conv)[0], strict=True):
            shape = [1] * conv.dims
            shape[axis] = conv.kernel_shape[axis]
            weights.append(array.reshape(-1, 1, *shape))
        return Factors([*weights, expand.reshape(-1, expand.shape[2], *ones)])
