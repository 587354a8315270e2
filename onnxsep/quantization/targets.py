"""Which layers get another bias when the means of their outputs are corrected, and where those means are measured.

Not every layer needs a bias for that. What a layer without one feeds into another layer, or adds to the output of
another, is a shift of that one's output, and is corrected there: so it is with the factors that ``rewrite`` makes. Only
where such a layer feeds something else, an activation for example, it gets a bias.
"""

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match, Op, Pattern, Value
from onnxsep.graph.places import Place

_CONVS = ("Conv", "ConvTranspose")
_LAYERS = (*_CONVS, "Gemm")
_SUM = Pattern("sum of layers", Op("sum", ("Add", "Sum"), Value("seen"), Op("term", _LAYERS, rest=True)))


@dataclass(frozen=True)
class Target:
    """A layer whose bias is corrected.

    Attributes:
        name: Of the node.
        seen: Name of the node whose output is compared: the layer, or the last Add of terms that sum to its output.
        bias: Name of its bias, "" where it has none yet.
        channels: Length of its bias.
        spatial: Whether the output has spatial axes, [batch, channels, ...], to take the mean over.
    """

    name: str
    seen: str
    bias: str
    channels: int
    spatial: bool


def find_targets(prepared: onnx.ModelProto, quantized: Collection[str]) -> tuple[list[Target], list[str]]:
    """The layers whose biases are corrected, in the order in which that must be done.

    Args:
        prepared: The float model; every node has a name.
        quantized: Names of nodes that are quantised.

    Returns:
        The targets, and the names of layers that cannot be corrected: their bias is not a constant of their own.
    """
    return _Search(prepared, quantized).run()


class _Search:
    def __init__(self, prepared: onnx.ModelProto, quantized: Collection[str]) -> None:
        graph = prepared.graph
        self._nodes = list(graph.node)
        self._place = {node.name: place for place, node in enumerate(graph.node)}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._index = Index(prepared)
        self._layers = {
            node.name: node
            for node in graph.node
            if node.name in quantized and node.op_type in _LAYERS and node.input[1] in self._tensors
        }
        self._bare = [name for name, node in self._layers.items() if len(node.input) < 3 or not node.input[2]]
        self._covered: set[str] = set()

    def run(self) -> tuple[list[Target], list[str]]:
        targets, left = [], []
        for name, node in self._layers.items():
            if name not in self._bare:
                if self._usable(node):
                    targets.append(self._target(node, node.input[2]))
                else:
                    left.append(name)
        for name in self._bare:
            node = self._layers[name]
            if name not in self._covered and not self._only_feeds_layers(node):
                targets.append(self._target(node, ""))
        targets.sort(key=lambda target: self._place[target.seen])
        return targets, left

    def _usable(self, node: onnx.NodeProto) -> bool:
        bias = self._tensors.get(node.input[2])
        beta = next((entry.f for entry in node.attribute if entry.name == "beta"), 1.0)
        return (
            bias is not None
            and bias.data_type == onnx.TensorProto.FLOAT
            and list(bias.dims) == [self._channels(node)]
            and len(self._index.uses(bias.name)) == 1
            and not self._index.is_output(bias.name)
            and beta == 1.0
        )

    def _channels(self, node: onnx.NodeProto) -> int:
        dims = self._tensors[node.input[1]].dims
        attributes = {entry.name: entry.i for entry in node.attribute}
        if node.op_type == "ConvTranspose":
            return int(dims[1] * attributes.get("group", 1))
        if node.op_type == "Gemm":
            return int(dims[0] if attributes.get("transB") else dims[1])
        return int(dims[0])

    def _target(self, node: onnx.NodeProto, bias: str) -> Target:
        """Follow the sum that the layer is a term of, as long as the other terms are layers without a bias."""
        seen = node
        while (reader := self._only_reader(seen.output[0])) is not None:
            match = _SUM.at(self._index, reader, seen=seen.output[0])
            term = self._index.node(match.nodes["term"]) if isinstance(match, Match) else node
            if term.name not in self._bare or term.name in self._covered or term is node:
                break
            if self._channels(term) != self._channels(node):
                break
            self._covered.add(term.name)
            seen = self._index.node(reader)
        return Target(node.name, seen.name, bias, self._channels(node), node.op_type in _CONVS)

    def _only_reader(self, name: str) -> Place | None:
        """The one node that uses a tensor; None where there are none or more, or it is an output."""
        readers = self._index.readers(name)
        return readers[0] if len(readers) == 1 and not self._index.is_output(name) else None

    def _only_feeds_layers(self, node: onnx.NodeProto) -> bool:
        name = node.output[0]
        readers = [self._index.node(place) for place in self._index.readers(name)]
        return (
            bool(readers)
            and not self._index.is_output(name)
            and all(reader.name in self._layers and reader.input[0] == name for reader in readers)
        )
