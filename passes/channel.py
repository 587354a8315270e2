"""channel: a k x k Conv with fewer output channels, then a 1 x 1 Conv.

What it does
    W[o, i, :] ~ sum_r  P[o, r] K[r, i, :]

    The weight as an [out_channels, in_channels*k*k] matrix has the truncated SVD U S V^T; K = sqrt(S) V^T becomes the
    k x k Conv into r channels and P = U sqrt(S) the 1 x 1 Conv. This is the channel decomposition of Zhang et al.
    (2016), the baseline of paper 002. A grouped Conv is split group by group. Exact at r = min(out_channels,
    in_channels*k*k) of each group.

    Of a ConvTranspose it is the other way round, in and out swapped,

        W[o, i, :] ~ sum_r  K[o, r, :] Q[r, i]

    a 1 x 1 Conv into r channels and a ConvTranspose: so the 1 x 1 Conv runs on the small image. The matrix is
    [in_channels, out_channels*k*k] then.

With data
    "response": U holds the principal components of the responses, the leading eigenvectors of W G W^T where G is the
    Gram matrix of the patches, K = U^T W (Zhang et al.; paper 002, section 4.1). "joint": the best map of rank r from
    what the rewritten network delivers to what the original one computes, a reduced-rank regression
    (``onnxsep.algebra.linalg``). Both have a closed form. What comes before the taps of a ConvTranspose has none: both
    factors are fitted in turn, with "response" to what the original network delivers.

Why
    Parameters and MACs shrink by r/out_channels + r/(in_channels*k*k).

Form
    The k x k Conv carries strides, pads, auto_pad and dilations, the last one the bias. No paper fixes the rank:
    "paper" takes the largest one with at most half of the parameters.

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
    balanced,
    half_rank,
    principal_axes,
    squared_singular_values,
    truncated_svd,
)


class Channel(Multilinear):
    """A Conv with fewer output channels, and a 1 x 1 Conv."""

    name = "channel"
    summary = "k x k with fewer output channels, then 1 x 1; the rank is the number of channels in between"
    inits = ("svd", "response", "joint")
    transposed = True

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: channels in between."""
        if chosen:
            return None
        full = conv.group * min(_matrix_shape(conv))
        paper = half_rank(conv, lambda rank: self.layers(conv, (rank,)), full, conv.group)
        return RankAxis("channels", full=full, paper=paper, step=conv.group)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """The Conv itself with fewer outputs, then a 1 x 1 Conv; or that first, and a ConvTranspose of fewer inputs."""
        (channels,) = rank
        if conv.transposed:
            reduce = conv.pointwise(conv.in_channels, channels, bias=False, group=conv.group)
            return ConvLayer("reduce", INPUT, reduce), ConvLayer(
                "expand", "reduce", replace(conv, in_channels=channels)
            )
        expand = conv.pointwise(channels, conv.out_channels, bias=conv.bias, group=conv.group)
        return (
            ConvLayer("reduce", INPUT, replace(conv, out_channels=channels, bias=False)),
            ConvLayer("expand", "reduce", expand),
        )

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """[group, n]: one row for each group."""
        return squared_singular_values(_matrices(task))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The leading singular triplets of every group's matrix, sqrt(s) on either side."""
        conv = task.conv
        u, s, vt = truncated_svd(_matrices(task), rank[0] // conv.group)
        root = np.sqrt(s)
        left, right = u * root[:, None, :], root[:, :, None] * vt
        if conv.transposed:  # [group, in, r] and [group, r, out * taps]
            kernel = right.reshape(*right.shape[:2], conv.out_channels // conv.group, -1)
            return self.join(conv, [kernel.swapaxes(1, 2), left.swapaxes(1, 2)])
        return self.join(conv, [left, right])

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """The principal components of the responses, or the reduced-rank regression."""
        statistics, conv = task.statistics, task.conv
        if init not in ("response", "joint") or statistics is None:
            return super().fit(task, rank, init)
        if conv.transposed:
            return super().fit(task, rank, "joint")
        if init == "joint":
            given = zip(statistics.grams, statistics.cross, strict=True)
            pairs = [gram.regression(cross, rank[0] // conv.group) for gram, cross in given]
        elif self.is_exact(conv, rank):  # any basis of the outputs will do, and this one is exact to rounding
            return self.factorize(task, rank)
        else:
            matrices = _matrices(task)
            parts = list(zip(statistics.grams, matrices, strict=True))
            axes = [principal_axes(gram.times(matrix) @ matrix.T, rank[0] // conv.group) for gram, matrix in parts]
            pairs = [(left, left.T @ matrix) for left, (_, matrix) in zip(axes, parts, strict=True)]
        even = [balanced(self.equation(conv), pair) for pair in pairs]
        return self.join(conv, [np.stack(parts) for parts in zip(*even, strict=True)])

    def equation(self, conv: Conv) -> str:
        """1 x 1 weight [out, r] times k x k weight [r, in * taps]; or k x k [out, r, taps] times 1 x 1 [r, in]."""
        return "ork,ri->oik" if conv.transposed else "or,rd->od"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps, as one unless they have factors of their own."""
        channels, taps = conv.in_channels // conv.group, math.prod(conv.kernel_shape)
        return (channels, taps) if conv.transposed else (channels * taps,)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The last weight [group, out, r] ([..., taps]), then the first one [group, r, in * taps] ([group, r, in])."""
        first, second = factors.weights
        rank = second.shape[1]
        last = second.reshape(conv.group, -1, rank, *([math.prod(conv.kernel_shape)] if conv.transposed else []))
        return [last, first.reshape(conv.group, rank, -1)]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [r, in, *kernel] and [out, r, 1, ...]; or [r, in, 1, ...] and [out, r, *kernel]."""
        second, first = arrays
        rank, ones = second.shape[2], (1,) * conv.dims
        kernels = (ones, conv.kernel_shape) if conv.transposed else (conv.kernel_shape, ones)
        return Factors(
            [
                first.reshape(conv.group * rank, -1, *kernels[0]),
                second.reshape(conv.out_channels, rank, *kernels[1]),
            ]
        )


def _matrix_shape(conv: Conv) -> tuple[int, int]:
    """Outputs, and inputs * taps, of one group; of a transposed Conv inputs, and outputs * taps."""
    inputs, outputs, taps = (
        conv.in_channels // conv.group,
        conv.out_channels // conv.group,
        math.prod(conv.kernel_shape),
    )
    return (inputs, outputs * taps) if conv.transposed else (outputs, inputs * taps)


def _matrices(task: Task) -> Array:
    """[group, *_matrix_shape]."""
    conv = task.conv
    weight = task.weight.reshape(conv.group, conv.out_channels // conv.group, conv.in_channels // conv.group, -1)
    return (weight.swapaxes(1, 2) if conv.transposed else weight).reshape(conv.group, *_matrix_shape(conv))
