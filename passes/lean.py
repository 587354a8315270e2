"""lean: a 1 x 1 Conv plus a depthwise cross, for a k x k Conv.

What it does
    y_o = sum_i A[o, i] x_i  +  sum_axes (c[o, -] x_o shifted by -1  +  c[o, +] x_o shifted by +1)

    All channels are mixed at the centre of the window; each channel also sees its own two neighbours along every axis:
    north, south, west and east in 2-D (a 5-point stencil whose centre is the diagonal of A), 7 points in 3-D, 3 points
    in 1-D. This is the lean convolution of paper 003 (equations 3 and 4).

    "svd" (the name of the fit without data in every mode, here without singular values): the taps of W outside this
    pattern are set to zero, which gives the nearest such weight in the Frobenius norm. "joint": all taps of the pattern
    by least squares on calibration data, in closed form: for each output a linear system over the centre taps (the same
    for all outputs, one Cholesky factor) and its own cross (a Schur complement of a few rows).

    For a kernel of 5 or 7 taps the cross still has the taps right beside the centre (times the dilation), as in the
    paper, and not the outer ones. Where input and output channels differ, of which the paper says nothing, input i
    feeds the cross of output i, as far as both exist.

Why
    in * out + 4 * min(in, out) parameters in 2-D, near 1 / (k * k) of the Conv's. Far from the original without
    data or training, for all other taps are lost.

Form
    A 1 x 1 Conv, which carries the bias; for each axis a depthwise Conv with a kernel of 2 taps and twice the dilation,
    so that nothing is stored for the centre; Adds. Each carries the strides, and pads that put all of them on the same
    centre. Superfluous input channels are left out before the depthwise Convs, missing output channels are zeros added
    behind them, both by a Pad of the channel axis.

When it refuses
    A grouped Conv; a kernel of 1 x 1, or of even length (no centre); pads so small that the 1 x 1 Conv would have to
    leave out the border of its input; auto_pad where the centre depends on the input's size.
"""

import math
from contextlib import suppress
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    NOTHING_TO_SEPARATE,
    AddLayer,
    Array,
    ChannelPadLayer,
    Conv,
    ConvLayer,
    FactorizationError,
    Factors,
    Layer,
    Mode,
    Rank,
    RankAxis,
    Task,
    solve_lower,
)

_RIDGE = 1e-12  # relative to the mean of the diagonal: against rounding, the statistics are regularised already


class Lean(Mode):
    """A 1 x 1 Conv plus, along each axis, the two nearest taps of a depthwise Conv."""

    name = "lean"
    summary = "1 x 1 plus a depthwise cross of the nearest taps; it has no rank"
    inits = ("svd", "joint")

    def accepts(self, conv: Conv) -> str | None:
        """Refuse what has no centre, or one that a 1 x 1 Conv cannot sample."""
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"grouped Conv ({conv.group} groups): this mode takes ungrouped ones only"
        if not all(k % 2 for k in conv.kernel_shape):
            return f"a kernel of {_by(conv.kernel_shape)} has no tap at its centre"
        strided = any(s > 1 for s, k in zip(conv.strides, conv.kernel_shape, strict=True) if k > 1)
        if conv.auto_pad.startswith("SAME") and strided:
            return f"auto_pad {conv.auto_pad} with strides: where its centre lies depends on the size of the input"
        if min(_centre_pads(conv)) < 0:
            needed = [reach * d for reach, d in zip(_reach(conv), conv.dilations, strict=True)]
            return (
                f"its pads are too small: the 1 x 1 Conv would have to leave out the border, which needs pads of at "
                f"least {_by(needed)} on either side"
            )
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        """None: there is nothing to choose."""
        return None

    def is_exact(self, conv: Conv, rank: Rank) -> bool:
        """Never: taps are lost."""
        return False

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        """The 1 x 1 Conv, the depthwise ones, and their sum."""
        channels = min(conv.in_channels, conv.out_channels)
        ones = (1,) * conv.dims
        pads = _centre_pads(conv)
        plain = replace(conv, kernel_shape=ones, dilations=ones, pads=pads, auto_pad="NOTSET")
        layers: list[Layer] = [ConvLayer("mixing", INPUT, plain)]
        source = INPUT
        if conv.in_channels > channels:
            layers.append(ChannelPadLayer("cropped", INPUT, channels))
            source = "cropped"
        total = ""
        for axis in _axes(conv):
            step = conv.dilations[axis]
            cross = replace(
                plain,
                in_channels=channels,
                out_channels=channels,
                group=channels,
                bias=False,
                kernel_shape=_with(ones, axis, 2),
                dilations=_with(ones, axis, 2 * step),
                pads=tuple(pad + step * (place % conv.dims == axis) for place, pad in enumerate(pads)),
            )
            layers.append(ConvLayer(f"cross_{axis + 1}", source, cross))
            if total:
                layers.append(AddLayer(f"cross_{axis + 1}_sum", (total, layers[-1].name)))
            total = layers[-1].name
        if conv.out_channels > channels:
            layers.append(ChannelPadLayer("padded", total, conv.out_channels))
            total = "padded"
        return (*layers, AddLayer("sum", ("mixing", total)))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        """The taps of the pattern, as they are."""
        conv = task.conv
        weight = task.weight.reshape(conv.out_channels, conv.in_channels, -1)
        own = np.arange(min(conv.in_channels, conv.out_channels))
        return _factors(conv, weight[:, :, _centre(conv)], weight[own[:, None], own[:, None], _cross(conv)])

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """The taps of the pattern that minimise the mean squared error of the outputs."""
        if init != "joint" or task.statistics is None:
            return super().fit(task, rank, init)
        conv = task.conv
        taps = math.prod(conv.kernel_shape)
        gram, cross = task.statistics.grams[0], task.statistics.cross[0]  # [d, d], [out, d]
        channels = min(conv.in_channels, conv.out_channels)
        centre = np.arange(conv.in_channels) * taps + _centre(conv)
        own = np.arange(channels)[:, None] * taps + _cross(conv)  # [channels, q]: the places of each output's cross
        count = own.shape[1]
        # With L L^T the Gram matrix of the centre taps: S = K - Y^T Y is what the cross taps add, Y = L^-1 B.
        lower = _cholesky(gram.block(centre, centre))
        mixed = solve_lower(lower, gram.block(centre, own.ravel())).reshape(-1, channels, count)
        wanted = solve_lower(lower, cross[:, centre].T)  # [in, out]
        crosses = gram.blocks(own)
        schur = crosses - np.einsum("icp,icq->cpq", mixed, mixed)
        right = cross[np.arange(channels)[:, None], own] - np.einsum("icq,ic->cq", mixed, wanted[:, :channels])
        mean = np.diagonal(crosses, axis1=1, axis2=2).mean(axis=1)
        schur[:, range(count), range(count)] += np.where(mean > 0, _RIDGE * mean, 1.0)[:, None]
        taken = np.linalg.solve(schur, right[..., None])[..., 0]
        wanted[:, :channels] -= np.einsum("icq,cq->ic", mixed, taken)
        return _factors(conv, solve_lower(lower, wanted, transposed=True).T, taken)

    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        """The weight with zeros outside the pattern."""
        mixing, *crosses = factors.weights
        weight = np.zeros((conv.out_channels, conv.in_channels, math.prod(conv.kernel_shape)))
        weight[:, :, _centre(conv)] = mixing.reshape(conv.out_channels, conv.in_channels)
        own = np.arange(min(conv.in_channels, conv.out_channels))
        taken = np.concatenate([cross.reshape(-1, 2) for cross in crosses], axis=1)
        weight[own[:, None], own[:, None], _cross(conv)] = taken
        return weight.reshape(conv.weight_shape)


def _factors(conv: Conv, mixing: Array, cross: Array) -> Factors:
    """Weights of the Convs from [out, in] and [channels, 2 * axes]."""
    ones = (1,) * conv.dims
    weights = [np.ascontiguousarray(mixing).reshape(conv.out_channels, conv.in_channels, *ones)]
    for number, axis in enumerate(_axes(conv)):
        weights.append(cross[:, 2 * number : 2 * number + 2].reshape(-1, 1, *_with(ones, axis, 2)))
    return Factors(weights)


def _axes(conv: Conv) -> list[int]:
    """The spatial axes along which there are neighbours."""
    return [axis for axis, k in enumerate(conv.kernel_shape) if k > 1]


def _reach(conv: Conv) -> list[int]:
    """Taps between the centre and the end of the kernel, for each axis."""
    return [(k - 1) // 2 for k in conv.kernel_shape]


def _centre(conv: Conv) -> int:
    """The place of the centre among the taps."""
    return math.prod(conv.kernel_shape) // 2


def _cross(conv: Conv) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The places of the nearest taps among all taps: before and after the centre, along each axis."""
    places = []
    for axis in _axes(conv):
        step = math.prod(conv.kernel_shape[axis + 1 :])
        places += [_centre(conv) - step, _centre(conv) + step]
    return np.array(places)


def _centre_pads(conv: Conv) -> tuple[int, ...]:
    """Pads with which a 1 x 1 Conv samples the centre of each window; below 0 where it cannot."""
    inset = [reach * d for reach, d in zip(_reach(conv), conv.dilations, strict=True)] * 2
    if conv.auto_pad.startswith("SAME"):  # at stride 1 and odd length it pads by just that
        return (0,) * len(inset)
    pads = conv.pads if conv.auto_pad == "NOTSET" else (0,) * len(inset)
    return tuple(pad - by for pad, by in zip(pads, inset, strict=True))


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _by(sizes: list[int] | tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _cholesky(matrix: Array) -> Array:
    """The lower Cholesky factor, of the matrix with a ridge where rounding has made it indefinite."""
    mean = float(np.trace(matrix)) / len(matrix)
    for ridge in (0.0, _RIDGE, 1e3 * _RIDGE, 1e6 * _RIDGE):
        shifted = matrix + ridge * (mean if mean > 0 else 1.0) * np.eye(len(matrix))
        with suppress(np.linalg.LinAlgError):
            return np.asarray(np.linalg.cholesky(shifted), np.float64)
    raise FactorizationError("the calibration data give a Gram matrix that is not positive")
