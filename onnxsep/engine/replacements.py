"""What takes the place of a match: the plan for one Conv, or for several nodes."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

from onnxsep.engine.matches import BlockMatch, ConvSite
from onnxsep.graph.places import Constant
from onnxsep.layers.layer import Layer, macs, parameters
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Mode, factor_shapes
from onnxsep.modes.block import BlockMode

_Match = TypeVar("_Match", ConvSite, BlockMatch)
_Mode = TypeVar("_Mode", Mode, BlockMode)


@dataclass(frozen=True)
class _Planned(Generic[_Match, _Mode]):
    """The plan for one match that will be replaced."""

    site: _Match
    mode: _Mode
    rank: Rank
    layers: tuple[Layer, ...]
    exact: bool  # at full rank, so that the result must equal the original
    notes: tuple[str, ...] = ()
    new_bias: bool = False  # the bias is fitted too, and not the source's own tensor
    init: str = "svd"  # how its factors are found

    @property
    def parameters(self) -> int:
        """Parameters of the replacement, weights and bias."""
        return parameters(self.layers)

    @property
    def macs(self) -> int | None:
        """MACs of the replacement; None where the input's size is not known."""
        size = self.site.input_size
        return None if size is None else (self.site.batch or 1) * macs(self.layers, size)


class ConvReplacement(_Planned[ConvSite, Mode]):
    """The plan for one Conv that will be replaced."""

    @property
    def in_channels(self) -> int:
        """Channels of what the layers read."""
        return self.site.in_channels

    @property
    def tensors(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(layer, name in it, shape) of each tensor that is computed: weights, for the bias is the source's own."""
        return [(layer.name, name, shape) for layer in self.layers for name, shape in layer.tensors if name == "weight"]

    @property
    def replaced(self) -> tuple[Constant, ...]:
        """The constants that it does without."""
        bias = (self.site.bias,) if self.new_bias and self.site.bias else ()
        return (self.site.weight, *bias)

    @property
    def key(self) -> Hashable:
        """What the factors depend on: replacements with equal keys have the same factors and share them."""
        shapes = tuple(factor_shapes(self.layers))
        site, mode = self.site, self.mode
        return (site.weight, site.transposed, site.conv.group, mode.name, *mode.given.items(), self.rank, shapes)


class BlockReplacement(_Planned[BlockMatch, BlockMode]):
    """The plan for several nodes that will be replaced together."""

    @property
    def parameters(self) -> int:
        """Parameters of what stands there then."""
        return super().parameters + (self.site.parameters if self.mode.appends else 0)

    @property
    def macs(self) -> int | None:
        """MACs of what stands there then; None where sizes are not known."""
        if not self.mode.appends:
            return super().macs
        before, size = self.site.macs, self.site.output_size
        return None if before is None or size is None else before + (self.site.batch or 1) * macs(self.layers, size)

    @property
    def in_channels(self) -> int:
        """Channels of what the layers read."""
        return self.site.conv.out_channels if self.mode.appends else self.site.in_channels

    @property
    def tensors(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(layer, name in it, shape) of each tensor that is computed: all but those that stay the source's own."""
        every = ((layer.name, name, shape) for layer in self.layers for name, shape in layer.tensors)
        return [(layer, name, shape) for layer, name, shape in every if (layer, name) not in self.kept]

    @cached_property
    def kept(self) -> dict[tuple[str, str], Constant]:
        """The tensors that stay the source's own, by layer and name in it."""
        return {tensor: self.site.constants[role] for tensor, role in self.mode.kept(self.site.block).items()}

    def keeps(self, constant: Constant) -> bool:
        """Whether a constant stays."""
        return self.mode.appends or constant in self.kept.values()

    @property
    def replaced(self) -> tuple[Constant, ...]:
        """The constants that it does without."""
        return tuple(constant for constant in self.site.constants.values() if not self.keeps(constant))

    @property
    def key(self) -> Hashable:
        """What the tensors depend on: constants, attributes and geometry."""
        block = self.site.block
        nodes = tuple((role, replace(node, dims=None)) for role, node in block.nodes.items())
        mode = (self.mode.name, *self.mode.given.items())
        return (mode, tuple(self.site.constants.items()), block.conv, nodes)


Replacement = ConvReplacement | BlockReplacement
"""What is planned for one match."""
