"""Every graph and function body of a model, in one fixed order.

Two protos of the same structure (a model and its copy without weights) give scopes that correspond index by index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx


@dataclass(frozen=True)
class Scope:
    """One graph (main or nested in an attribute) or one function body.

    ``body`` is the proto itself, so changing it changes the model. Names are unique within a ``namespace``: the main
    graph and all graphs nested in it share namespace 0, every function (with what is nested in it) has its own.
    """

    index: int
    kind: Literal["main", "subgraph", "function"]
    body: onnx.GraphProto | onnx.FunctionProto
    where: str  # "" for the main graph, else words such as "If 'cond_1', then_branch"
    namespace: int
    parent: int | None = None  # index of the scope that holds this subgraph
    holder: tuple[int, str] | None = None  # the holding node's index in the parent, and the attribute's name
    _initializers: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    _makers: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def initializer(self, name: str) -> onnx.TensorProto | None:
        """The dense initialiser of a name; found without a search as long as none are put in or taken out."""
        if isinstance(self.body, onnx.FunctionProto):
            return None
        tensors = self.body.initializer
        index = self._initializers.get(name, len(tensors))
        if index >= len(tensors) or tensors[index].name != name:
            self._initializers.update((tensors[index].name, index) for index in reversed(range(len(tensors))))
            index = self._initializers.get(name, len(tensors))
        return tensors[index] if index < len(tensors) and tensors[index].name == name else None

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; found without a search as long as none are put in or taken out."""
        nodes = self.body.node
        index = self._makers.get(name, len(nodes))
        if index >= len(nodes) or name not in nodes[index].output:
            self._makers.update((name, index) for index in reversed(range(len(nodes))) for name in nodes[index].output)
            index = self._makers.get(name, len(nodes))
        return nodes[index] if index < len(nodes) and name in nodes[index].output else None


def scopes(model: onnx.ModelProto) -> list[Scope]:
    """The main graph, the graphs nested in it depth first, then every function with its own nested graphs."""
    found = [Scope(0, "main", model.graph, "", 0)]
    _nested(found, found[0])
    for number, function in enumerate(model.functions, start=1):
        name = f"{function.domain}::{function.name}" if function.domain else function.name
        found.append(Scope(len(found), "function", function, f"function {name}", number))
        _nested(found, found[-1])
    return found


def _nested(found: list[Scope], scope: Scope) -> None:
    for index, node in enumerate(scope.body.node):
        if not node.attribute:  # of a million nodes most have none, and asking is cheaper than an empty loop
            continue
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.GRAPH or attribute.ref_attr_name:
                continue
            label = f"{node.op_type} {display_name(node)!r}, {attribute.name}"
            where = f"{scope.where}; {label}" if scope.where else label
            holder = (index, attribute.name)
            found.append(
                Scope(len(found), "subgraph", attribute.g, where, scope.namespace, parent=scope.index, holder=holder)
            )
            _nested(found, found[-1])


def display_name(node: onnx.NodeProto) -> str:
    """The node's name, or that of its first output where it has none."""
    return node.name or next((name for name in node.output if name), node.op_type)


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds; None for other nodes, texts, and an argument of the function.

    It is the node's own proto where the node holds a tensor, and a new one where it holds numbers (``value_floats``
    and the like); ``hold_tensor`` makes the first form of the second.
    """
    if node.op_type != "Constant" or not is_standard(node):
        return None
    for entry in node.attribute:
        if entry.ref_attr_name:
            continue
        if entry.name == "value":
            return entry.t
        if entry.name in _NUMBERS:
            kind, field = _NUMBERS[entry.name]
            held = getattr(entry, field)
            values, dims = ([held], []) if field in ("f", "i") else (list(held), [len(held)])
            return onnx.helper.make_tensor(node.output[0], kind, dims, values)
    return None


# Forms of a Constant node beside the tensor: element type, and the attribute's field.
_NUMBERS = {
    "value_float": (onnx.TensorProto.FLOAT, "f"),
    "value_floats": (onnx.TensorProto.FLOAT, "floats"),
    "value_int": (onnx.TensorProto.INT64, "i"),
    "value_ints": (onnx.TensorProto.INT64, "ints"),
}


def hold_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """As ``constant_value``, but the node's own proto in any case: numbers become a tensor in the node."""
    value = constant_value(node)
    if value is None or any(entry.name == "value" for entry in node.attribute):
        return value
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", value))
    return node.attribute[0].t


def root(all_scopes: Sequence[Scope], scope: int) -> Scope:
    """The main graph or the function that a scope is, or is nested in."""
    found = all_scopes[scope]
    while found.parent is not None:
        found = all_scopes[found.parent]
    return found


def opset_imports(model: onnx.ModelProto, all_scopes: Sequence[Scope], scope: int) -> Sequence[onnx.OperatorSetIdProto]:
    """The operator sets that hold in a scope: those of its function, or the model's."""
    body = root(all_scopes, scope).body
    return body.opset_import if isinstance(body, onnx.FunctionProto) else model.opset_import


def opset_version(model: onnx.ModelProto, all_scopes: Sequence[Scope], scope: int) -> int:
    """The version of ONNX's own operators that holds in a scope: the lower one where it is given twice."""
    imports = opset_imports(model, all_scopes, scope)
    return min((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=1)


def initializer_names(scope: Scope) -> set[str]:
    """Names of the dense initialisers of a graph; empty for a function body, which cannot have any."""
    if isinstance(scope.body, onnx.FunctionProto):
        return set()
    return {tensor.name for tensor in scope.body.initializer}


def declared_names(scope: Scope) -> set[str]:
    """Names that this scope gives a meaning: its inputs, initialisers and the outputs of its nodes."""
    body = scope.body
    names = {name for node in body.node for name in node.output if name}
    if isinstance(body, onnx.FunctionProto):
        return names | set(body.input)
    names.update(tensor.values.name for tensor in body.sparse_initializer)
    names.update(tensor.name for tensor in body.initializer)
    return names | {value.name for value in body.input}


class Owners:
    """Which scope a name belongs to, seen from another one: two branches of an If may use a name for two tensors."""

    def __init__(self, all_scopes: Sequence[Scope]) -> None:
        self._parents = [scope.parent for scope in all_scopes]
        self._declared = [declared_names(scope) for scope in all_scopes]
        self._ambiguous = {
            (owner, name)
            for scope in all_scopes
            if scope.parent is not None
            for name in self._declared[scope.index]
            if len(found := self.owners(scope.index, name)) > 1
            for owner in found
        }

    def owners(self, scope: int, name: str) -> list[int]:
        """The scopes that declare a name, from ``scope`` outwards: none, one, or several where it is ambiguous."""
        found, index = [], scope
        while True:
            if name in self._declared[index]:
                found.append(index)
            parent = self._parents[index]
            if parent is None:
                return found
            index = parent

    def is_ambiguous(self, scope: int, name: str) -> bool:
        """Whether the tensor that a name means in ``scope`` has a namesake in a graph around or inside its own.

        ONNX forbids that, the checker lets it pass, and which of the two ONNX Runtime takes depends on other nodes.
        """
        return any((owner, name) in self._ambiguous for owner in self.owners(scope, name))


def used_names(scope: Scope) -> Iterator[str]:
    """Every name that this scope reads: inputs of its nodes and its outputs, once for each use.

    Graphs in a list (an attribute that only custom operators have) are no scopes of their own and count as part of
    this one.
    """
    for node in scope.body.node:
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            for graph in attribute.graphs:
                yield from names_within(graph)
    if isinstance(scope.body, onnx.FunctionProto):
        yield from scope.body.output
        return
    yield from (output.name for output in scope.body.output)
    for annotation in scope.body.quantization_annotation:
        yield from (entry.value for entry in annotation.quant_parameter_tensor_names)


def training_names(model: onnx.ModelProto) -> Iterator[str]:
    """Every name that the model's training information mentions: a weight among them must stay."""
    for training in model.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from names_within(graph)
        for binding in (*training.initialization_binding, *training.update_binding):
            yield from (binding.key, binding.value)


def names_within(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a graph, or a graph nested in it, mentions."""
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for attribute in node.attribute:
            for nested in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from names_within(nested)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node may read, those that its nested graphs capture included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute if node.attribute else ():
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from names_within(graph)
