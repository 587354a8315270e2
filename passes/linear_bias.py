"""linear-bias: the bias of a linear layer goes.

What it does
    W x + b becomes W x (paper 004: the classifiers of R10 and R15 have no bias). K numbers less.

Pattern
    A Gemm with a bias, or MatMul and an Add of a constant.

Initialisation
    The weight stays the source's own. What b said is lost, unless all its numbers are equal and only the order of the
    outputs counts.

When it pays
    It saves next to nothing; it is there for networks that have none.

When it refuses
    A bias that is not one number for each output; alpha, beta or transA of a Gemm; operator sets below 11, whose Gemm
    has a bias always, where it is a Gemm.
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    Const,
    Conv,
    ConvLayer,
    Either,
    Layer,
    Op,
    Pattern,
    Refusal,
    Value,
    not_linear,
    outputs_of,
)

_LEAST_OPSET = 11


class LinearBias(BlockMode):
    """A linear layer without its bias."""

    name = "linear-bias"
    summary = "the bias of a linear layer (Gemm, or MatMul and Add) goes; not exact"
    pattern = Pattern(
        "linear layer with a bias",
        Either(
            Op("fc_1", "Gemm", Value("x"), Const("weight_1"), Const("bias_1")),
            Op("add_1", "Add", Const("bias_1"), Op("fc_1", "MatMul", Value("x"), Const("weight_1"))),
        ),
    )
    anchor = "fc_1"
    exact = False
    linear_layers = True
    finished = False
    untrained = "what a bias said is lost: the network needs training"

    def accepts(self, block: Block) -> str | None:
        """Refuse what is not W x + b."""
        if block.nodes["fc_1"].op_type == "Gemm" and block.opset < _LEAST_OPSET:
            return f"operator set {block.opset}: only from {_LEAST_OPSET} on may a Gemm have no bias"
        return not_linear(block, [1])

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what it looks for."""
        return "it is no linear layer with a bias" if refusal is None else refusal.reason

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The same layer without its bias."""
        return (ConvLayer("linear", INPUT, Conv(block.conv.in_channels, outputs_of(block, 1), (), (), (), ())),)

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """The weight."""
        return {("linear", "weight"): "weight_1"}

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """None."""
        return []
