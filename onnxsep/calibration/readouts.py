"""The last Convs of a block: those whose outputs are the block's own, but for where they stand and their size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.layers.block_layers import (
    ClipLayer,
    ConcatLayer,
    ElementwiseLayer,
    GateLayer,
    GlobalPoolLayer,
    NormLayer,
    ShuffleLayer,
)
from onnxsep.layers.layer import INPUT, AddLayer, ConvLayer, Layer, channels

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Readout:
    """A Conv behind which channels are moved, scaled and clipped, and no more.

    Attributes:
        layer: the Conv.
        outputs: of which channel of the block's output each of its own is.
        norm: the BatchNormalization behind it, and which of its channels each of its own is.
        gate: the layer that multiplies it by numbers for each channel, and which of them each of its own is.
        skip: the layer whose output is added, ``INPUT`` for the block's input; "" for none.
    """

    layer: ConvLayer
    outputs: Places
    norm: tuple[NormLayer, Places] | None = None
    gate: tuple[str, Places] | None = None
    skip: str = ""

    def taking(self, chosen: Places | slice) -> "Readout":
        """The same for some of the channels."""
        norm = None if self.norm is None else (self.norm[0], self.norm[1][chosen])
        gate = None if self.gate is None else (self.gate[0], self.gate[1][chosen])
        return replace(self, outputs=self.outputs[chosen], norm=norm, gate=gate)


def readouts(layers: Sequence[Layer], in_channels: int) -> list[Readout]:
    """The last Convs of a replacement in the order of its layers; none where it ends in something else."""
    return _Search(layers, in_channels).run()


class _Search:
    def __init__(self, layers: Sequence[Layer], in_channels: int) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._widths = channels(layers, in_channels)
        self._found: list[Readout] = []

    def run(self) -> list[Readout]:
        last = list(self._layers.values())[-1]
        every = np.arange(self._widths[last.name])
        self._walk(last.name, Readout(_NOTHING, every))
        order = list(self._layers)
        return sorted(self._found, key=lambda one: order.index(one.layer.name))

    def _walk(self, name: str, so_far: Readout) -> None:
        layer = self._layers.get(name)
        if isinstance(layer, ConvLayer):
            self._found.append(replace(so_far, layer=layer))
        elif isinstance(layer, AddLayer) and not so_far.skip and layer.inputs[0] != layer.inputs[1]:
            self._walk(layer.inputs[0], replace(so_far, skip=layer.inputs[1]))
        elif isinstance(layer, NormLayer) and so_far.norm is None:
            self._walk(layer.input, replace(so_far, norm=(layer, np.arange(layer.channels))))
        elif isinstance(layer, GateLayer) and so_far.gate is None and self._pools(layer.gate):
            self._walk(layer.input, replace(so_far, gate=(layer.gate, np.arange(self._widths[name]))))
        elif isinstance(layer, ShuffleLayer):
            before = np.argsort(layer.order(self._widths[name]))
            self._walk(layer.input, so_far.taking(before))
        elif isinstance(layer, ConcatLayer):
            begin = 0
            for source in layer.inputs:
                self._walk(source, so_far.taking(slice(begin, begin + self._widths[source])))
                begin += self._widths[source]
        elif isinstance(layer, ClipLayer) or (isinstance(layer, ElementwiseLayer) and layer.op_type == "Relu"):
            self._walk(layer.input, so_far)

    def _pools(self, name: str) -> bool:
        """Whether it has one number for each channel."""
        layer: Any = self._layers.get(name)
        while layer is not None and layer.name != INPUT:
            if isinstance(layer, GlobalPoolLayer):
                return True
            layer = self._layers.get(layer.sources[0])
        return False


_NOTHING: Any = None
