"""bias-to-norm: the bias of a Conv goes into the mean of the BatchNormalization behind it.

What it does
    gamma (y + b - mean) / s + beta = gamma (y - (mean - b)) / s + beta, so mean' = mean - b, in double precision: exact
    but for the rounding of mean' to the type of the weights. The Conv keeps its weight tensor and loses its bias.

Pattern
    A Conv with a bias, then BatchNormalization (inference, statistics constant), or a Mul and an Add of constants, one
    number for each channel, as TensorFlow's is exported: they become a BatchNormalization with mean -b and variance 1.

Why
    The bias of a Conv before BatchNormalization does nothing that the mean does not do, and frameworks that train
    networks leave it out there (S. Ioffe and C. Szegedy 2015, section 3.2). C numbers less. The configurations V3 and
    V4 of paper 004 have Convs without a bias, and its baseline VGG-19 has them with one: this is the way from one to
    the other.

When it refuses
    What the Conv computes is used elsewhere, or is an output; BatchNormalization that trains, or has statistics for
    each position (spatial=0); a bias that is not one number for each channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    STATISTICS,
    Array,
    Block,
    BlockMode,
    Const,
    ConvLayer,
    Either,
    Layer,
    NormLayer,
    Op,
    Operand,
    Pattern,
    Refusal,
    Value,
    norm_refused,
    per_channel,
    plain_norm,
    scaled,
)

_EPSILON = 1e-5
_LEAST_OPSET = 7  # below it Mul and Add broadcast as an attribute says


def _pattern() -> Operand:
    conv = Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
    return Either(Op("norm", "BatchNormalization", conv, *map(Const, STATISTICS)), scaled(conv))


class BiasToNorm(BlockMode):
    """Conv with a bias, and BatchNormalization."""

    name = "bias-to-norm"
    summary = "the bias of a Conv before BatchNormalization goes into its mean; exact"
    pattern = Pattern("Conv with a bias before BatchNormalization", _pattern())
    anchor = "conv"
    exact = True
    finished = False

    def accepts(self, block: Block) -> str | None:
        """Refuse what is not the same for all positions and inputs."""
        if not block.conv.bias:
            return "it has no bias"
        if "norm" in block.nodes:
            return norm_refused(block.nodes["norm"])
        if block.opset < _LEAST_OPSET:
            return f"operator set {block.opset}: only from {_LEAST_OPSET} on is it known what is behind it"
        channels, dims = block.conv.out_channels, block.conv.dims
        if not all(per_channel(block.shapes[part], channels, dims) for part in ("factor", "term")):
            return "the Mul and the Add behind it do not have one number for each channel"
        return None

    def why_not(self, refusal: Refusal | None) -> str:
        """Without BatchNormalization nothing comes close."""
        if refusal is None or not {"norm", "shift"} & refusal.nodes.keys():
            return "no BatchNormalization behind it"
        return refusal.reason

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The Conv without its bias, and the BatchNormalization."""
        epsilon = block.nodes["norm"].attribute("epsilon", 1e-5) if "norm" in block.nodes else _EPSILON
        norm = NormLayer("norm", "conv", block.conv.out_channels, epsilon)
        return ConvLayer("conv", INPUT, replace(block.conv, bias=False)), norm

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """All but the mean; of a Mul and an Add none."""
        found = {("conv", "weight"): "weight"}
        if "norm" in block.nodes:
            names = {"scale": "gamma", "bias": "beta", "variance": "variance"}
            found |= {("norm", name): role for name, role in names.items()}
        return found

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The mean; of a Mul and an Add all four."""
        bias = values["bias"].reshape(-1)
        if "norm" in block.nodes:
            return [values["mean"] - bias]
        factor, term = (np.broadcast_to(values[part].reshape(-1), bias.shape) for part in ("factor", "term"))
        scale, shift, _, variance = plain_norm(factor, term, _EPSILON)
        return [scale, shift, -bias, variance]
