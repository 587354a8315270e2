"""drop-block: a residual block goes, so that its input takes the place of its output.

What it does
    act(x + F(x)) becomes x (paper 004, R11, drops the 33rd block of ResNet-101; G. Huang et al. 2016 and A. Veit et al.
    2016 on why residual networks stand that).

Pattern
    A bottleneck or a basic block whose skip is its input, with the activation of the sum where there is one. By default
    the last one: what it computes is read by the mean over all positions alone.

Initialisation
    Nothing is new. An Identity stands in the place of the block, so that no other node changes.

When it pays
    Always; it is far from exact: fine-tune the result.

When it refuses
    Blocks whose skip is a Conv, for then the sizes or channels change.

Settings
    which: last (before the mean over all positions) or all, of those that ``--only`` names.
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    ElementwiseLayer,
    Layer,
    Refusal,
    Setting,
    closed_block_pattern,
)


class DropBlock(BlockMode):
    """A residual block less."""

    name = "drop-block"
    summary = "the last residual block goes (or others), its input takes its place; far from exact"
    pattern = closed_block_pattern(last=True)
    anchor = "conv_1"
    exact = False
    finished = False
    untrained = "blocks are gone and nothing makes up for them: the network needs training"
    settings = (
        Setting("which", "last", "the last block before the mean over all positions, or all", choices=("last", "all")),
    )

    def with_settings(self, given: Mapping[str, object] | None) -> "DropBlock":
        """Every block, where it is not the last one that is wanted."""
        changed = super().with_settings(given)
        if changed.setting("which") == "all":
            changed.pattern = closed_block_pattern(last=False)
        return changed

    def accepts(self, block: Block) -> str | None:
        """Refuse blocks that change sizes or channels."""
        return "its skip is a Conv, so what it gives cannot be what it reads" if "conv_skip" in block.convs else None

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what it looks for, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "no residual block here: two or three Convs with activations between them, and a skip that is added"
        return f"no residual block to drop: {refusal.reason}"

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """What comes in goes out."""
        return (ElementwiseLayer("dropped", INPUT, "Identity"),)

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """None."""
        return []
