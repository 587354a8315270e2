"""spatial: a k x 1 Conv, then a 1 x k Conv; in 3-D one Conv for each axis.

What it does
    W[o, i, y, x] ~ sum_r  A[r, i, y] B[o, r, x]

    The weight as an [in*kh, out*kw] matrix has the truncated SVD U S V^T; A = U sqrt(S) becomes the k x 1 Conv into r
    channels and B = sqrt(S) V^T the 1 x k Conv (Jaderberg et al. 2014, scheme 2; paper 000, section 2.2.1). With more
    than two axes the rest is split again in the same way (a tensor train, Oseledets 2011), one rank after the other.
    A grouped Conv is split group by group. Exact at full rank.

Why
    With r = out_channels = in_channels, parameters shrink by 2/k and MACs by 2/k + 2/(k(N-2)) for an unpadded Conv on
    an N x N input (equations 1 and 2 of paper 000).

    The rank ``in`` is that of paper 004 (the N x 1 - 1 x N Convs of its R3 and V3): r = in_channels, which is less
    than out_channels where a network widens.

Form
    Each factor carries stride, pads (or auto_pad) and dilation of its own axis, the last one the bias. Axes on which
    the kernel is 1 wide are left with the first factor. A ConvTranspose becomes ConvTransposes in the same way: what it
    does along one axis does not depend on the others, output padding included.

When it refuses
    A kernel that is longer than 1 along one axis only (1-D, 1 x k): it is separated already.
"""

from collections.abc import Sequence

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
    inverse_or_zero,
    kernel_axes,
    squared_singular_values,
    truncated_svd,
)

_TAPS = "abcdefgh"  # letters of the einsum for the taps of each axis, and for the channels in between
_BONDS = "pqrstuvw"


class Spatial(Multilinear):
    """One Conv for each spatial axis."""

    name = "spatial"
    transposed = True
    ranks_as_inputs = True
    summary = "k x 1, then 1 x k (3-D: one Conv for each axis); the rank is the number of channels in between"

    def accepts(self, conv: Conv) -> str | None:
        """Refuse kernels with fewer than two axes to separate."""
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if len(kernel_axes(conv)[0]) < 2:
            shape = "x".join(map(str, conv.kernel_shape))
            return f"a {shape} kernel lies along one axis: it is spatially separated already"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """Channels after each factor but the last; paper 000 takes out_channels."""
        axes = kernel_axes(conv)[0]
        position = len(chosen)
        if position == len(axes) - 1:
            return None
        group = conv.group
        before = chosen[-1] if chosen else conv.in_channels
        left = before // group * conv.kernel_shape[axes[position]]
        right = conv.out_channels // group * int(np.prod([conv.kernel_shape[axis] for axis in axes[position + 1 :]]))
        full = min(left, right) * group
        paper, inputs = min(conv.out_channels, full), min(conv.in_channels, full)
        return RankAxis("channels", full=full, paper=paper, step=group, inputs=inputs)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """A chain of Convs, one for each axis on which the kernel is longer than 1."""
        axes, narrow = kernel_axes(conv)
        channels = (conv.in_channels, *rank, conv.out_channels)
        layers: list[Layer] = []
        for position, axis in enumerate(axes):
            last = position == len(axes) - 1
            kept = [axis, *narrow] if position == 0 else [axis]
            factor = conv.along(kept, channels[position], channels[position + 1], bias=conv.bias and last)
            layers.append(ConvLayer(axis_name(conv, axis), layers[-1].name if layers else INPUT, factor))
        return tuple(layers)

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """[group, n]: one row for each group, after the axes that ``chosen`` already split off."""
        _, rest, _ = _split(task, chosen)
        return squared_singular_values(rest)

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """Weights [rank, in, kh, 1] and [out, rank, 1, kw] (for 2-D), sqrt(S) on either side."""
        conv, axes = task.conv, kernel_axes(task.conv)[0]
        factors, rest, scale = _split(task, rank)
        last = rest.reshape(conv.group, rest.shape[1], -1, conv.kernel_shape[axes[-1]])
        factors.append(scale[:, :, None, None] * last.transpose(0, 1, 3, 2))
        return self.join(conv, factors)

    def equation(self, conv: Conv) -> str:
        """A tensor train: "iap,pbo->oiab" in 2-D, "iap,pbq,qco->oiabc" in 3-D."""
        count = len(kernel_axes(conv)[0])
        ends = ["i", *_BONDS[: count - 1], "o"]
        terms = [before + tap + after for before, tap, after in zip(ends[:-1], _TAPS, ends[1:], strict=False)]
        return f"{','.join(terms)}->oi{_TAPS[:count]}"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels, and the taps of each axis that is split."""
        return (conv.in_channels // conv.group, *(conv.kernel_shape[axis] for axis in kernel_axes(conv)[0]))

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """One factor [group, in, k, out] for each axis."""
        return [
            weight.reshape(conv.group, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).transpose(0, 2, 3, 1)
            for weight in factors.weights
        ]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Conv weights [group * out, in, 1, ..., k, ..., 1]."""
        weights: list[Array] = []
        for factor, axis in zip(arrays, kernel_axes(conv)[0], strict=True):
            shape = [1] * conv.dims
            shape[axis] = conv.kernel_shape[axis]
            weights.append(factor.transpose(0, 3, 1, 2).reshape(-1, factor.shape[1], *shape))
        return Factors(weights)


def _split(task: Task, rank: Rank) -> tuple[list[Array], Array, Array]:
    """Split off one axis for every rank.

    Returns:
        The factors so far, each [group, in, k, out] and with sqrt(S) on either side; the rest as matrices whose rows
        are (channels, taps of the next axis), and after the last split the channels alone; and the scale [group,
        channels] that these rows still need (1 / sqrt(S)).
    """
    conv, weight, axes = task.conv, task.weight, kernel_axes(task.conv)[0]
    group, taps = conv.group, [conv.kernel_shape[axis] for axis in axes]
    # [group, out, in, k1, k2, ...] -> [group, in, k1, out, k2, ...]: rows (in, k1), columns (out, k2, ...)
    tensor = weight.reshape(group, conv.out_channels // group, conv.in_channels // group, *taps)
    tensor = np.moveaxis(tensor, 1, 3)
    rest = tensor.reshape(group, tensor.shape[1] * taps[0], -1)
    scale = np.ones((group, tensor.shape[1]))
    factors: list[Array] = []
    for position, channels in enumerate(rank):
        u, s, vt = truncated_svd(rest, channels // group)
        root = np.sqrt(s)
        factor = u.reshape(group, scale.shape[1], taps[position], -1) * scale[:, :, None, None]
        factors.append(factor * root[:, None, None, :])
        # Orthonormal columns before it, so truncating the rest is optimal; hence S is divided out only at the end.
        rest, scale = s[:, :, None] * vt, inverse_or_zero(root)
        if position + 1 < len(axes) - 1:
            rest = _next_axis(rest, conv.out_channels // group, taps[position + 1])
    return factors, rest, scale


def _next_axis(rest: Array, out_channels: int, taps: int) -> Array:
    """[group, r, out * k * others] -> [group, r * k, out * others]: the next axis joins the rows."""
    group, rank = rest.shape[:2]
    parts = rest.reshape(group, rank, out_channels, taps, -1).transpose(0, 1, 3, 2, 4)
    rows: Array = parts.reshape(group, rank * taps, -1)
    return rows
