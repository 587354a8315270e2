"""grouped-pointwise: a 1 x 1 Conv in groups, with a channel shuffle behind it.

What it does
    Output c reads the inputs of one group alone: group c mod G behind the channel shuffle, or c G / O without it
    (X. Zhang et al. 2018; paper 004, its GPW, G = 4). I O / G parameters in place of I O; the bias stays.

Pattern
    A 1 x 1 Conv. What stands behind it works channel by channel or not, and stays: the shuffle comes right behind the
    Conv and gives the outputs in their old order. (The paper shuffles behind BatchNormalization and Relu, which is the
    same with their numbers in another order.)

Initialisation
    The old weights without those between groups: the least error of the weights that the form allows, so that of the
    outputs for inputs that are white noise. With data: least squares for each group, on what the block reads and the
    original gives, held near that start. Exact where the weights between groups are 0.

When it pays
    Wherever it applies. It is far from exact where several groups carry the same information: fine-tune the result.

When it refuses
    Kernels above 1; groups already; numbers of channels that G does not divide; inputs that are no more than ``above``.

Settings
    groups: G, 0 for the greatest common divisor of inputs and outputs; shuffle: true or false; above.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    SHUFFLE_OPSET,
    Array,
    Block,
    BlockMode,
    Const,
    Conv,
    ConvLayer,
    Layer,
    Op,
    Pattern,
    Setting,
    ShuffleLayer,
    Value,
)


class GroupedPointwise(BlockMode):
    """A 1 x 1 Conv in groups."""

    name = "grouped-pointwise"
    summary = "a 1 x 1 Conv in groups, and a channel shuffle; far from exact"
    pattern = Pattern("1 x 1 Conv", Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True)))
    anchor = "conv"
    exact = False
    saves = True
    fits = "least-squares"
    untrained = "new blocks start from a part of the old weights: the network needs training"
    settings = (
        Setting(
            "groups",
            4,
            "groups of channels; 0: as many as divide inputs and outputs",
            (lambda groups: groups == 0 or groups >= 2, "0, or 2 or more"),
        ),
        Setting("shuffle", True, "whether the channels of the groups are mixed behind it"),
        Setting("above", 24, "Convs with no more inputs stay", (lambda least: least >= 0, "0 or more")),
    )
    tries = ({"groups": 2}, {}, {"groups": 8})

    def accepts(self, block: Block) -> str | None:
        """Refuse what cannot be grouped, or is too small for it."""
        conv, groups = block.conv, self._groups(block.conv)
        if max(conv.kernel_shape) > 1:
            return f"its kernel is {' x '.join(map(str, conv.kernel_shape))}, not 1 x 1"
        if conv.group > 1:
            return f"it has {conv.group} groups already"
        if conv.in_channels <= self.setting("above"):
            return f"its {conv.in_channels} inputs are no more than {self.setting('above')} (setting above)"
        if conv.in_channels % groups or conv.out_channels % groups:
            return f"{groups} groups do not divide its {conv.in_channels} inputs and {conv.out_channels} outputs"
        if self.setting("shuffle") and block.opset < SHUFFLE_OPSET:
            return f"operator set {block.opset}: only from {SHUFFLE_OPSET} on does it hold what a channel shuffle needs"
        if groups == 1:
            return f"nothing divides its {conv.in_channels} inputs and {conv.out_channels} outputs"
        return None

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The Conv in groups; the shuffle."""
        groups = self._groups(block.conv)
        grouped = ConvLayer("grouped", INPUT, replace(block.conv, group=groups))
        return (grouped, ShuffleLayer("shuffle", "grouped", groups)) if self.setting("shuffle") else (grouped,)

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """What stays of the old weights, and the bias, in the order before the shuffle."""
        conv, groups = block.conv, self._groups(block.conv)
        order = np.arange(conv.out_channels)
        if self.setting("shuffle"):  # where an output stands before the shuffle
            order = order.reshape(-1, groups).T.reshape(-1)
        weight, each = values["weight"][order], conv.in_channels // groups
        parts = weight.reshape(groups, -1, groups, each, *conv.kernel_shape)
        kept = parts[np.arange(groups), :, np.arange(groups)].reshape(conv.out_channels, each, *conv.kernel_shape)
        return [kept, values["bias"].reshape(-1)[order]] if conv.bias else [kept]

    def _groups(self, conv: Conv) -> int:
        return int(self.setting("groups")) or math.gcd(conv.in_channels, conv.out_channels)
