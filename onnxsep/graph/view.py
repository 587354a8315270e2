"""Matching Convs and building nodes, with onnx-graphsurgeon; the only module that imports it.

graphsurgeon's import gives every node its tensors and every tensor its producer, across nested graphs. Its export
loses too much of a user's model (metadata, annotations, unused initialisers), so only new nodes go through it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

from onnxsep.errors import UnsupportedModelError
from onnxsep.graph.index import RANDOM, Index
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import Scope, display_name, initializer_names, is_standard, root, scopes
from onnxsep.graph.shapes import KnownShapes, Shape

G_LOGGER.severity = G_LOGGER.CRITICAL  # it prints to standard output, which is the user's

FLOAT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}
ONNX_TYPES = {name: number for number, name in FLOAT_TYPES.items()}
# Convolutions that never have a float constant as their weight, or that work the other way round.
OTHER_CONVOLUTIONS = {
    "ConvInteger": "ConvInteger: its weight is quantised already",
    "QLinearConv": "QLinearConv: its weight is quantised already",
    "DeformConv": "DeformConv is not supported: only Conv is rewritten",
}


class View:
    """A model's skeleton as graphsurgeon sees it: nodes of scope s and index i stand where they stand in the source.

    Args:
        light: a skeleton with inferred shapes (``onnxsep.graph.shapes``).
        readers: the standard operators whose constants will be asked for; all nodes by default. graphsurgeon then sees
            them and what their constants are computed from, and no more.

    Raises:
        UnsupportedModelError: graphsurgeon cannot import the model.
    """

    def __init__(self, light: onnx.ModelProto, readers: Collection[str] | None = None) -> None:
        self.index = Index(light)
        self.scopes, self.owners = self.index.scopes, self.index.owners
        seen: Sequence[Sequence[int]] = [range(len(scope.body.node)) for scope in self.scopes]
        if readers is not None:
            seen = _seen(self.index, readers)
        try:
            main = gs.import_onnx(_importable(light, seen))
        except Exception as error:
            raise UnsupportedModelError(
                f"the graph cannot be read: {type(error).__name__}: {error}; is it a valid ONNX graph (onnx.checker)?"
            ) from error
        self._nodes: list[dict[int, Any]] = []  # of each scope, by index
        for scope, indices in zip(self.scopes, seen, strict=True):
            body = main
            if scope.kind == "function":
                body = main.functions[scope.namespace - 1]
            elif scope.parent is not None and scope.holder is not None:
                index, attribute = scope.holder
                holder = self._nodes[scope.parent].get(index)
                body = None if holder is None else holder.attrs[attribute]
            self._nodes.append({} if body is None else dict(zip(indices, body.nodes, strict=True)))
        self._initializers = [initializer_names(scope) for scope in self.scopes]
        self._sparse = [_sparse_names(scope) for scope in self.scopes]
        self._place = {
            id(node): (scope, index) for scope, nodes in enumerate(self._nodes) for index, node in nodes.items()
        }
        self._shapes = KnownShapes(self.scopes)

    def shape(self, scope: int, name: str) -> Shape | None:
        """Shape of a tensor as seen from a scope; None where it is not known."""
        return self._shapes.of(scope, name)

    def constant(self, scope: int, index: int, position: int) -> Constant | str:
        """The constant that feeds input ``position`` of a node, or the reason why it is not one."""
        inputs = self._nodes[scope][index].inputs
        if position >= len(inputs) or inputs[position].is_empty():
            return "it has no weight"
        if self.owners.is_ambiguous(scope, inputs[position].name):
            return f"its weight {inputs[position].name!r} has a namesake in a nested graph, which ONNX does not allow"
        return self._source(inputs[position], scope)

    def _source(self, tensor: Any, scope: int) -> Constant | str:
        if isinstance(tensor, gs.Constant):
            owner: int | None = scope
            while owner is not None:
                if tensor.name in self._initializers[owner]:
                    return Constant(owner, tensor.name)
                if tensor.name in self._sparse[owner]:
                    return "its weight is stored as a sparse tensor"
                owner = self.scopes[owner].parent
            return f"its weight {tensor.name!r} has no owner in the graph"
        if not tensor.inputs:
            if root(self.scopes, scope).kind == "function":
                return f"its weight {tensor.name!r} is an argument of the function"
            return f"its weight {tensor.name!r} is a graph input: it is given at run time"
        nodes: dict[Place, None] = {}
        reason = self._expression(tensor.inputs[0], nodes)
        if reason:
            return reason
        home = self._place[id(tensor.inputs[0])]
        return Constant(home[0], tensor.name, tuple(nodes))

    def _expression(self, last: Any, nodes: dict[Place, None]) -> str | None:
        """Collect the nodes that make a constant into ``nodes``, producers first; or the reason why they do not.

        Without recursion: a weight computed at run time may hang on a whole network.
        """
        pending, entered = [last], set[Place]()
        while pending:
            node = pending[-1]
            place = self._place[id(node)]
            if place in nodes:
                pending.pop()
                continue
            reason = self._not_foldable(node, place)
            if reason:
                return reason
            producers = [t.inputs[0] for t in node.inputs if t.inputs and not isinstance(t, gs.Constant)]
            missing = [producer for producer in producers if self._place[id(producer)] not in nodes]
            if missing and place in entered:
                return f"its weight depends on itself, through {node.op} {node.name!r}"
            entered.add(place)
            if missing:
                pending += reversed(missing)
            else:
                nodes[place] = None
                pending.pop()
        return None

    def _not_foldable(self, node: Any, place: Place) -> str | None:
        """Why a node cannot be part of a constant expression; None where that only depends on its producers."""
        proto = self.scopes[place[0]].body.node[place[1]]
        label = f"{node.op} {display_name(proto)!r}"
        if node.op in ("DequantizeLinear", "DynamicQuantizeLinear"):
            return f"its weight is behind {label}: it is quantised already"
        if any(attribute.ref_attr_name for attribute in proto.attribute):
            return f"its weight depends on an attribute of the function, through {label}"
        for name in proto.input:
            if self.owners.is_ambiguous(place[0], name):
                return f"its weight depends on {name!r}, which has a namesake in a nested graph, through {label}"
        given = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant) and not tensor.is_empty()]
        foldable = is_standard(proto) and node.op not in RANDOM and not any(True for _ in node.subgraphs())
        if not foldable or not all(tensor.inputs for tensor in given):
            return f"its weight is computed at run time by {label}"
        return None


def _sparse_names(scope: Scope) -> set[str]:
    if isinstance(scope.body, onnx.FunctionProto):
        return set()
    return {tensor.values.name for tensor in scope.body.sparse_initializer}


def _seen(index: Index, readers: Collection[str]) -> list[list[int]]:
    """Nodes of each scope that matter to constants: readers, what makes their operands, and holders of such nodes.

    Of the first operand nobody asks where the second one is an initialiser, and of a Conv's never.
    """
    stored = [initializer_names(scope) for scope in index.scopes]
    found: list[set[int]] = [set() for _ in index.scopes]
    pending: list[tuple[int, str]] = []
    for scope, nodes in enumerate(index.nodes):
        for number, node in enumerate(nodes):
            if node.op_type in readers and is_standard(node):
                found[scope].add(number)
                skip = (
                    1 if node.op_type in ("Conv", "ConvTranspose") or stored[scope].issuperset(node.input[1:2]) else 0
                )
                pending += [(scope, name) for name in node.input[skip:]]
    while pending:
        scope, name = pending.pop()
        place = index.place(name, scope)
        if place is not None and place[1] not in found[place[0]]:
            found[place[0]].add(place[1])
            pending += [(place[0], other) for other in index.node(place).input]
    for holding in reversed(index.scopes):  # holders stand before what they hold
        if found[holding.index] and holding.parent is not None and holding.holder is not None:
            found[holding.parent].add(holding.holder[0])
    return [sorted(indices) for indices in found]


def _importable(light: onnx.ModelProto, seen: Sequence[Sequence[int]]) -> onnx.ModelProto:
    """A copy that holds what matching needs and no more: names, the nodes of each scope that it sees, nested graphs.

    graphsurgeon stumbles over much of the rest: binary strings, element types and kinds of attributes that are newer
    than itself, graphs as defaults of a function's attributes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(light)
    for function in copy.functions:
        del function.attribute_proto[:]
    for scope in reversed(scopes(copy)):  # what is nested before its holder, which may move or go
        body = scope.body
        if len(seen[scope.index]) < len(body.node):
            kept = [body.node[index] for index in seen[scope.index]]
            body.ClearField("node")
            body.node.extend(kept)
        for node in body.node:
            _keep_graphs(node.attribute)
        if isinstance(body, onnx.GraphProto):
            for value in (*body.input, *body.output):
                value.ClearField("type")
            del body.value_info[:]
            for tensor in body.initializer:
                tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=onnx.TensorProto.FLOAT))
    return copy


def _keep_graphs(attributes: Any) -> None:
    """Delete all other attributes; the graphs stay the same objects, so that what is nested in them can be visited."""
    for index in reversed(range(len(attributes))):
        if attributes[index].type != onnx.AttributeProto.GRAPH:
            del attributes[index]


@dataclass(frozen=True)
class NewNode:
    """A node to build: names of tensors, attributes as Python values."""

    op_type: str
    name: str
    inputs: Sequence[str]
    output: str
    attributes: dict[str, Any]


def build_nodes(nodes: Sequence[NewNode]) -> list[onnx.NodeProto]:
    """Node protos, built by graphsurgeon."""
    built = []
    for new in nodes:
        values = ((key, tuple(value) if isinstance(value, list) else value) for key, value in new.attributes.items())
        proto = onnx.NodeProto()
        proto.CopyFrom(_with_attributes(new.op_type, tuple(values)))
        proto.name = new.name
        proto.input.extend(new.inputs)
        proto.output.append(new.output)
        built.append(proto)
    return built


@lru_cache(maxsize=1024)
def _with_attributes(op_type: str, attributes: tuple[tuple[str, Any], ...]) -> onnx.NodeProto:
    """A node that is no part of a graph yet. Many nodes of a model have the same attributes, which are slow to make."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes}
    node: onnx.NodeProto = OnnxExporter.export_node(gs.Node(op_type, attrs=values))
    return node


def build_tensor(name: str, values: NDArray[np.generic]) -> onnx.TensorProto:
    """A tensor proto with raw data."""
    tensor: onnx.TensorProto = OnnxExporter.export_tensor_proto(gs.Constant(name, values))
    return tensor
