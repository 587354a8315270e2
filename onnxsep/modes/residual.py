"""Block modes for residual blocks: what such a block is, and what their replacements have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from onnxsep.algebra.linalg import Array
from onnxsep.graph.activations import activation
from onnxsep.graph.expressions import Const, Either, Op, Operand, Value
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match, Pattern, Refusal
from onnxsep.layers.block_layers import NormLayer
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import INPUT, AddLayer, ConvLayer, Layer
from onnxsep.modes.block import Block, BlockMode
from onnxsep.modes.norms import NORM_TENSORS, STATISTICS, norm_refused
from onnxsep.modes.settings import Setting

_LONGEST_SKIP = 40  # nodes


def _layer(number: str, inner: Operand) -> Operand:
    """A Conv, with BatchNormalization or without."""
    conv = Op(f"conv_{number}", "Conv", inner, Const(f"weight_{number}"), Const(f"bias_{number}", optional=True))
    norm = Op(f"norm_{number}", "BatchNormalization", conv, *(Const(f"{part}_{number}") for part in STATISTICS))
    return Either(norm, conv)


def _branch(convs: int, x: Operand, prefix: str = "") -> Operand:
    """Convs with activations between them."""
    inner = _layer(f"{prefix}1", x)
    for number in range(2, convs + 1):
        inner = _layer(f"{prefix}{number}", activation(f"activation_{prefix}{number - 1}", inner))
    return inner


def residual_sum(convs: int, x: Operand, prefix: str = "", *, projected: bool | None = None) -> Op:
    """A branch, and a skip that is added: a Conv (``projected``), or what comes in itself; None: either.

    ``convs`` is how many the branch has, ``prefix`` stands before the numbers in roles.
    """
    skip = _layer(f"{prefix}skip", x)
    sides = Either(skip, x) if projected is None else skip if projected else x
    return Op(f"{prefix}add", ("Add", "Sum"), _branch(convs, x, prefix), sides, any_order=True)


def residual_pattern(*, end: bool) -> Pattern:
    """A bottleneck (three Convs) or a basic block (two), with its skip.

    A skip of other nodes (slices and zeros, a pool and a Conv) stays where it is, outside of the match, with the sum.

    Args:
        end: whether an activation of the sum is part of it, where there is one.
    """
    x = Value("x")
    sums = (residual_sum(3, x), residual_sum(2, x))
    if end:
        return Pattern("residual block", Either(*(activation("activation", one) for one in sums), *sums))
    return Pattern("residual block", Either(*sums, _branch(3, x), _branch(2, x)), _beside_a_skip)


def _beside_a_skip(index: Index, match: Match) -> str | None:
    """Why a branch alone is none of a residual block: what it computes is not added to what comes from its input."""
    if "add" in match.nodes:
        return None
    uses = index.uses(match.output, match.scope)
    places = {use.place for use in uses}
    place = next(iter(places)) if len(places) == 1 else None
    if place is None or index.node(place).op_type not in ("Add", "Sum") or place[0] != match.scope:
        return "is not added to a skip, and nothing else"
    seen = set[str]()
    waiting = [name for name in index.node(place).input if name != match.output]
    while waiting and len(seen) < _LONGEST_SKIP:
        name = waiting.pop()
        if name == match.values["x"]:
            return None
        maker = index.place(name, match.scope)
        if name in seen or maker is None or maker[0] != match.scope:
            continue
        seen.add(name)
        waiting += index.node(maker).input
    return "is added to something else than a skip of its input"


class Residual:
    """What a mode asks of a residual block that was found."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.convs = [block.convs[f"conv_{number}"] for number in (1, 2, 3) if f"conv_{number}" in block.convs]
        self.skip = block.convs.get("conv_skip")

    @property
    def is_bottleneck(self) -> bool:
        """Whether it is a 1 x 1 Conv, one that may stride, and a 1 x 1 Conv."""
        return len(self.convs) == 3 and {max(conv.kernel_shape) for conv in (self.convs[0], self.convs[2])} == {1}

    @property
    def inputs(self) -> int:
        """Channels that come in."""
        return self.convs[0].in_channels

    @property
    def outputs(self) -> int:
        """Channels that go out."""
        return self.convs[-1].out_channels

    @property
    def inner(self) -> int:
        """Channels of its first Conv."""
        return self.convs[0].out_channels

    @property
    def norm(self) -> bool:
        """Whether there is a BatchNormalization in its branch."""
        return any(role.startswith("norm_") and role != "norm_skip" for role in self._block.nodes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of all its Convs together."""
        return tuple(math.prod(axis) for axis in zip(*(conv.strides for conv in self.convs), strict=True))

    @cached_property
    def _widest(self) -> int:
        """Which of its Convs a depthwise one takes the kernel and pads from: one with strides, if it has a kernel."""
        wide = [number for number, conv in enumerate(self.convs) if max(conv.kernel_shape) > 1] or [0]
        return next((number for number in wide if max(self.convs[number].strides) > 1), wide[0])

    @property
    def spatial(self) -> Conv:
        """The Conv whose kernel and pads a depthwise one in the block has, with the strides of the whole block."""
        return replace(self.convs[self._widest], strides=self.strides)

    def refused(self) -> str | None:
        """Why it is none that can be written anew; None if it can."""
        for role, node in self._block.nodes.items():
            if role.startswith("norm_") and (told := norm_refused(node)):
                return told.replace("behind it", f"of its {role.removeprefix('norm_')} Conv")
        if sum(max(conv.strides) > 1 for conv in self.convs) > 1:
            return "several of its Convs have strides"
        for number, conv in enumerate(self.convs):
            strides_elsewhere = max(self.convs[self._widest].strides) < max(self.strides)
            if (number != self._widest or strides_elsewhere) and not conv.keeps_sizes:
                return f"its Conv number {number + 1} has pads that do not keep the sizes"
        if self.skip is not None and self.skip.group > 1:
            return "the Conv of its skip has groups"
        return None


class ResidualMode(BlockMode):
    """A residual block becomes another one with the same channels in and out; its skip stays as it is.

    A subclass states ``branch``, the layers beside the skip, and ``start``, their values without data.
    """

    pattern = residual_pattern(end=False)
    anchor = "conv_1"
    exact = False
    saves = True
    fits = "least-squares"
    untrained = "new blocks start at random where the old ones give no weights for them: the network needs training"
    END = Setting(
        "end", "keep", "the activation of the sum: it stays, or goes (MobileNetV2, paper 004)", choices=("keep", "none")
    )

    def with_settings(self, given: Mapping[str, object] | None) -> "ResidualMode":
        """Where the last activation goes, it is part of what is replaced."""
        changed = super().with_settings(given)
        if changed.setting("end") == "none":
            changed.pattern = residual_pattern(end=True)
        return changed

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what a residual block is, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "no residual block here: two or three Convs with activations between them, and a skip that is added"
        return f"no residual block: {refusal.reason}"

    def accepts(self, block: Block) -> str | None:
        """Refuse what is none; subclasses look at the rest."""
        return Residual(block).refused()

    def branch(self, block: Block) -> Sequence[Layer]:
        """The layers beside the skip; the last one computes what is added to it."""
        raise NotImplementedError

    def start(self, block: Block, values: Mapping[str, Array]) -> Mapping[str, Array]:
        """Values of some tensors, by "layer.name"; others are drawn (``drawn``)."""
        return {}

    opening: ClassVar[str] = ""
    """The first BatchNormalization of the branch, behind weights that are drawn (``keep_sizes``)."""
    ending: ClassVar[tuple[tuple[str, float], ...]] = ()
    """The last Convs of the branch, and what part of the square of their outputs is left where the branch ends."""

    def skip_bias(self) -> bool:
        """Whether the Conv of the skip is given a bias where it has none."""
        return False

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The branch, the skip, their sum."""
        residual, made = Residual(block), list(self.branch(block))
        if "add" not in block.nodes:
            return tuple(made)
        last = made[-1].name
        side = INPUT
        if residual.skip is not None:
            bias = residual.skip.bias or self.skip_bias()
            made.append(ConvLayer("skip", INPUT, replace(residual.skip, bias=bias)))
            side = "skip"
            if "norm_skip" in block.nodes:
                made.append(_norm_of(block, "skip", side))
                side = "skip_norm"
        return (*made, AddLayer("sum", (last, side)))

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """The weights of the skip."""
        found: dict[tuple[str, str], str] = {}
        if "conv_skip" in block.nodes:
            found["skip", "weight"] = "weight_skip"
            if block.convs["conv_skip"].bias:
                found["skip", "bias"] = "bias_skip"
        if "norm_skip" in block.nodes:
            found |= {("skip_norm", name): f"{part}_skip" for name, part in zip(NORM_TENSORS, STATISTICS, strict=True)}
        return found

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """What the subclass gives, the others at random."""
        layers, kept, given = self.layers(block), self.kept(block), self.start(block, values)
        found = drawn(layers, given)
        norm = any(isinstance(layer, NormLayer) and not layer.name.startswith("skip") for layer in layers)
        old = [_scaled(block, values, number, fold=not norm) for number in range(1, len(Residual(block).convs) + 1)]
        opening = "" if f"{self.opening}.variance" in given else self.opening
        ending = [(name, part) for name, part in self.ending if f"{name}.weight" not in given]
        keep_sizes(found, old, values.get("variance_1"), opening, ending, norm=norm)
        return [
            found[f"{layer.name}.{name}"]
            for layer in layers
            for name, _ in layer.tensors
            if (layer.name, name) not in kept
        ]


def _scaled(block: Block, values: Mapping[str, Array], number: int, *, fold: bool) -> Array:
    """The weight of an old Conv; ``fold``: times what the BatchNormalization behind it multiplies by."""
    weight = values[f"weight_{number}"]
    if not fold or f"norm_{number}" not in block.nodes:
        return weight
    epsilon = block.nodes[f"norm_{number}"].attribute("epsilon", 1e-5)
    gain = values[f"gamma_{number}"] / np.sqrt(values[f"variance_{number}"] + epsilon)
    scaled: Array = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled


def _norm_of(block: Block, part: str, source: str) -> NormLayer:
    """The BatchNormalization of the old block behind one of its Convs."""
    norm = block.nodes[f"norm_{part}"]
    return NormLayer(f"{part}_norm", source, block.convs[f"conv_{part}"].out_channels, norm.attribute("epsilon", 1e-5))


def drawn(layers: Sequence[Layer], given: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Values of all tensors of layers, by "layer.name": those given, the others drawn from a fixed seed.

    Weights are normal with the variance 2 / n, n the inputs of one output (K. He et al. 2015), so that values keep
    their size from one Conv with an activation to the next; the last Conv of a gate is 0, so that gates start at the
    middle of their range; biases are 0, BatchNormalization has scale 1, bias 0, mean 0 and variance 1.
    """
    rng, found = np.random.default_rng(0), dict(given or {})
    for layer in layers:
        for name, shape in layer.tensors:
            key = f"{layer.name}.{name}"
            if name == "weight" and len(shape) > 1:
                values = rng.normal(0, math.sqrt(2 / max(1, math.prod(shape[1:]))), shape)
                values = values * (not layer.name.endswith("_expand"))  # of a gate
            else:
                values = np.full(shape, 1.0 if name in ("scale", "variance") else 0.0)
            found.setdefault(key, values)
    return found


def keep_sizes(
    found: dict[str, Array],
    old: Sequence[Array],
    variance: Array | None,
    opening: str,
    ending: Sequence[tuple[str, float]],
    *,
    norm: bool,
) -> None:
    """Scale what was drawn so that values have about the size that they had, as far as the old weights tell.

    A Conv gives |W|^2 times the square of inputs that are white noise, and an activation leaves half of it. So the old
    BatchNormalization, which holds the variance of what the first Conv gave, tells the square of what comes in; drawn
    weights give twice that. Where there is none, the last Convs are scaled to the product over the old ones.

    Args:
        found: tensors by "layer.name"; changed.
        old: the weights of the old Convs.
        variance: of what the first of them gave, where it is known.
        opening: the BatchNormalization behind the first drawn weights; "": none.
        ending: the last Convs, and the part of the square of their outputs that is left behind them.
        norm: whether the new block has BatchNormalization.
    """
    squares = [np.square(weight).reshape(len(weight), -1).sum(axis=1) for weight in old]
    if norm:
        if variance is not None and f"{opening}.variance" in found:
            size = float(np.median(variance / np.maximum(squares[0], 1e-12)))
            found[f"{opening}.variance"] = np.full_like(found[f"{opening}.variance"], max(2 * size, 1e-12))
        return
    gain = math.prod(float(square.mean()) for square in squares) / 2.0 ** (len(old) - 1)
    for name, part in ending:
        if f"{name}.weight" in found:
            found[f"{name}.weight"] = found[f"{name}.weight"] * math.sqrt(gain / 2 / part)
