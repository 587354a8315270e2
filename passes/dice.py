"""dice: a k x k Conv, with what stands behind it, as a DiCE unit.

What it does
    Three depthwise Convs, within each channel, within each row and within each column, beside one another; BN, Relu, a
    channel shuffle; a 1 x 1 Conv that joins the three of each channel, BN, Relu: z. Then a grouped 3 x 3 Conv of z to
    the outputs, BN, Relu, times a gate for each output from the means of z (S. Mehta, H. Hajishirzi and M. Rastegari
    2019, DiCENet; paper 004, its DICE(ci, co)). Where the Conv strides, half of the outputs come from a depthwise and a
    1 x 1 Conv, half from a unit on local means, shuffled. A row is a channel to the second of the Convs, so the result
    is made for inputs of one size.

Pattern
    A k x k Conv, BatchNormalization or none, an activation or none. All go, for the unit ends with its own; its outputs
    are not negative.

Initialisation
    Drawn (``modes.residual``) from a fixed seed, normal with the variance 2 / inputs; the last Conv of a gate is 0, so
    that gates start as 1/2; scale and bias of the last BatchNormalization are the old ones, doubled. Where no
    activation stood behind the Conv, a tenth of that: the unit has no negative outputs, and those that are added to a
    skip, block after block, would grow without end.
    With data: block by block along the network; statistics of BatchNormalization from what the block reads, then the
    last Convs by least squares on the original's output (``calibration.least_squares``).

When it pays
    It is not there to save alone, so it needs no ``--force``. It is far from exact: train the result.

When it refuses
    1 x 1 kernels, groups, other than two spatial axes; sizes that are not known; pads that do not keep the sizes (but
    for strides); one output where it strides; BatchNormalization that trains.

Settings
    pads: of the 1 x 1 and the last Conv: dicenet (0 and 1), or paper004 (1 and 0, as the code of paper 004 has them).
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import (
    INPUT,
    NORM_TENSORS,
    NOTHING_TO_SEPARATE,
    SHUFFLE_OPSET,
    STATISTICS,
    Array,
    Block,
    BlockMode,
    Const,
    Either,
    Layer,
    Op,
    Operand,
    Pattern,
    Setting,
    Value,
    activation,
    dice,
    drawn,
    keep_sizes,
    norm_refused,
    strided_dice,
)

_WITHOUT_ACTIVATION = 0.1
PADS = Setting("pads", "dicenet", "of the 1 x 1 and the last Conv of a unit", choices=("dicenet", "paper004"))


def _pattern() -> Operand:
    conv = Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
    layer = Either(Op("norm", "BatchNormalization", conv, *map(Const, STATISTICS)), conv)
    return Either(activation("activation", layer), layer)


def sizes(block: Block) -> tuple[int, int] | None:
    """Spatial sizes of what a block reads; None where they are not two known ones."""
    found = [size for size in (block.dims or ())[2:] if isinstance(size, int)]
    return (found[0], found[1]) if len(found) == 2 and len(block.dims or ()) == 4 else None


class Dice(BlockMode):
    """Depth, rows and columns."""

    name = "dice"
    summary = "a k x k Conv as a DiCE unit, for inputs of one size; needs data or training"
    pattern = Pattern("Conv", _pattern())
    anchor = "conv"
    exact = False
    fits = "least-squares"
    untrained = "new blocks start at random: the network needs training"
    settings = (PADS,)

    def accepts(self, block: Block) -> str | None:
        """Refuse what has no rows and columns of known sizes."""
        conv = block.conv
        if max(conv.kernel_shape) == 1:
            return NOTHING_TO_SEPARATE
        if conv.group > 1:
            return f"it has {conv.group} groups"
        if block.opset < SHUFFLE_OPSET:
            return f"operator set {block.opset}: only from {SHUFFLE_OPSET} on does it hold what a channel shuffle needs"
        if conv.dims != 2 or sizes(block) is None:
            return "a DiCE unit is for images of known sizes, and those that it reads are not known"
        if conv.auto_pad != "NOTSET" or conv.own_tap() is None:
            return "its pads do not keep the sizes (or it has auto_pad)"
        if max(conv.strides) > 1 and conv.out_channels < 2:
            return "it has one output channel, and where it strides the unit needs two"
        return norm_refused(block.nodes["norm"]) if "norm" in block.nodes else None

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The unit."""
        conv, size = block.conv, sizes(block)
        assert size is not None
        widths = conv.in_channels, conv.out_channels
        paper, norm = self.setting("pads") == "paper004", "norm" in block.nodes
        if max(conv.strides) == 1:
            return tuple(dice("dice", INPUT, widths, size, paper=paper, norm=norm))
        after = conv.output_size(size)
        return tuple(strided_dice("dice", INPUT, widths, after, conv, paper=paper, norm=norm))

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """At random, with the size of the old outputs."""
        layers = self.layers(block)
        part = 1.0 if "activation" in block.nodes else _WITHOUT_ACTIVATION
        given: dict[str, Array] = {}
        if "norm" in block.nodes and max(block.conv.strides) == 1:
            last = dict(zip(NORM_TENSORS, STATISTICS, strict=True))
            given = {f"dice_spread_norm.{name}": 2 * part * values[last[name]] for name in ("scale", "bias")}
        found = drawn(layers, given)
        keep_sizes(found, [values["weight"]], values.get("variance"), "dice_three_norm", (), norm="norm" in block.nodes)
        if "norm" not in block.nodes:
            for name in ("dice_spread", "dice_unit_spread", "dice_mix"):
                if f"{name}.weight" in found:
                    found[f"{name}.weight"] = found[f"{name}.weight"] * part
        return [found[f"{layer.name}.{name}"] for layer in layers for name, _ in layer.tensors]
