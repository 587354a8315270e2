"""dice-bottleneck: a residual block as a 1 x 1 Conv and a DiCE unit.

What it does
    1 x 1 to E channels, BN, Relu, then a DiCE unit of E to O channels, as the mode dice makes it, and the skip (paper
    004, R15). The result is made for inputs of one size.

Pattern
    A bottleneck or a basic block with its skip, as for inverted-bottleneck; the skip stays as it is, and the activation
    of the sum too, unless ``end=none``.

Initialisation
    As in dice, with scale and bias of the last BatchNormalization doubled; the 1 x 1 Conv and its BatchNormalization
    are the old ones where the block begins with such a Conv of as many outputs.

When it pays
    It is not there to save alone, so it needs no ``--force``. It is far from exact: train the result.

When it refuses
    What is no such block, or not of images of known sizes; one output where it strides; strides at several of its
    Convs; pads that do not keep the sizes.

Settings
    expansion: E as a multiple of the inputs, 0 for what the first Conv of the old block gives; pads, as in dice; end.
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import (
    INPUT,
    NORM_TENSORS,
    SHUFFLE_OPSET,
    STATISTICS,
    Array,
    Block,
    Layer,
    Residual,
    ResidualMode,
    Setting,
    dice,
    normed,
    pointwise,
    strided_dice,
)
from onnxsep.passes.dice import PADS, sizes


class DiceBottleneck(ResidualMode):
    """1 x 1, DiCE, skip."""

    name = "dice-bottleneck"
    summary = "a residual block as a 1 x 1 Conv and a DiCE unit, for inputs of one size; needs data or training"
    saves = False
    opening = "expand_norm"
    ending = (("dice_spread", 1 / 8), ("dice_unit_spread", 1 / 8), ("dice_mix", 0.5))  # behind Relu, and a gate of 1/2
    settings = (
        Setting(
            "expansion",
            0.0,
            "channels inside for each that comes in; 0: those of the old block's first Conv",
            (lambda times: times >= 0, "0 or more"),
        ),
        PADS,
        ResidualMode.END,
    )

    def accepts(self, block: Block) -> str | None:
        """Refuse what has no rows and columns of known sizes."""
        residual = Residual(block)
        if refused := residual.refused():
            return refused
        if block.opset < SHUFFLE_OPSET:
            return f"operator set {block.opset}: only from {SHUFFLE_OPSET} on does it hold what a channel shuffle needs"
        if block.conv.dims != 2 or sizes(block) is None:
            return "a DiCE unit is for images of known sizes, and those that it reads are not known"
        if residual.spatial.auto_pad != "NOTSET":
            return "its k x k Conv has auto_pad"
        if max(residual.strides) > 1 and residual.outputs < 2:
            return "it has one output channel, and where it strides the unit needs two"
        return None

    def branch(self, block: Block) -> Sequence[Layer]:
        """1 x 1 and the unit."""
        residual, inner, size = Residual(block), self._inner(block), sizes(block)
        assert size is not None
        norm, paper = residual.norm, self.setting("pads") == "paper004"
        first = pointwise(2, residual.inputs, inner, bias=not norm)
        layers = normed("expand", INPUT, first, "relu", norm=norm)
        widths, after = (inner, residual.outputs), residual.spatial.output_size(size)
        if max(residual.strides) == 1:
            return [*layers, *dice("dice", layers[-1].name, widths, size, paper=paper, norm=norm)]
        unit = strided_dice("dice", layers[-1].name, widths, after, residual.spatial, paper=paper, norm=norm)
        return [*layers, *unit]

    def start(self, block: Block, values: Mapping[str, Array]) -> Mapping[str, Array]:
        """The old 1 x 1 Conv."""
        residual = Residual(block)
        first, last = residual.convs[0], len(residual.convs)
        found: dict[str, Array] = {}
        if f"norm_{last}" in block.nodes and max(residual.strides) == 1:  # twice, for gates start as 1/2
            found = {
                "dice_spread_norm.scale": 2 * values[f"gamma_{last}"],
                "dice_spread_norm.bias": 2 * values[f"beta_{last}"],
            }
        if max(*first.kernel_shape, *first.strides, first.group) > 1 or self._inner(block) != residual.inner:
            return found
        found["expand.weight"] = values["weight_1"]
        if "norm_1" in block.nodes:
            pairs = zip(NORM_TENSORS, STATISTICS, strict=True)
            found |= {f"expand_norm.{name}": values[f"{part}_1"] for name, part in pairs}
        elif "bias_1" in values and not residual.norm:
            found["expand.bias"] = values["bias_1"].reshape(-1)
        return found

    def _inner(self, block: Block) -> int:
        residual, times = Residual(block), self.setting("expansion")
        return max(1, round(residual.inputs * times)) if times else residual.inner
