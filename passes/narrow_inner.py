"""narrow-inner: layers inside of blocks compute fewer channels.

What it does
    Of the channels of a Conv that are added to nothing, n stay, and with them go their entries of biases and
    BatchNormalization and what the next layers read. Layers are named by their number among such Convs, in the order of
    the graph, the first one 1: a bottleneck has two, so those of the fourth are 7 and 8 (paper 004, R10 to R15: 64 and
    128 channels in the first blocks of the second and third stage of ResNet-101, in place of 128 and 256).

Pattern
    Convs that are not reached straight from an input and whose outputs are added to nothing.

Initialisation
    As for narrow-stem.

When it refuses
    As many widths as layers must be given; a number that no layer has. A layer stays where it has no more channels, or
    where they reach an output, or an operator behind which they cannot be followed.

Settings
    layers: their numbers; widths: the channels of each, or one number for all.
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import NUMBERS, Group, OptionError, Setting, WidthMode, whole_numbers


class NarrowInner(WidthMode):
    """Fewer channels inside of blocks."""

    name = "narrow-inner"
    summary = "Convs inside of blocks, by their numbers, compute fewer channels; far from exact"
    settings = (
        Setting("layers", "1", "which, by number among Convs that are added to nothing", NUMBERS),
        Setting("widths", "64", "channels of each, or one number for all", NUMBERS),
    )

    def widths(self, groups: Sequence[Group]) -> Mapping[int, int]:
        """Those that were named."""
        inner = [number for number, group in enumerate(groups) if not group.added and not group.first]
        layers, widths = (whole_numbers(self.setting(name)) for name in ("layers", "widths"))
        if len(widths) == 1:
            widths = widths * len(layers)
        if len(widths) != len(layers):
            raise OptionError(f"mode {self.name}: {len(layers)} layers and {len(widths)} widths; give one for each")
        if max(layers) > len(inner):
            raise OptionError(f"mode {self.name}: there is no layer {max(layers)}; the model has {len(inner)} such")
        return {inner[layer - 1]: width for layer, width in zip(layers, widths, strict=True)}

    def why_not(self, group: Group) -> str:
        """It was not named."""
        return "its number is not among the layers that were given"
