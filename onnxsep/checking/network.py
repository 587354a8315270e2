"""A model's main graph as values that two models can have in common, whatever they store them in.

A quantised model holds an activation several times: as floats, as the integers that QuantizeLinear makes of them, and
as the floats that DequantizeLinear gives back; or as integers alone, where an operator computes in them. All of these
are one :class:`Value`. A node that computes something is the head of a :class:`Stem`: what stands behind it alone and
that other tools fold into it, which is a BatchNormalization, arithmetic with constants, and a Relu or Clip.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import onnx

from onnxsep.graph.marks import SOURCE, Marks
from onnxsep.graph.scopes import constant_value, display_name, reads
from onnxsep.model.io import Model

LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul"})  # classes; a Gemm is a MatMul
ACTIVATIONS = frozenset({"Relu", "Clip"})  # which quantisers fold into the range of what is before
_AFFINE = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div"})
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SAME_VALUE = frozenset({_QUANTIZE, _DEQUANTIZE, "Identity"})
_CLASSES = {"Gemm": "MatMul", "QGemm": "MatMul", "FusedConv": "Conv", "FusedGemm": "MatMul", "FusedMatMul": "MatMul"}
_TELLING = frozenset({"strides", "dilations", "group", "kernel_shape"})
DEPTH = 8  # stems that are looked at behind one, to tell it from others
# Places of the output's scale and zero point among the inputs of ONNX Runtime's operators on integers.
_OUTPUT_SCALE = {
    "QLinearConv": (6, 7),
    "QLinearConvTranspose": (6, 7),
    "QLinearMatMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QLinearAveragePool": (3, 4),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearSigmoid": (3, 4),
    "QLinearSoftmax": (3, 4),
    "QLinearReduceMean": (3, 4),
    "QLinearConcat": (0, 1),
    "QLinearWhere": (7, 8),
}
_WEIGHT = {"QLinearConv": 3, "QLinearConvTranspose": 3, "QLinearMatMul": 3, "QGemm": 3}
# Operators that move integers and leave their scale as it is.
_MOVING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Gather"})
_MOVING |= {"Resize", "Split", "DepthToSpace", "SpaceToDepth", "Expand", "Tile"}


@dataclass
class Value:
    """One activation.

    Attributes:
        name: The tensor that its node computes, or the graph input.
        node: Place of that node in the graph; None for a graph input.
        is_integer: Whether that tensor holds integers that stand for real numbers.
        integers: A tensor of such integers, and the names of its scale and zero point ("" for none), where there is
            one.
        aliases: Every tensor that holds the activation.
        dequantized: A tensor of floats that DequantizeLinear gives back, where there is one.
        readers: Places of the nodes that read it; QuantizeLinear and the like are none of them.
        is_output: Whether the graph gives it out.
    """

    name: str
    node: int | None
    is_integer: bool = False
    integers: tuple[str, str, str] | None = None
    aliases: list[str] = field(default_factory=list)
    dequantized: str | None = None
    readers: list[int] = field(default_factory=list)
    is_output: bool = False

    @property
    def quantized(self) -> bool:
        """Whether it is rounded to integers somewhere."""
        return self.integers is not None or self.dequantized is not None


@dataclass
class Stem:
    """A node and what may be folded into it.

    Attributes:
        head: Place of the node.
        kind: Its operator, the same for one on integers: QLinearConv is a Conv.
        outputs: All outputs of the node; None for those that are left out.
        affine: What BatchNormalization and constants make of the first output, one after another.
        activation: What a Relu or Clip makes of that.
    """

    head: int
    kind: str
    outputs: list[Value | None]
    affine: list[Value] = field(default_factory=list)
    activation: Value | None = None

    @property
    def values(self) -> list[Value]:
        """All of them, in order."""
        last = [] if self.activation is None else [self.activation]
        return [*(value for value in self.outputs if value is not None), *self.affine, *last]


class Network:
    """The values and stems of a model's main graph.

    Args:
        model: The model, whose functions should be inlined. Its weights are not read.

    Attributes:
        model: The model.
        nodes: The nodes of the main graph, each behind those that it reads.
        sources: For each node the name of the one in whose place onnxsep has put it, "" for others.
        values: By the name of any tensor that holds them; constants, and what is made of them alone, are not there.
        stems: In the order of the nodes.
        stem_of: By the place of any node of a stem.
        skipped: How many tensors are computed within nested graphs.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        graph = model.proto.graph
        self.nodes = _sorted(graph)
        marks = Marks(model.proto)
        self.sources = [marks.of(0, node).get(SOURCE, "") for node in self.nodes]
        self.values: dict[str, Value] = {}
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for entry in graph.input:
            if entry.name not in self._dims:
                self.values[entry.name] = Value(entry.name, None, aliases=[entry.name])
        for index, node in enumerate(self.nodes):
            self._add(index, node)
        for entry in graph.output:
            if entry.name in self.values:
                self.values[entry.name].is_output = True
        self._behind: dict[tuple[int, int], int] = {}
        self.stems: list[Stem] = []
        self.stem_of: dict[int, Stem] = {}
        for index, node in enumerate(self.nodes):
            if index not in self.stem_of and node.op_type not in _SAME_VALUE and self._outputs(node):
                self._add_stem(index, node)
        self.skipped = sum(
            len([name for node in nested.node for name in node.output if name])
            for node in self.nodes
            for nested in _nested(node)
        )

    def reads(self, index: int) -> list[Value]:
        """The values that a node reads, in order; those that its nested graphs capture included."""
        found = (self.values.get(name) for name in reads(self.nodes[index]))
        return [value for value in found if value is not None]

    def kind(self, index: int) -> str:
        """The operator of a node, the same for its form on integers."""
        op_type = self.nodes[index].op_type
        plain = op_type.removeprefix("QLinear")
        return _CLASSES.get(op_type, _CLASSES.get(plain, plain))

    def name(self, index: int) -> str:
        """What a node is called in reports."""
        return display_name(self.nodes[index])

    def key(self, stem: Stem) -> tuple[Hashable, ...]:
        """What two stems must have in common to be the same one: the kind, sizes of a weight, strides and the like."""
        told = []
        dims = self._weight_dims(stem.head) if stem.kind in LAYERS else ()
        for entry in self.nodes[stem.head].attribute:
            values = (*entry.ints, *([entry.i] if entry.i else []))
            if entry.name in _TELLING and set(values) - {1} and not (dims and entry.name == "kernel_shape"):
                told.append((entry.name, values))
        return stem.kind, dims, *sorted(told)

    def behind(self, stem: Stem, depth: int) -> int:
        """A number that tells how the network goes on behind a stem, some stems far."""
        if (found := self._behind.get((stem.head, depth))) is None:
            readers = {index for value in stem.values for index in value.readers} if depth else set()
            stems = [self.stem_of.get(index) for index in readers]
            following = {other.head: other for other in stems if other is not None and other is not stem}
            numbers = sorted(self.behind(other, depth - 1) for other in following.values())
            found = self._behind[stem.head, depth] = hash((self.key(stem), tuple(numbers)))
        return found

    def _weight_dims(self, index: int) -> tuple[int, ...]:
        """Sizes of a layer's constant weight in ascending order, as layouts differ; empty where it has none."""
        node = self.nodes[index]
        place = _WEIGHT.get(node.op_type, 1)
        return tuple(sorted(self._dims.get(node.input[place], ()))) if len(node.input) > place else ()

    @property
    def quantize_nodes(self) -> int:
        """How many nodes compute in integers or convert to them."""
        return sum(node.op_type in (_QUANTIZE, _DEQUANTIZE) or "QLinear" in node.op_type for node in self.nodes)

    def _outputs(self, node: onnx.NodeProto) -> list[Value]:
        return [self.values[name] for name in node.output if name in self.values]

    def _add(self, index: int, node: onnx.NodeProto) -> None:
        """Give the node's outputs their values."""
        known = [name for name in reads(node) if name in self.values]
        if not known:
            self._add_constant(node)
            return
        if node.op_type in _SAME_VALUE and node.input[0] in self.values:
            value = self.values[node.input[0]]
            value.aliases.append(node.output[0])
            self.values[node.output[0]] = value
            if node.op_type == _DEQUANTIZE:
                value.dequantized = value.dequantized or node.output[0]
            elif node.op_type == _QUANTIZE and value.integers is None:
                value.integers = (node.output[0], *_parameters(node, (1, 2)))
            return
        for name in dict.fromkeys(known):
            self.values[name].readers.append(index)
        scale = self._scale(node)
        for name in node.output:
            if name:
                integers = None if scale is None else (name, *scale)
                self.values[name] = Value(name, index, scale is not None, integers, [name])

    def _scale(self, node: onnx.NodeProto) -> tuple[str, str] | None:
        places = _OUTPUT_SCALE.get(node.op_type)
        if places is not None:
            given = _parameters(node, places)
            return given if given[0] else None
        read = self.values.get(node.input[0]) if node.input else None
        if node.op_type not in _MOVING or read is None:
            return None
        if read.integers is not None and node.input[0] == read.integers[0]:
            return read.integers[1:]
        # The integers that QuantizeLinear made of floats.
        maker = self._makers.get(node.input[0])
        if maker is None or maker.op_type != _QUANTIZE:
            return None
        return _parameters(maker, (1, 2))

    def _add_constant(self, node: onnx.NodeProto) -> None:
        """Sizes of the constants that weights are read from."""
        held = constant_value(node)
        if held is not None:
            self._dims[node.output[0]] = tuple(held.dims)
        elif node.op_type in _SAME_VALUE or node.op_type in ("Cast", "Transpose"):
            self._dims[node.output[0]] = self._dims.get(node.input[0], ())

    def _add_stem(self, index: int, node: onnx.NodeProto) -> None:
        stem = Stem(index, self.kind(index), [self.values.get(name) for name in node.output])
        self.stems.append(stem)
        self.stem_of[index] = stem
        value = stem.outputs[0]
        while value is not None and len(value.readers) == 1 and stem.activation is None:
            reader = value.readers[0]
            kind, inputs, outputs = self.kind(reader), self.reads(reader), self._outputs(self.nodes[reader])
            if len(inputs) != 1 or len(outputs) != 1 or kind not in ACTIVATIONS | _AFFINE:
                return
            value = outputs[0]
            if kind in ACTIVATIONS:
                stem.activation = value
            else:
                stem.affine.append(value)
            self.stem_of[reader] = stem


def _parameters(node: onnx.NodeProto, places: tuple[int, int]) -> tuple[str, str]:
    """Names of a scale and a zero point at these places among the inputs; "" for what is left out."""
    first, second = (node.input[place] if len(node.input) > place else "" for place in places)
    return first, second


def _nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _sorted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes, each behind those whose outputs it reads; otherwise in their own order."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waiting = {
        index: {makers[name] for name in reads(node) if name in makers} - {index}
        for index, node in enumerate(graph.node)
    }
    users: dict[int, list[int]] = defaultdict(list)
    for index, needed in waiting.items():
        for other in needed:
            users[other].append(index)
    order: list[int] = []
    if all(other < index for index, needed in waiting.items() for other in needed):
        return list(graph.node)
    ready = [index for index in sorted(waiting, reverse=True) if not waiting[index]]
    while ready:
        index = ready.pop()
        order.append(index)
        for user in users[index]:
            waiting[user].discard(index)
            if not waiting[user]:
                ready.append(user)
    return [graph.node[index] for index in order]
