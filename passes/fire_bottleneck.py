"""fire-bottleneck: a residual block as a Fire module with a skip.

What it does
    s = relu(A x), 1 x 1 to q channels; half of the outputs are relu(B s), 1 x 1, the others relu(C * s), k x k; joined
    and added to the skip (F. Iandola et al. 2016, SqueezeNet with bypasses; paper 004, R2). Biases, and no
    BatchNormalization: q (I + 1) + (O / 2)(q + 1) + (O / 2)(k^2 q + 1) parameters. More than a bottleneck has, where q
    is what it has inside, as in the paper.

Pattern
    A bottleneck or a basic block with its skip, as for inverted-bottleneck; the skip stays as it is, and the activation
    of the sum too, unless ``end=none``.

Initialisation
    Drawn (``modes.residual``) from a fixed seed, normal with the variance 2 / inputs.
    With data: block by block along the network; A is scaled to what the block reads, B and C by least squares on the
    original's output (``calibration.least_squares``).

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: train the result.

When it refuses
    What is no such block; one output; strides at several of its Convs; pads that do not keep the sizes.

Settings
    squeeze: q as a share of the outputs, 0 for what the first Conv of a bottleneck gives and an eighth of the outputs
    in a basic block; skip_bias: whether the Conv of the skip is given a bias, as in the paper; end.
"""

from collections.abc import Sequence
from dataclasses import replace

from onnxsep.modes import (
    INPUT,
    Block,
    ConcatLayer,
    Layer,
    Residual,
    ResidualMode,
    Setting,
    normed,
    pointwise,
)

_OF_BASIC_BLOCKS = 1 / 8


class FireBottleneck(ResidualMode):
    """Squeeze, two kinds of expanding Convs, skip."""

    name = "fire-bottleneck"
    summary = "a residual block as a Fire module with a skip; needs data or training"
    ending = (("expand1", 0.5), ("expand3", 0.5))  # behind Relu
    settings = (
        Setting(
            "squeeze",
            0.0,
            "channels in between as a share of the outputs; 0: as a bottleneck has them, 1/8 in a basic block",
            (lambda share: 0 <= share < 1, "0 or more and below 1"),
        ),
        Setting("skip_bias", False, "whether the Conv of the skip is given a bias"),
        ResidualMode.END,
    )
    tries = ({}, {"squeeze": 0.25}, {"squeeze": 0.5})

    def accepts(self, block: Block) -> str | None:
        """Refuse one output too."""
        residual = Residual(block)
        if refused := residual.refused():
            return refused
        if not residual.spatial.keeps_sizes:
            return "its pads are not those that a 1 x 1 Conv beside its k x k Conv needs"
        return "it has one output channel" if residual.outputs < 2 else None

    def skip_bias(self) -> bool:
        """As asked for."""
        return bool(self.setting("skip_bias"))

    def branch(self, block: Block) -> Sequence[Layer]:
        """Squeeze; both expands; joined."""
        residual, share, dims = Residual(block), self.setting("squeeze"), block.conv.dims
        outputs = residual.outputs
        few = residual.inner if not share and residual.is_bottleneck else round(outputs * (share or _OF_BASIC_BLOCKS))
        few, first = max(1, few), outputs // 2
        one = replace(pointwise(dims, few, first, bias=True), strides=residual.strides)
        wide = replace(residual.spatial, in_channels=few, out_channels=outputs - first, group=1, bias=True)
        return [
            *normed("squeeze", INPUT, pointwise(dims, residual.inputs, few, bias=True), "relu", norm=False),
            *normed("expand1", "squeeze_act", one, "relu", norm=False),
            *normed("expand3", "squeeze_act", wide, "relu", norm=False),
            ConcatLayer("fire", ("expand1_act", "expand3_act"), channels=outputs),
        ]
