"""narrow-stem: the first Conv computes fewer channels.

What it does
    Of the channels that the first Conv computes n stay, and with them go their entries of biases and
    BatchNormalization, what later layers read of them, and channels that are added to them: ResNets without a
    projection in their first stage have a whole stage of such. Of a k x k stem with 3 inputs and C outputs
    (C - n) 3 k^2 weights go, of each Conv behind it with O outputs (C - n) O (paper 004: 64 -> 10 in R9, 64 -> 16 in
    R11).

Pattern
    Every Conv that is reached straight from an input, with what follows it channel by channel: BatchNormalization,
    activations, pooling, residual Adds, Flatten, depthwise Convs.

Initialisation
    Those channels stay whose filters have the largest Euclidean norms, each times what a BatchNormalization behind it
    multiplies it by (H. Li et al. 2017). What stays keeps its weights.

When it refuses
    The stem has n channels or fewer; its channels reach an output, or an operator behind which they cannot be followed;
    n is below 1.

Settings
    channels: n.
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import Group, Setting, WidthMode


class NarrowStem(WidthMode):
    """Fewer channels of the first Conv."""

    name = "narrow-stem"
    summary = "the first Conv computes fewer channels, and what follows it has as many; far from exact"
    settings = (Setting("channels", 16, "channels that stay", (lambda count: count >= 1, "1 or more")),)

    def widths(self, groups: Sequence[Group]) -> Mapping[int, int]:
        """The groups with a first Conv."""
        return {number: self.setting("channels") for number, group in enumerate(groups) if group.first}

    def why_not(self, group: Group) -> str:
        """Only first Convs are stems."""
        return "not reached straight from an input"
