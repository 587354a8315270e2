"""ghost: a part of a Conv's outputs is computed as before, the others are made of these by a cheap depthwise Conv.

What it does
    p = P * x, O / r primary channels with the Conv's kernel, stride, pads and dilation (``primary=pointwise``: 1 x 1);
    g = d * p, a depthwise Conv of kernel 3 that makes r - 1 ghosts of each of them; the output is [g, p] (K. Han et al.
    2020, r = 2; paper 004, its Ghost(ci, co), has 1 x 1 primaries and this order). (O / r) I k^2 + 9 (O - O / r)
    parameters in place of O I k^2, and the biases.

Pattern
    A Conv. BatchNormalization and activations behind it work channel by channel and stay as they are.

Initialisation
    Output j of the primary channels and its ghosts share one row of P. With their old kernels below one another in a
    matrix M, the best of all common rows for inputs that are white noise is the leading right singular vector v of M:
    P_j = (m v) v, m the old kernel of the primary channel, and a ghost is (m' v) / (m v) times it, at the middle tap of
    d. For 1 x 1 primaries M holds what the old Conv reads at the output's own position, and each ghost has a row for
    each of its 3 x 3 taps (where the Conv has stride 1). Exact where each M has rank 1.
    With data: P, then d by least squares on what the block reads and the original gives, held near that start
    (``calibration.least_squares``).

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: fine-tune the result.

When it refuses
    Groups; outputs that r does not divide; with 1 x 1 primaries pads that are not those of a Conv with equal sizes of
    input and output (at stride 1).

Settings
    ratio: r; kernel: of the depthwise Conv; primary: conv or pointwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    ConcatLayer,
    Const,
    Conv,
    ConvLayer,
    Layer,
    Op,
    Pattern,
    Setting,
    Value,
)

_LEAST_SHARE = 1e-3  # of a primary channel in what it has in common with its ghosts


class Ghost(BlockMode):
    """Primary channels, and their ghosts."""

    name = "ghost"
    summary = "half of the outputs made of the other half by a depthwise Conv (Ghost module); far from exact"
    pattern = Pattern("Conv", Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True)))
    anchor = "conv"
    exact = False
    saves = True
    fits = "least-squares"
    untrained = "new blocks start from a factorisation of the old weights: the network needs training"
    settings = (
        Setting("ratio", 2, "outputs for each that is computed as before", (lambda ratio: ratio >= 2, "2 or more")),
        Setting(
            "kernel",
            3,
            "size of the depthwise kernel",
            (lambda size: size >= 1 and size % 2 == 1, "odd, 1 or more"),
        ),
        Setting("primary", "conv", "kernel of the primary channels", choices=("conv", "pointwise")),
    )
    tries = ({}, {"ratio": 4})

    def accepts(self, block: Block) -> str | None:
        """Refuse what cannot be halved."""
        conv, ratio = block.conv, self.setting("ratio")
        if conv.group > 1:
            return f"it has {conv.group} groups"
        if conv.out_channels % ratio:
            return f"its {conv.out_channels} outputs are no multiple of the ratio {ratio}"
        if self._is_pointwise and conv.own_tap() is None:
            return "its pads are not those that a 1 x 1 Conv in its place needs"
        return None

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The primary channels, their ghosts, ghosts and channels beside one another."""
        conv, primary = block.conv, self._primary(block.conv)
        few, kernel = primary.out_channels, (self.setting("kernel"),) * conv.dims
        ghosts = replace(
            conv.pointwise(few, conv.out_channels - few, bias=conv.bias, group=few),
            kernel_shape=kernel,
            pads=tuple(size // 2 for size in kernel) * 2,
        )
        return (
            ConvLayer("primary", INPUT, primary),
            ConvLayer("cheap", "primary", ghosts),
            ConcatLayer("ghost", ("cheap", "primary"), channels=conv.out_channels),
        )

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """What each primary channel and its ghosts have in common."""
        conv, primary = block.conv, self._primary(block.conv)
        few, each = primary.out_channels, self.setting("ratio") - 1
        weight, bias = values["weight"], values.get("bias", np.zeros(conv.out_channels)).reshape(-1)
        size = self.setting("kernel")
        if self._is_pointwise:
            own = conv.own_tap()
            assert own is not None
            middle: tuple[Any, ...] = (slice(few * each, None), slice(None), *own)
            rows = weight[middle][:, None]  # [few, 1, I]
            taps = _window(weight[: few * each], own, size, whole=self._sees_taps(conv))  # [ghosts, I, size, ...]
            ghosts = np.moveaxis(taps.reshape(few, each, conv.in_channels, -1), 2, 3).reshape(few, -1, conv.in_channels)
        else:
            rows = weight[few * each :].reshape(few, 1, -1)
            ghosts = weight[: few * each].reshape(few, each, -1)
        common = np.linalg.svd(np.concatenate([rows, ghosts], axis=1), full_matrices=False)[2][:, 0]  # [few, ...]
        share = np.einsum("pri,pi->p", rows, common)
        sizes = np.linalg.norm(np.concatenate([rows, ghosts], axis=1), axis=(1, 2))
        least = np.where(sizes > 0, _LEAST_SHARE * sizes, 1.0)
        share = np.where(np.abs(share) < least, np.where(share < 0, -least, least), share)
        factors = np.einsum("pri,pi->pr", ghosts, common) / share[:, None]
        cheap = np.zeros((few * each, 1, size**conv.dims))
        if self._is_pointwise:
            cheap[:, 0] = factors.reshape(few * each, -1)
        else:
            cheap[:, 0, size**conv.dims // 2] = factors.reshape(-1)
        found = [
            (share[:, None] * common).reshape(primary.weight_shape),
            bias[few * each :],
            cheap.reshape(few * each, 1, *(size,) * conv.dims),
            # The bias of a primary channel comes through the middle of the map with all the taps of a ghost.
            bias[: few * each] - cheap.sum(axis=(1, 2)) * np.repeat(bias[few * each :], each),
        ]
        return found if conv.bias else found[::2]

    @property
    def _is_pointwise(self) -> bool:
        return bool(self.setting("primary") == "pointwise")

    def _primary(self, conv: Conv) -> Conv:
        few = conv.out_channels // self.setting("ratio")
        if self._is_pointwise:
            return replace(conv.pointwise(conv.in_channels, few, bias=conv.bias), strides=conv.strides)
        return replace(conv, out_channels=few)

    def _sees_taps(self, conv: Conv) -> bool:
        """Whether the taps of the depthwise Conv stand where taps of the old one do."""
        return set(conv.strides) == {1} and set(conv.dilations) == {1}


def _window(weight: Array, own: Sequence[int], size: int, *, whole: bool) -> Array:
    """The taps of kernels around their own one, [outputs, inputs, size, ...]; zero where there are none.

    With ``whole`` false only the own tap is taken.
    """
    found = np.zeros((*weight.shape[:2], *(size,) * len(own)))
    reach = size // 2 if whole else 0
    source, target = [slice(None), slice(None)], [slice(None), slice(None)]
    for middle, length in zip(own, weight.shape[2:], strict=True):
        begin, end = max(0, middle - reach), min(length, middle + reach + 1)
        source.append(slice(begin, end))
        target.append(slice(begin - middle + size // 2, end - middle + size // 2))
    found[tuple(target)] = weight[tuple(source)]
    return found
