"""squeeze-excitation: a gate for each channel behind the activation of a Conv.

What it does
    y' = y (s + s), s = sigmoid(B relu(A m)), m the mean of each channel of y over all positions; A [C / r, C] and
    B [C, C / r], without biases (J. Hu, L. Shen and G. Sun 2018; paper 004, its SE(c), r = 4). 2 C (C / r) parameters
    more.

Pattern
    A Conv, BatchNormalization or none, an activation: Relu, Clip, HardSwish, SiLU, ... . All of them stay as they are.

Initialisation
    B = 0 and A at random, normal with the variance 2 / C (K. He et al. 2015) from a fixed seed. A Sigmoid of 0 is 1/2,
    whatever the input, and twice that is 1: so the result computes exactly what the network did, and learns to do
    better when it is trained. (The gate lies between 0 and 2, as in P. Swietojanski and S. Renals 2014, and not between
    0 and 1: without biases a Sigmoid cannot be near 1 for all inputs and have gradients.)

When it pays
    It adds parameters on purpose, for accuracy: fine-tune the result.

When it refuses
    No activation behind the Conv, for there the paper has none; operator sets below 7, whose broadcasting differs;
    fewer channels than r; outputs of one position, as within such a gate itself.

Convs that share their weight, and all that stands behind them, share their gate's weights too.

Settings
    reduction: r.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    Const,
    ConvLayer,
    Either,
    Layer,
    Op,
    Operand,
    Pattern,
    Refusal,
    Setting,
    Value,
    activation,
    gate,
    scaled,
)

_LEAST_OPSET = 7


def _pattern() -> Operand:
    conv = Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
    norm = Op("norm", "BatchNormalization", conv, *map(Const, ("gamma", "beta", "mean", "variance")))
    return activation("activation", Either(norm, scaled(conv), conv))


class SqueezeExcitation(BlockMode):
    """A gate behind Conv, BatchNormalization and activation."""

    name = "squeeze-excitation"
    summary = "a gate for each channel (SE) behind Conv and activation; it starts as 1, so exact until it is trained"
    pattern = Pattern("Conv with an activation behind it", _pattern())
    anchor = "conv"
    exact = True
    finished = False
    appends = True
    settings = (
        Setting("reduction", 4, "the gate has so many times fewer channels inside", (lambda r: r >= 1, "1 or more")),
    )

    def accepts(self, block: Block) -> str | None:
        """Refuse what cannot have such a gate."""
        if block.opset < _LEAST_OPSET:
            return f"operator set {block.opset}: only from {_LEAST_OPSET} on does a product broadcast"
        dims = block.nodes["activation"].dims
        if dims is not None and all(size == 1 for size in dims[2:]):
            return "its outputs have one position, so that there is no mean to take"
        if block.conv.out_channels < self.setting("reduction"):
            return f"its {block.conv.out_channels} channels are fewer than the reduction {self.setting('reduction')}"
        return None

    def why_not(self, refusal: Refusal | None) -> str:
        """Without an activation there is no place for a gate."""
        if refusal is None or not any(role.startswith("activation") for role in refusal.nodes):
            return "no activation behind it"
        return refusal.reason

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """Mean, 1 x 1, Relu, 1 x 1, Sigmoid, twice that, product."""
        conv, inner = block.conv, block.conv.out_channels // self.setting("reduction")
        widths = conv.out_channels, inner, conv.out_channels
        return tuple(gate("se", INPUT, INPUT, widths, dims=conv.dims, twice=True))

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """A at random, B = 0."""
        shapes = [layer.conv.weight_shape for layer in self.layers(block) if isinstance(layer, ConvLayer)]
        spread = np.sqrt(2 / block.conv.out_channels)
        return [np.random.default_rng(0).normal(0, spread, shapes[0]), np.zeros(shapes[1])]
