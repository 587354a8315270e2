"""spatial-depthwise: a k x 1 and a 1 x k Conv, each of them depthwise separable.

What it does
    W[o, i, y, x] ~ sum_f  P[o, f] B[f, x] Q[f, i] A[i, y]

    The pair of the mode spatial with F channels in between, either Conv replaced by a depthwise one and a 1 x 1: that
    is the form in the published code of paper 000 (14,805,642 parameters on ResNet50V2), which its tables leave out.

    A is one k x 1 kernel for each input channel, whatever F is. With A of unit norm, the others are a sum of rank-one
    terms of sum_y A[i, y] W[o, i, y, x] (``onnxsep.algebra.polyadic``), and given these, the best A has a closed form.
    A starts from the leading left singular vector of every input channel's slice, and both are improved in turn. Never
    exact (but for weights of this form): the rank "full" only makes the last three factors so, given A.

    The start's error never rises with F. The sweeps may stop in a local optimum, so the final errors do not rise only
    nearly: in the tests they are held to a rise of 1 % of the weight's norm at most.

Why
    Parameters shrink to in*kh + in*F + F*kw + F*out.

Form
    A depthwise Conv along the first axis, a 1 x 1 Conv into F channels, a depthwise Conv along the second axis, a 1 x 1
    Conv with the bias; nothing else has a bias, so zeros padded in between are those that they would have made. Axes on
    which the kernel is 1 wide are left with the first Conv. The rank "paper" is F = out_channels.

When it refuses
    A grouped Conv: its channels are separated already, wholly or in part. A kernel that is not longer than 1 along
    exactly two axes: along one axis it is the mode depthwise; for three the papers define no such form.
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
    truncated_svd,
)

_SWEEPS = 20
_TOLERANCE = 1e-5  # a sweep that gains less of the squared norm is the last one


class SpatialDepthwise(Multilinear):
    """Two depthwise separable Convs, one for each axis."""

    name = "spatial-depthwise"
    summary = "depthwise k x 1, 1 x 1, depthwise 1 x k, 1 x 1 (never exact); the rank is the number of channels between"

    def accepts(self, conv: Conv) -> str | None:
        """Refuse grouped Convs, and kernels that do not have two axes."""
        wide, _ = kernel_axes(conv)
        if not wide:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"grouped Conv ({conv.group} groups): this mode takes ungrouped ones only"
        shape = "x".join(map(str, conv.kernel_shape))
        if len(wide) == 1:
            return f"a {shape} kernel lies along one axis: that is the mode depthwise"
        if len(wide) > 2:
            return f"a {shape} kernel lies along {len(wide)} axes: this mode is defined for two"
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """One rank: channels in between, out_channels in the code of paper 000."""
        if chosen:
            return None
        full = exact_rank((conv.out_channels, conv.in_channels, self.inputs(conv)[2]))
        return RankAxis("channels", full=full, paper=min(conv.out_channels, full))

    def is_exact(self, conv: Conv, rank: Rank) -> bool:
        """Never: each input channel has one k x 1 kernel at any rank."""
        return False

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """Four Convs in a row."""
        (channels,) = rank
        (first, second), narrow = kernel_axes(conv)
        names = [axis_name(conv, axis) for axis in (first, second)]
        before = conv.along([first, *narrow], conv.in_channels, conv.in_channels, bias=False)
        after = conv.along([second], channels, channels, bias=False)
        return (
            ConvLayer(names[0], INPUT, replace(before, group=conv.in_channels)),
            ConvLayer("pointwise_1", names[0], conv.pointwise(conv.in_channels, channels, bias=False)),
            ConvLayer(names[1], "pointwise_1", replace(after, group=channels)),
            ConvLayer("pointwise_2", names[1], conv.pointwise(channels, conv.out_channels, bias=conv.bias)),
        )

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The k x 1 kernels and the terms of the rest, improved in turn."""
        conv = task.conv
        weight, exponent = scaled_to_one(task.weight)
        tensor = weight.reshape(conv.out_channels, *self.inputs(conv)).transpose(1, 2, 0, 3)  # [in, kh, out, kw]
        flat = tensor.reshape(*tensor.shape[:2], -1)
        kernels = truncated_svd(flat, 1).u[:, :, 0].copy()  # [in, kh]; min(kh, out * kw) is 1 at least
        terms = orthogonal_terms(_rest(tensor, kernels), *rank)
        total, last = float(np.vdot(tensor, tensor)), np.inf
        for _ in range(_SWEEPS):
            terms = improved(_rest(tensor, kernels), terms, 1)
            product = compose(terms)[0].transpose(1, 0, 2).reshape(conv.in_channels, -1)  # [in, out * kw]
            along = (flat @ product[:, :, None])[:, :, 0]
            size = np.linalg.norm(along, axis=1)
            np.divide(along, size[:, None], out=kernels, where=size[:, None] > 0)
            left = total - 2 * float(size.sum()) + float(np.vdot(product, product))
            if last - left <= _TOLERANCE * total:
                break
            last = left
        outputs, inputs, taps = (factor[0] for factor in terms)
        arrays = scale_product([kernels, inputs.T, taps.T, outputs], exponent)
        return self.join(conv, [array[None] for array in arrays])

    def equation(self, conv: Conv) -> str:
        """Depthwise [in, kh], pointwise [F, in], depthwise [F, kw], pointwise [out, F]."""
        return "ia,fi,fb,of->oiab"

    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Channels, and the taps of the two axes."""
        first, second = (conv.kernel_shape[axis] for axis in kernel_axes(conv)[0])
        return conv.in_channels, first, second

    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The four weights."""
        return [weight.reshape(1, len(weight), -1) for weight in factors.weights]

    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """Weights [in, 1, kh, 1], [F, in, 1, 1], [F, 1, 1, kw] and [out, F, 1, 1] (in 2-D)."""
        shapes: list[tuple[int, ...]] = []
        for axis in kernel_axes(conv)[0]:
            shape = [1] * conv.dims
            shape[axis] = conv.kernel_shape[axis]
            shapes += [(1, *shape), (-1, *(1,) * conv.dims)]
        return Factors([array.reshape(array.shape[1], *shape) for array, shape in zip(arrays, shapes, strict=True)])


def _rest(tensor: Array, kernels: Array) -> Array:
    """[in, kh, out, kw] contracted with [in, kh]: [1, out, in, kw]."""
    rest: Array = np.einsum("iaob,ia->oib", tensor, kernels)[None]
    return rest
