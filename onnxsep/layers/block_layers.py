"""Layers that the replacements of block modes are made of, beside Convs and sums."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxsep.layers.layer import Layer


@dataclass(frozen=True)
class _Unary(Layer):
    input: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Its input."""
        return (self.input,)


@dataclass(frozen=True)
class NormLayer(_Unary):
    """A BatchNormalization that normalises by constant statistics."""

    channels: int
    epsilon: float = 1e-5

    @property
    def tensors(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Gamma, beta, mean and variance, in ONNX's order."""
        return tuple((name, (self.channels,)) for name in ("scale", "bias", "mean", "variance"))


@dataclass(frozen=True)
class ElementwiseLayer(_Unary):
    """An operator of one tensor, element by element, with attributes alone: Relu, Sigmoid, LeakyRelu, ..."""

    op_type: str
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class GlobalPoolLayer(_Unary):
    """The mean of each channel over all positions: [N, C, 1, ...]."""

    @property
    def is_global(self) -> bool:
        """Always."""
        return True

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """One position."""
        return (1,) * len(size)


@dataclass(frozen=True)
class FlattenLayer(_Unary):
    """[N, C, 1, ...] as [N, C], behind a ``GlobalPoolLayer``."""

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """No spatial dimensions."""
        return ()


@dataclass(frozen=True)
class GateLayer(Layer):
    """The product of a tensor with numbers for each of its channels, [N, C, 1, ...]."""

    input: str
    gate: str

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensor, then the numbers."""
        return self.input, self.gate


@dataclass(frozen=True)
class ConcatLayer(Layer):
    """Earlier layers of the same sizes beside one another, along the channels."""

    inputs: tuple[str, ...]
    channels: int = field(kw_only=True)

    @property
    def sources(self) -> tuple[str, ...]:
        """What stands beside one another, in order."""
        return self.inputs

    def output_channels(self, channels: int) -> int:
        """All of them."""
        return self.channels
