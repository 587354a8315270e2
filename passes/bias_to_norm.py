"""bias-to-norm: the bias of a Conv goes into the mean of the BatchNormalization behind it.

What it does
    gamma (y + b - mean) / s + beta = gamma (y - (mean - b)) / s + beta, so mean' = mean - b, in double precision: exact
    but for the rounding of mean' to the type of the weights. The Conv keeps its weight tensor and loses its bias.

Pattern
    A Conv with a bias, then BatchNormalization (inference, statistics constant).

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

from onnxsep.modes import (
    INPUT,
    STATISTICS,
    Array,
    Block,
    BlockMode,
    Const,
    ConvLayer,
    Layer,
    NormLayer,
    Op,
    Pattern,
    Refusal,
    Value,
    norm_refused,
)


class BiasToNorm(BlockMode):
    """Conv with a bias, and BatchNormalization."""

    name = "bias-to-norm"
    summary = "the bias of a Conv before BatchNormalization goes into its mean; exact"
    pattern = Pattern(
        "Conv with a bias before BatchNormalization",
        Op(
            "norm",
            "BatchNormalization",
            Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True)),
            *map(Const, STATISTICS),
        ),
    )
    anchor = "conv"
    exact = True
    finished = False

    def accepts(self, block: Block) -> str | None:
        """Refuse what is not the same for all positions and inputs."""
        return norm_refused(block.nodes["norm"]) if block.conv.bias else "it has no bias"

    def why_not(self, refusal: Refusal | None) -> str:
        """Without BatchNormalization nothing comes close."""
        if refusal is None or "norm" not in refusal.nodes:
            return "no BatchNormalization behind it"
        return refusal.reason

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The Conv without its bias, and the BatchNormalization."""
        norm = NormLayer("norm", "conv", block.conv.out_channels, block.nodes["norm"].attribute("epsilon", 1e-5))
        return ConvLayer("conv", INPUT, replace(block.conv, bias=False)), norm

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """All but the mean."""
        return {
            ("conv", "weight"): "weight",
            ("norm", "scale"): "gamma",
            ("norm", "bias"): "beta",
            ("norm", "variance"): "variance",
        }

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The mean."""
        return [values["mean"] - values["bias"].reshape(-1)]
