"""narrow-stages: the residual streams of a network, one for each stage, get other widths.

What it does
    Convs whose outputs are added up make a stream of channels. Of the channels of the i-th stream, in the order of the
    graph, n_i stay, and with them go the filters, biases and entries of BatchNormalization of all Convs that add to it,
    and what is read of it: by the blocks behind, by the projection to the next stage, by the classifier. Widths inside
    of blocks stay as they are (paper 004, R6 to R15: 10, 22, 42 and 86 of 256, 512, 1024 and 2048, so that bottlenecks
    become inverted ones).

Pattern
    Groups of two Convs or more whose outputs are added up, directly or along a chain of Adds (a ResNet's stages).

Initialisation
    As for narrow-stem, norms added up over the Convs that make a channel.

When it refuses
    As many widths as there are streams must be given, or one for all. A stream stays where it has no more channels, or
    where its channels reach an output, or an operator behind which they cannot be followed.

Settings
    widths: n_1,n_2,...
"""

from collections.abc import Mapping, Sequence

from onnxsep.modes import NUMBERS, Group, OptionError, Setting, WidthMode, whole_numbers


class NarrowStages(WidthMode):
    """Other widths of residual streams."""

    name = "narrow-stages"
    summary = "the residual stream of each stage gets fewer channels, as in inverted bottlenecks; far from exact"
    settings = (Setting("widths", "10,22,42,86", "channels of each stage, in order", NUMBERS),)

    def widths(self, groups: Sequence[Group]) -> Mapping[int, int]:
        """One for each stream."""
        streams = [number for number, group in enumerate(groups) if group.added]
        wanted = whole_numbers(self.setting("widths"))
        if len(wanted) == 1:
            wanted = wanted * len(streams)
        if len(wanted) != len(streams):
            found = ", ".join(f"{groups[number].channels} from {groups[number].names[0]!r} on" for number in streams)
            raise OptionError(
                f"mode {self.name}: widths has {len(wanted)} numbers, and the model has {len(streams)} groups of Convs"
                f" whose outputs are added up{f' ({found})' if found else ''}; give one for each"
            )
        return dict(zip(streams, wanted, strict=True))

    def why_not(self, group: Group) -> str:
        """Only streams are stages."""
        return "its outputs are not added to those of other Convs"
