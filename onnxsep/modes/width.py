"""What a width mode is: how many channels layers keep, where others have to follow.

A block mode keeps the ends of what it replaces. A width mode changes them: channels leave the layers that compute them,
and with them all that goes with them (biases, BatchNormalization, what reads them, what is added to them). The engine
follows them (``onnxsep.engine.following``), chooses those that stay and names every layer that changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxsep.layers.conv import Conv
from onnxsep.modes.settings import Adjustable


@dataclass(frozen=True)
class Group:
    """Convs whose output channels stand or fall together, such as those whose outputs are added up.

    Attributes:
        convs: their geometries, in graph order; depthwise Convs are none of them, for they make no channels.
        names: their names.
        channels: how many.
        first: whether one of them is reached straight from an input.
        added: whether several of them make the same channels: a residual stream.
        stays: why they cannot be narrower; "" where they can.
    """

    convs: tuple[Conv, ...]
    names: tuple[str, ...]
    channels: int
    first: bool
    added: bool
    stays: str = ""


class WidthMode(Adjustable, ABC):
    """How many channels groups of Convs keep."""

    name: ClassVar[str]
    """What the user writes after ``--mode``."""
    summary: ClassVar[str]
    """One line for ``--help`` and for the list of modes."""
    untrained: ClassVar[str] = "channels are gone and nothing makes up for them: the network needs training"
    """What is told of the result."""

    @abstractmethod
    def widths(self, groups: Sequence[Group]) -> Mapping[int, int]:
        """How many channels groups keep, by their position in ``groups``; those that are not named keep all.

        Raises:
            OptionError: what was asked for does not fit these groups.
        """

    def why_not(self, group: Group) -> str:
        """Why a group that ``widths`` does not name is left alone."""
        return f"mode {self.name} is not for its channels"
