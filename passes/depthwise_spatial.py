"""depthwise-spatial: a k x 1 and a 1 x k depthwise Conv, then a 1 x 1 Conv; or the sum of T such chains.

What it does
    W[o, i, y, x] ~ sum_t  P_t[o, i] A_t[i, y] B_t[i, x]        (T terms)

    The mode depthwise with its k x k depthwise Conv split along the axes, the future work of paper 000 (in 3-D three
    depthwise Convs). For every input channel i the slice W[:, i] is a tensor [out_channels, kh, kw] of its own, and T
    rank-one terms of it are wanted (``onnxsep.algebra.polyadic``). Terms are found one by one: to the terms before, the
    leading one of what they leave is added, and alternating least squares improves all together; where the largest
    mutually orthogonal terms, improved in the same way, are nearer, they take their place. So the error never rises
    with T. Exact at "full", the slice's size over its longest dimension (for out_channels >= k it is kh*kw: one term
    for each tap), but in general not at one term.

Why
    Parameters shrink to T*(in*(kh + kw) + in*out).

Form
    T parallel chains and a chain of Adds, as in the mode depthwise. Each depthwise Conv carries stride, pads (or
    auto_pad) and dilation of its axis, the first 1 x 1 Conv the bias. Axes on which the kernel is 1 wide are left with
    the first factor. One term is the rank "paper".

When it refuses
    A grouped Conv: its channels are separated already, wholly or in part. A kernel along one axis: that is the mode
    depthwise. A 1 x 1 Conv: it has no taps to separate.
"""

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
    axis_name,
    compose,
    exact_rank,
    improved,
    kernel_axes,
    orthogonal_terms,
    scale_product,
    scaled_to_one,
    squared_errors,
    summed,
    truncated_svd,
)

_SWEEPS = 30
_TAPS = "abcdefgh"  # letters of the einsum for the taps of each axis


class DepthwiseSpatial(Multilinear):
    """Depthwise Convs along each axis and a 1 x 1 Conv, or the sum of several such chains."""

    name = "depthwise-spatial"
    summary = "depthwise k x 1, depthwise 1 x k, then 1 x 1; the rank is the number of such chains"

    def accepts(self, conv: Conv) -> str | None:
        """Refuse grouped Convs, and kernels with fewer than two axes to separate."""
        wide, _ = kernel_axes(conv)
        if not wide:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"grouped Conv ({conv.group} groups): this mode takes ungrouped ones only"
        if len(wide) == 1:
            return f"a {'x'.join(map(str, conv.kernel_shape))} kernel lies along one axis: that is the mode depthwise"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: the number of terms."""
        return None if chosen else RankAxis("terms", full=exact_rank((conv.out_channels, *_taps(conv))), paper=1)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Chains of depthwise Convs and a 1 x 1 Conv, the second and later ones followed by an Add."""
        (terms,) = rank
        channels = conv.in_channels
        wide, narrow = kernel_axes(conv)
        chains: list[list[ConvLayer]] = []
        for term in range(1, terms + 1):
            suffix = "" if terms == 1 else f"_{term}"
            chain: list[ConvLayer] = []
            for axis in wide:
                along = conv.along([axis, *narrow] if axis == wide[0] else [axis], channels, channels, bias=False)
                before = chain[-1].name if chain else INPUT
                chain.append(ConvLayer(axis_name(conv, axis) + suffix, before, replace(along, group=channels)))
            pointwise = conv.pointwise(channels, conv.out_channels, bias=conv.bias and term == 1)
            chain.append(ConvLayer(f"pointwise{suffix}", chain[-1].name, pointwise))
            chains.append(chain)
        return summed(chains)

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The terms of every input channel's slice, found one by one."""
        conv = task.conv
        weight, exponent = scaled_to_one(task.weight)
        slices = weight.reshape(conv.out_channels, conv.in_channels, -1).transpose(1, 0, 2)
        # The outputs of a slice span at most as many directions as it has taps: in a basis of these it is small.
        u, s, vt = truncated_svd(slices, min(slices.shape[1:]))
        small = (s[:, :, None] * vt).reshape(*s.shape, *_taps(conv))
        outputs, *taps = scale_product(_terms(small, *rank), exponent)
        arrays = [u @ outputs, *taps]  # [in, n, T]
        pointwise = arrays[0].transpose(2, 1, 0)  # [T, out, in]
        return self.join(conv, [pointwise[None], *(array.transpose(2, 0, 1)[None] for array in arrays[1:])])

    def equation(self, conv: Conv) -> str:
        """Pointwise [T, out, in] times the depthwise ones [T, in, k]."""
        taps = _TAPS[: len(_taps(conv))]
        return f"toi,{','.join('ti' + tap for tap in taps)}->oi{taps}"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels, and the taps of each axis that the kernel has."""
        return (conv.in_channels, *_taps(conv))

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """All pointwise weights, then those of each axis."""
        length = len(_taps(conv)) + 1
        columns = [factors.weights[position::length] for position in range(length)]
        arrays = [np.stack([weight.reshape(len(weight), -1) for weight in column])[None] for column in columns]
        return [arrays[-1], *arrays[:-1]]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Depthwise [in, 1, 1, ..., k, ..., 1] weights and a pointwise one [out, in, 1, ...], in turn."""
        pointwise, *along = arrays
        weights: list[Array] = []
        for term in range(pointwise.shape[1]):
            for array, axis in zip(along, kernel_axes(conv)[0], strict=True):
                shape = [1] * conv.dims
                shape[axis] = conv.kernel_shape[axis]
                weights.append(array[0, term].reshape(-1, 1, *shape))
            weights.append(pointwise[0, term].reshape(conv.out_channels, conv.in_channels, *(1,) * conv.dims))
        return Factors(weights)


def _taps(conv: Conv) -> tuple[int, ...]:
    return tuple(conv.kernel_shape[axis] for axis in kernel_axes(conv)[0])


def _terms(slices: Array, terms: int) -> list[Array]:
    """Factors [in, n, T] of slices [in, n, kh, kw]; the error of no slice rises with T."""
    if terms >= exact_rank(slices.shape[1:]):
        return orthogonal_terms(slices, terms)
    best = improved(slices, orthogonal_terms(slices, 1), _SWEEPS)
    for count in range(2, terms + 1):
        addition = orthogonal_terms(slices - compose(best), 1)
        grown = [np.concatenate(pair, axis=2) for pair in zip(best, addition, strict=True)]
        starts = (grown, orthogonal_terms(slices, count))
        candidates = [improved(slices, start, _SWEEPS) for start in starts]
        errors = [squared_errors(slices, candidate) for candidate in candidates]
        nearer = (errors[1] < errors[0])[:, None, None]
        best = [np.where(nearer, fresh, kept) for kept, fresh in zip(*candidates, strict=True)]
    return best
