"""fire: a k x k Conv as SqueezeNet's Fire module: 1 x 1 to few channels, then 1 x 1 and k x k side by side.

What it does
    s = A x + a (1 x 1, to q channels), then the first e outputs B s + b (1 x 1) and the others C * s + c (k x k, with
    the Conv's stride, pads and dilation), joined along the channels (F. Iandola et al. 2016; paper 004, V5: q is an
    eighth of the outputs, e a half). q (I + 1) + e (q + 1) + (O - e)(k^2 q + 1) parameters in place of O (k^2 I + 1).
    By settings: BatchNormalization and an activation of s; C in q groups; fewer biases; a channel shuffle (paper 004,
    V6 to V13).

Pattern
    A Conv. BatchNormalization and activations behind it, whatever they are, work channel by channel, so what the paper
    has behind each of the two branches is the same as what stands behind the joined one: these nodes stay as they are.
    With ``norms=each`` or ``norms=pointwise`` BatchNormalization is part of the pattern, and stands behind the
    branches, or behind the 1 x 1 one alone.

Initialisation
    Of the kernels of the first e outputs only the tap at the position itself can stay. With D [e, I] these taps and
    E [(O - e) k^2, I] the other kernels, the truncated SVD of [D; E] = U S V^T to rank q gives A = sqrt(S) V^T and
    [B; C] = U sqrt(S): the least error of the weights that the form allows, so that of the outputs for inputs that are
    white noise; in groups, C keeps what each output has of its own channel of s, which is again the least error.
    Biases: a = 0; b and c are the Conv's own, or 0. Where q is above I, further rows of A are random (a fixed seed) and
    read by zeros. A BatchNormalization that goes from the k x k branch scales C.
    With data: block by block along the network; statistics of a BatchNormalization of s from what it reads, then B and
    C by least squares on the original's output (``calibration.least_squares``).

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: fine-tune the result.

When it refuses
    1 x 1 and grouped Convs; less than two outputs; pads that are not those of a Conv with equal sizes of input and
    output (at stride 1), for the two branches would differ in size; groups or a shuffle that do not divide the
    channels; a bias of the Conv where the branches have none (bias-to-norm takes it away before).

Settings
    squeeze: q as a share of the outputs; pointwise: e as a share of the outputs; between, expand, biases, norms,
    shuffle: as said above.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxsep.modes import (
    INPUT,
    NORM_TENSORS,
    NOTHING_TO_SEPARATE,
    SHUFFLE_OPSET,
    STATISTICS,
    Array,
    Block,
    BlockMode,
    ConcatLayer,
    Const,
    Conv,
    Layer,
    NormLayer,
    Op,
    Operand,
    Pattern,
    Setting,
    ShuffleLayer,
    Value,
    norm_refused,
    normed,
)

_SHARE = (lambda share: 0 < share < 1, "above 0 and below 1")


def _conv() -> Operand:
    return Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))


class Fire(BlockMode):
    """Squeeze, then two kinds of expanding Convs."""

    name = "fire"
    summary = "1 x 1 to few channels, then 1 x 1 and k x k side by side (Fire); far from exact"
    pattern = Pattern("Conv", _conv())
    anchor = "conv"
    exact = False
    saves = True
    fits = "least-squares"
    untrained = "new blocks start from a factorisation of the old weights: the network needs training"
    settings = (
        Setting("squeeze", 0.125, "channels in between, as a share of the outputs", _SHARE),
        Setting("pointwise", 0.5, "outputs of the 1 x 1 branch, as a share of all", _SHARE),
        Setting("between", "none", "BatchNormalization and this in between", choices=("none", "relu", "relu6")),
        Setting(
            "expand", "full", "the k x k branch, or each of its outputs of one channel", choices=("full", "grouped")
        ),
        Setting("biases", "all", "which Convs have one", choices=("all", "pointwise", "none")),
        Setting(
            "norms",
            "behind",
            "where BatchNormalization stands: behind it all, each branch, or the 1 x 1 one",
            choices=("behind", "each", "pointwise"),
        ),
        Setting(
            "shuffle", 0, "groups of a channel shuffle behind it; 0: none", (lambda groups: groups >= 0, "0 or more")
        ),
    )
    tries = ({"squeeze": 0.0625}, {}, {"squeeze": 0.25}, {"squeeze": 0.5})

    def with_settings(self, given: Mapping[str, object] | None) -> "Fire":
        """BatchNormalization is part of what is replaced where it is to stand elsewhere."""
        changed = super().with_settings(given)
        if changed._takes_norm:
            norm = Op("norm", "BatchNormalization", _conv(), *map(Const, STATISTICS))
            changed.pattern = Pattern("Conv with BatchNormalization behind it", norm)
        return changed

    def accepts(self, block: Block) -> str | None:
        """Refuse Convs whose outputs a 1 x 1 Conv cannot stand beside."""
        conv = block.conv
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"it has {conv.group} groups"
        if conv.out_channels < 2:
            return "it has one output channel, and the form needs two"
        if conv.own_tap() is None:
            return (
                "its pads are not those that a 1 x 1 Conv beside it needs: for each axis dilation * (kernel - 1) in all"
            )
        return self._undivided(conv, block.opset) or self._homeless(block)

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """Squeeze; both expands; joined."""
        conv, (between, first) = block.conv, self._widths(block.conv)
        form, some, every = self.setting("between"), self.setting("biases") != "none", self.setting("biases") == "all"
        strided = replace(conv.pointwise(between, first, bias=some), strides=conv.strides)
        group = between if self.setting("expand") == "grouped" else 1
        wide = replace(conv, in_channels=between, out_channels=conv.out_channels - first, group=group, bias=every)
        inner, norms = form != "none", self.setting("norms")
        layers = normed(
            "squeeze",
            INPUT,
            conv.pointwise(conv.in_channels, between, bias=some),
            form if inner else "",
            norm=inner,
        )
        source = layers[-1].name
        one = normed("expand1", source, strided, "", norm=self._takes_norm)
        three = normed("expand3", source, wide, "", norm=norms == "each")
        epsilon = block.nodes["norm"].attribute("epsilon", 1e-5) if self._takes_norm else 0.0
        branches = [
            replace(layer, epsilon=epsilon) if isinstance(layer, NormLayer) else layer for layer in (*one, *three)
        ]
        joined = ConcatLayer("fire", (one[-1].name, three[-1].name), channels=conv.out_channels)
        groups = self.setting("shuffle")
        behind = [ShuffleLayer("shuffle", "fire", groups)] if groups > 1 else []
        return (*layers, *branches, joined, *behind)

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The truncated SVD of what the form can hold."""
        conv, (between, first) = block.conv, self._widths(block.conv)
        order = self._order(conv)
        weight, own = values["weight"][order], conv.own_tap()
        assert own is not None
        bias = values.get("bias", np.zeros(conv.out_channels)).reshape(-1)[order]
        norm = {
            name: values[part][order] for name, part in zip(NORM_TENSORS, STATISTICS, strict=True) if part in values
        }
        taps = np.moveaxis(weight[first:], 1, -1)  # [O - e, *kernel, I]
        middle: tuple[Any, ...] = (slice(first), slice(None), *own)
        both = np.concatenate([weight[middle], taps.reshape(-1, conv.in_channels)])
        squeeze, expand = _factors(both, between)
        ones = (1,) * conv.dims
        wide = np.moveaxis(expand[first:].reshape(*taps.shape[:-1], between), -1, 1)
        if self.setting("expand") == "grouped":
            many = len(wide)
            wide = wide[np.arange(many), np.arange(many) * between // many][:, None]
        if norm and self.setting("biases") != "all":
            norm["mean"], bias = norm["mean"] - bias, np.zeros_like(bias)
        if self.setting("norms") == "pointwise":
            epsilon = block.nodes["norm"].attribute("epsilon", 1e-5)
            gain = (norm["scale"] / np.sqrt(norm["variance"] + epsilon))[first:]
            wide = wide * gain.reshape(-1, 1, *ones)
            bias[first:] = gain * (bias - norm["mean"])[first:] + norm["bias"][first:]
        found = {
            "squeeze.weight": squeeze.reshape(*squeeze.shape, *ones),
            "squeeze.bias": np.zeros(between),
            "expand1.weight": expand[:first].reshape(first, between, *ones),
            "expand1.bias": bias[:first],
            "expand3.weight": wide,
            "expand3.bias": bias[first:],
        }
        for name, array in norm.items():
            found |= {f"expand1_norm.{name}": array[:first], f"expand3_norm.{name}": array[first:]}
        for name in NORM_TENSORS:  # of what goes through it, until it is measured
            found[f"squeeze_norm.{name}"] = np.full(between, float(name in ("scale", "variance")))
        return [found[f"{layer.name}.{name}"] for layer in self.layers(block) for name, _ in layer.tensors]

    @property
    def _takes_norm(self) -> bool:
        return bool(self.setting("norms") != "behind")

    def _undivided(self, conv: Conv, opset: int) -> str | None:
        """Which groups do not divide channels."""
        between, first = self._widths(conv)
        if self.setting("expand") == "grouped" and (conv.out_channels - first) % between:
            return f"{between} channels in between do not divide the {conv.out_channels - first} of the grouped branch"
        groups = self.setting("shuffle")
        if groups > 1 and opset < SHUFFLE_OPSET:
            return f"operator set {opset}: only from {SHUFFLE_OPSET} on does it hold what a channel shuffle needs"
        if groups > 1 and conv.out_channels % groups:
            return f"a shuffle of {groups} groups does not divide its {conv.out_channels} outputs"
        return None

    def _homeless(self, block: Block) -> str | None:
        """A bias that no branch can have, or a BatchNormalization that cannot be written anew."""
        if "norm" in block.nodes:
            return norm_refused(block.nodes["norm"])
        if block.conv.bias and self.setting("biases") != "all":
            return "it has a bias, and not all branches have one (setting biases): mode bias-to-norm may take it away"
        return None

    def _order(self, conv: Conv) -> Any:
        """The output that each one is before the shuffle."""
        groups, places = self.setting("shuffle"), np.arange(conv.out_channels)
        return places.reshape(-1, groups).T.reshape(-1) if groups > 1 else places

    def _widths(self, conv: Conv) -> tuple[int, int]:
        """Channels in between, and outputs of the 1 x 1 branch; one at least."""
        between = max(1, round(conv.out_channels * self.setting("squeeze")))
        first = round(conv.out_channels * self.setting("pointwise"))
        return between, min(max(1, first), conv.out_channels - 1)


def _factors(both: Array, between: int) -> tuple[Array, Array]:
    """[between, I] and [rows, between], whose product is as near as can be to ``both`` [rows, I]."""
    inputs = both.shape[1]
    u, s, vt = np.linalg.svd(both, full_matrices=False)
    used = min(between, len(s))
    squeeze = np.random.default_rng(0).normal(0, np.sqrt(1 / inputs), (between, inputs))
    squeeze[:used] = np.sqrt(s[:used, None]) * vt[:used]
    expand = np.zeros((len(both), between))
    expand[:, :used] = u[:, :used] * np.sqrt(s[:used])
    return squeeze, expand
