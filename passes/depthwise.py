"""depthwise: a k x k depthwise Conv, then a 1 x 1 Conv; or the sum of T such pairs.

What it does
    W[o, i, :] ~ sum_t  P_t[o, i] D_t[i, :]        (T terms)

    For every input channel i, the slice W[:, i, :] is an [out_channels, k*k] matrix; its T leading singular triplets
    give column i of the T pointwise weights (u sqrt(s)) and channel i of the T depthwise kernels (sqrt(s) v). One term
    is the depthwise separable convolution of paper 000 (section 2.2.2); T terms are the network decoupling of
    Guo et al. (2018), and exact at T = min(out_channels, k*k).

Why
    Parameters and MACs shrink by 1/(k*k) + 1/out_channels for one term (equation 3 of paper 000).

Form
    T parallel depthwise Convs of multiplier 1 (the fast path of ONNX Runtime), a 1 x 1 Conv on each, and a chain of
    Adds, which the runtime fuses into the Convs. Measured against one 1 x 1 over a Concat in benchmarks/terms.py.
    The depthwise Convs carry strides, pads, auto_pad and dilations; the first 1 x 1 carries the bias.

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
    Gram,
    Layer,
    Mixed,
    Multilinear,
    Rank,
    RankAxis,
    RowGram,
    Task,
    balanced,
    principal_axes,
    reduced_rank_regression,
    squared_singular_values,
    summed,
    truncated_svd,
)


class Depthwise(Multilinear):
    """A depthwise Conv and a 1 x 1 Conv, or the sum of several such pairs."""

    name = "depthwise"
    summary = "k x k depthwise, then 1 x 1; the rank is the number of such pairs"
    inits = ("svd", "response", "compensated", "joint")

    def accepts(self, conv: Conv) -> str | None:
        """Refuse grouped Convs, and 1 x 1 Convs."""
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"grouped Conv ({conv.group} groups): this mode takes ungrouped ones only"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: the number of terms, one in paper 000."""
        taps = conv.weight_size // (conv.out_channels * conv.in_channels)
        return None if chosen else RankAxis("terms", full=min(conv.out_channels, taps), paper=1)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Pairs (depthwise, pointwise), the second and later ones followed by an Add."""
        (terms,) = rank
        depthwise = replace(conv, out_channels=conv.in_channels, group=conv.in_channels, bias=False)
        pairs: list[list[ConvLayer]] = []
        for term in range(1, terms + 1):
            suffix = "" if terms == 1 else f"_{term}"
            pointwise = conv.pointwise(conv.in_channels, conv.out_channels, bias=conv.bias and term == 1)
            first = ConvLayer(f"depthwise{suffix}", INPUT, depthwise)
            pairs.append([first, ConvLayer(f"pointwise{suffix}", first.name, pointwise)])
        return summed(pairs)

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """[in_channels, min(out_channels, taps)]: one row for each input channel's slice."""
        return squared_singular_values(_slices(task.weight))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The leading singular triplets of every input channel's slice, sqrt(s) on either side."""
        u, s, vt = truncated_svd(_slices(task.weight), *rank)
        root = np.sqrt(s)  # [in, T]
        pointwise = (u * root[:, None, :]).transpose(2, 1, 0)  # [T, out, in]
        depthwise = (root[:, :, None] * vt).transpose(1, 0, 2)  # [T, in, taps]
        return self.join(task.conv, [pointwise[None], depthwise[None]])

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """Algorithm 1 or 2 of paper 002, channel by channel, or all channels together."""
        if init == "joint" or task.statistics is None:
            return super().fit(task, rank, init)
        (terms,), gram, slices = rank, task.statistics.grams[0], _slices(task.weight)
        if init == "response":
            pointwise, depthwise = _leading_responses(slices, gram, terms)
        elif init == "compensated":
            mixed = Mixed.of(gram) if task.statistics.mixes is None else task.statistics.mixes[0]
            if isinstance(gram, RowGram):
                pointwise, depthwise = _compensated_by_rows(slices, gram, mixed, terms)
            else:
                pointwise, depthwise = _compensated(slices, gram.dense(), mixed.dense(), terms)
        else:
            return super().fit(task, rank, init)
        factors = [pointwise.transpose(2, 1, 0), depthwise.transpose(1, 0, 2)]  # [T, out, in] and [T, in, taps]
        return self.join(task.conv, [factor[None] for factor in balanced(self.equation(task.conv), factors)])

    def equation(self, conv: Conv) -> str:
        """Pointwise [T, out, in] times depthwise [T, in, taps]."""
        return "toi,tik->oik"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps."""
        return conv.in_channels, math.prod(conv.kernel_shape)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """All pointwise weights, then all depthwise ones."""
        depthwise, pointwise = factors.weights[0::2], factors.weights[1::2]
        return [
            np.stack([weight.reshape(conv.out_channels, conv.in_channels) for weight in pointwise])[None],
            np.stack([weight.reshape(conv.in_channels, -1) for weight in depthwise])[None],
        ]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Depthwise [in, 1, *kernel] and pointwise [out, in, 1, ...] weights, in turn."""
        ones = (1,) * conv.dims
        weights: list[Array] = []
        for pointwise, depthwise in zip(arrays[0][0], arrays[1][0], strict=True):
            weights.append(depthwise.reshape(conv.in_channels, 1, *conv.kernel_shape))
            weights.append(pointwise.reshape(conv.out_channels, conv.in_channels, *ones))
        return Factors(weights)


def _slices(weight: Array) -> Array:
    """[out, in, *kernel] -> [in, out, taps]."""
    slices: Array = weight.reshape(*weight.shape[:2], -1).transpose(1, 0, 2)
    return slices


def _leading_responses(slices: Array, gram: Gram, terms: int) -> tuple[Array, Array]:
    """Algorithm 1: the leading left singular vectors U of every channel's responses W_i X_i, and U^T W_i.

    Args:
        slices: W, [in, out, taps].
        gram: X X^T, [in * taps, in * taps].
        terms: T.

    Returns:
        [in, out, T] and [in, T, taps].
    """
    channels, _, taps = slices.shape
    blocks = gram.blocks(np.arange(channels * taps).reshape(channels, taps))
    u = principal_axes(slices @ blocks @ np.swapaxes(slices, 1, 2), terms)
    return u, np.swapaxes(u, 1, 2) @ slices


def _compensated(slices: Array, gram: Array, mixed: Array, terms: int) -> tuple[Array, Array]:
    """Algorithm 2: each channel also makes up for what those before it have lost.

    T_i = Y_i + E_(i-1) with E the sum of all errors so far, so that E telescopes to Y - Y'; P_i D_i is the reduced-rank
    regression of T_i on X_i. All in terms of the Gram matrices. The arguments and results are those of
    ``_leading_responses``; ``mixed`` is X0 X^T with X0 the input in the original network.
    """
    channels, outputs, taps = slices.shape
    pointwise, depthwise = np.zeros((channels, outputs, terms)), np.zeros((channels, terms, taps))
    error = np.zeros((outputs, channels * taps))  # E X^T
    for channel in range(channels):
        rows = slice(channel * taps, (channel + 1) * taps)
        error += slices[channel] @ mixed[rows]
        pointwise[channel], depthwise[channel] = reduced_rank_regression(error[:, rows], gram[rows, rows], terms)
        error -= pointwise[channel] @ depthwise[channel] @ gram[rows]
    return pointwise, depthwise


def _compensated_by_rows(slices: Array, gram: RowGram, mixed: Mixed, terms: int) -> tuple[Array, Array]:
    """The same where there are fewer rows than columns: E itself is smaller than E X^T."""
    channels, outputs, taps = slices.shape
    pointwise, depthwise = np.zeros((channels, outputs, terms)), np.zeros((channels, terms, taps))
    originals = gram.rows if mixed.left is None else mixed.left
    error = np.zeros((outputs, len(gram.rows)))  # E
    for channel in range(channels):
        index = np.arange(channel * taps, (channel + 1) * taps)
        error += slices[channel] @ originals[:, index].T
        # The ridges stand for unit inputs, of which no two channels share any.
        wanted = error @ gram.rows[:, index] + mixed.ridge * slices[channel]
        pointwise[channel], depthwise[channel] = reduced_rank_regression(wanted, gram.block(index, index), terms)
        error -= pointwise[channel] @ depthwise[channel] @ gram.rows[:, index].T
    return pointwise, depthwise
