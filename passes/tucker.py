"""tucker: a 1 x 1 Conv into fewer channels, a k x k Conv between fewer channels, and a 1 x 1 Conv (Tucker-2).

What it does
    W[o, i, :] ~ sum_rs  P[o, s] K[s, r, :] Q[r, i]

    The Tucker decomposition of the weight along its two channel axes (Kim et al. 2016): r1 channels after the first
    Conv, r2 before the last. It starts from the leading singular vectors of both unfoldings (HOSVD, De Lathauwer et
    al. 2000) and improves either basis for the other one in turn (HOOI, the same authors), which never raises the
    error. A grouped Conv is split group by group. Exact at full ranks, r1 = min(in, out*k*k) and r2 = min(out,
    r1*k*k) of each group.

    The errors of the HOSVD do not rise with the ranks. HOOI may stop in a local optimum, so its errors do not only
    nearly: in the tests they are held to a rise of 1 % of the weight's norm at most.

Why
    Parameters shrink to r1*in + k*k*r1*r2 + r2*out.

Form
    The first Conv has no bias, so zeros padded after it are those that it would have made: the k x k Conv carries
    strides, pads, auto_pad and dilations, the last Conv the bias. At stride 2 the first Conv runs on the whole input.
    Of a ConvTranspose the k x k one is a ConvTranspose, and the last Conv runs on the whole output.
    No paper fixes the ranks: "paper" takes r1 = r2, the largest with at most half of the parameters.

When it refuses
    A 1 x 1 Conv: three of them in a row are never better than two, which the mode pointwise makes.
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
    scale_product,
    scaled_to_one,
    squared_singular_values,
    truncated_svd,
)

_SWEEPS = 20
_TOLERANCE = 1e-5  # a sweep that keeps less of the squared norm in addition is the last one


class Tucker(Multilinear):
    """1 x 1, k x k and 1 x 1 Convs."""

    name = "tucker"
    transposed = True
    summary = "1 x 1, k x k between fewer channels, 1 x 1 (Tucker-2); the ranks are the channels before and after k x k"

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """Two ranks: channels before the k x k Conv, and after it."""
        if len(chosen) == 2:
            return None
        axis = RankAxis("channels", full=_full(conv, chosen), paper=conv.group, step=conv.group)
        largest = max(conv.in_channels, conv.out_channels)
        common = half_rank(conv, lambda rank: self.layers(conv, _common(conv, rank)), largest, conv.group)
        return replace(axis, paper=axis.clamp(common))

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Three Convs in a row."""
        before, after = rank
        reduce = conv.pointwise(conv.in_channels, before, bias=False, group=conv.group)
        core = replace(conv, in_channels=before, out_channels=after, bias=False)
        expand = conv.pointwise(after, conv.out_channels, bias=conv.bias, group=conv.group)
        return (
            ConvLayer("reduce", INPUT, reduce),
            ConvLayer("core", "reduce", core),
            ConvLayer("expand", "core", expand),
        )

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        """[group, n] of the inputs' unfolding; then of the outputs' unfolding of what the first rank keeps."""
        tensor = _tensor(task.conv, task.weight)
        if chosen:
            basis = truncated_svd(_by_input(tensor), chosen[0] // task.conv.group).u
            tensor = _project_inputs(_by_input(tensor), basis, tensor.shape)
            return squared_singular_values(tensor.reshape(*tensor.shape[:2], -1))
        return squared_singular_values(_by_input(tensor))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The orthonormal bases of HOOI as first and last weight, the projected weight between them."""
        conv = task.conv
        before, after = (channels // conv.group for channels in rank)
        weight, exponent = scaled_to_one(task.weight)
        tensor = _tensor(conv, weight)
        by_input = _by_input(tensor)
        inputs = _left(by_input, before)  # [group, in, r1]
        outputs, core = _given_inputs(by_input, inputs, after, tensor.shape)
        total = float(np.vdot(tensor, tensor))
        # With r1 beyond r2 * taps the outputs' basis leaves fewer directions than r1, and HOSVD's are kept.
        sweeps = 0 if self.is_exact(conv, rank) or before > after * tensor.shape[-1] else _SWEEPS
        for _ in range(sweeps):
            kept = float(np.vdot(core, core))
            inputs = _left(_by_input(_project_outputs(tensor, outputs)), before)
            outputs, core = _given_inputs(by_input, inputs, after, tensor.shape)
            if float(np.vdot(core, core)) - kept <= _TOLERANCE * total:
                break
        factors = zip(np.swapaxes(inputs, -1, -2), core, outputs, strict=True)
        even = [balanced(self.equation(conv), group) for group in factors]
        arrays = [np.stack(parts) for parts in zip(*even, strict=True)]
        return self.join(conv, scale_product(arrays, exponent))

    def equation(self, conv: Conv) -> str:
        """First weight [r1, in], core [r2, r1, taps], last weight [out, r2]."""
        return "ri,srk,os->oik"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels and taps."""
        return conv.in_channels // conv.group, math.prod(conv.kernel_shape)

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The three weights with a leading axis for the groups."""
        reduce, core, expand = factors.weights
        group, channels, taps = conv.group, *self.inputs(conv)
        before, after = len(reduce) // group, len(core) // group
        return [
            reduce.reshape(group, before, channels),
            core.reshape(group, after, before, taps),
            expand.reshape(group, -1, after),
        ]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [r1, in, 1, ...], [r2, r1, *kernel] and [out, r2, 1, ...]."""
        reduce, core, expand = arrays
        ones = (1,) * conv.dims
        return Factors(
            [
                reduce.reshape(-1, reduce.shape[2], *ones),
                core.reshape(-1, core.shape[2], *conv.kernel_shape),
                expand.reshape(-1, expand.shape[2], *ones),
            ]
        )


def _tensor(conv: Conv, weight: Array) -> Array:
    """[group, out, in, taps]."""
    return weight.reshape(conv.group, conv.out_channels // conv.group, conv.in_channels // conv.group, -1)


def _by_input(tensor: Array) -> Array:
    """[group, out, in, taps] -> [group, in, out * taps]."""
    return np.moveaxis(tensor, 2, 1).reshape(tensor.shape[0], tensor.shape[2], -1)


def _left(matrices: Array, rank: int) -> Array:
    """Orthonormal bases [group, m, rank] of what matrices [group, m, n] hold most of."""
    return principal_axes(matrices @ np.swapaxes(matrices, -1, -2), rank)


def _project_inputs(by_input: Array, basis: Array, shape: tuple[int, ...]) -> Array:
    """[group, in, out * taps] of a tensor [group, out, in, taps] -> [group, out, r1, taps]."""
    flat = np.swapaxes(basis, -1, -2) @ by_input  # one large product; those of each output are slow ones
    return np.moveaxis(flat.reshape(*flat.shape[:2], shape[1], shape[3]), 1, 2)


def _project_outputs(tensor: Array, basis: Array) -> Array:
    """[group, out, in, taps] -> [group, r2, in, taps]."""
    flat = np.swapaxes(basis, -1, -2) @ tensor.reshape(*tensor.shape[:2], -1)
    return flat.reshape(*flat.shape[:2], *tensor.shape[2:])


def _given_inputs(by_input: Array, inputs: Array, rank: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The best basis [group, out, r2] of the outputs, given that of the inputs, and the core [group, r2, r1, taps]."""
    projected = np.ascontiguousarray(_project_inputs(by_input, inputs, shape))
    outputs = _left(projected.reshape(*projected.shape[:2], -1), rank)
    return outputs, _project_outputs(projected, outputs)


def _full(conv: Conv, chosen: Rank) -> int:
    """The full rank of the next axis."""
    group, taps = conv.group, math.prod(conv.kernel_shape)
    if chosen:
        return group * min(conv.out_channels // group, chosen[0] // group * taps)
    return group * min(conv.in_channels // group, conv.out_channels // group * taps)


def _common(conv: Conv, rank: int) -> Rank:
    """The same rank on either axis, as far as it is possible."""
    before = min(rank, _full(conv, ()))
    return before, min(rank, _full(conv, (before,)))
