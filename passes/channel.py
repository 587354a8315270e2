"""channel: a k x k Conv with fewer output channels, then a 1 x 1 Conv.

What it does
    W[o, i, :] ~ sum_r  P[o, r] K[r, i, :]

    The weight as an [out_channels, in_channels*k*k] matrix has the truncated SVD U S V^T; K = sqrt(S) V^T becomes the
    k x k Conv into r channels and P = U sqrt(S) the 1 x 1 Conv. This is the channel decomposition of Zhang et al.
    (2016), the baseline of paper 002. A grouped Conv is split group by group. Exact at r = min(out_channels,
    in_channels*k*k) of each group.

With data
    "response": U holds the principal components of the responses, the leading eigenvectors of W G W^T where G is the
    Gram matrix of the patches, K = U^T W (Zhang et al.; paper 002, section 4.1). "joint": the best map of rank r from
    what the rewritten network delivers to what the original one computes, a reduced-rank regression
    (``onnxsep.algebra.linalg``). Both have a closed form.

Why
    Parameters and MACs shrink by r/out_channels + r/(in_channels*k*k).

Form
    The k x k Conv carries strides, pads, auto_pad and dilations, the 1 x 1 Conv the bias. No paper fixes the rank:
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

    def accepts(self, conv: Conv) -> str | None:
        """Refuse 1 x 1 Convs."""
        if max(conv.kernel_shape, default=1) == 1:
            return "a 1 x 1 kernel: that is the mode pointwise"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: channels in between."""
        if chosen:
            return None
        full = conv.group * min(_matrix_shape(conv))
        paper = half_rank(conv, lambda rank: self.layers(conv, (rank,)), full, conv.group)
        return RankAxis("channels", full=full, paper=paper, step=conv.group)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """The Conv itself with fewer outputs, then a 1 x 1 Conv."""
        (channels,) = rank
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
        u, s, vt = truncated_svd(_matrices(task), rank[0] // task.conv.group)
        root = np.sqrt(s)
        return self.join(task.conv, [u * root[:, None, :], root[:, :, None] * vt])

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """The principal components of the responses, or the reduced-rank regression."""
        statistics, conv = task.statistics, task.conv
        if init not in ("response", "joint") or statistics is None:
            return super().fit(task, rank, init)
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
        """1 x 1 weight [out, r] times k x k weight [r, in * taps]."""
        return "or,rd->od"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps as one."""
        return (_matrix_shape(conv)[1],)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The 1 x 1 weight [group, out, r], then the k x k one [group, r, in * taps]."""
        first, second = factors.weights
        outputs, inputs = _matrix_shape(conv)
        return [second.reshape(conv.group, outputs, -1), first.reshape(conv.group, -1, inputs)]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [r, in, *kernel] and [out, r, 1, ...]."""
        second, first = arrays
        rank = second.shape[-1]
        return Factors(
            [
                first.reshape(conv.group * rank, *conv.weight_shape[1:]),
                second.reshape(conv.out_channels, rank, *(1,) * conv.dims),
            ]
        )


def _matrix_shape(conv: Conv) -> tuple[int, int]:
    """Outputs, and inputs * taps, of one group."""
    return conv.out_channels // conv.group, conv.in_channels // conv.group * math.prod(conv.kernel_shape)


def _matrices(task: Task) -> Array:
    """[group, out, in * taps]."""
    return task.weight.reshape(task.conv.group, *_matrix_shape(task.conv))
