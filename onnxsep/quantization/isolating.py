"""The runtime's quantiser is shown a graph in which what it assumes is true, and its result is led back.

It takes only what nodes of the main graph read for a use of a tensor, and makes names without asking whether they are
taken. So, before:

- every tensor and every node gets a name to which anything may be appended;
- what a nested graph captures, and what is an output of the graph, is read by an Identity of its own, a *port*;
- a node that stays in float reads what is not rounded where there is such a tensor: the integer readers of an input,
  or of what another float node computes, read it through a port;
- a weight that is read in several ways (by layers with other channel axes, by nodes in float, by nested graphs, as an
  output) is there once for each of them, so that integers take its place only where they are wanted;
- optional inputs that are left out by an empty name at the end of a node's inputs are left out.

Afterwards ports go, and names are those of the user again; new ones are made from them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import onnx

from onnxsep.graph.scopes import is_standard, scopes
from onnxsep.model.ordering import sort_nodes
from onnxsep.quantization.naming import all_names, free_name, graphs_of, merge_initializers, rename_tensors

Ranges = Mapping[str, tuple[float, float]]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OURS = re.compile(r"t\d+t")
_INPUT = "_QuantizeLinear_Input"  # as the quantiser calls what an output was before it was quantised


@dataclass
class Isolated:
    """What the quantiser is to be given.

    Attributes:
        proto: The model.
        ranges: Of its activations.
        exclude: Names of nodes that stay in float.
    """

    proto: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    exclude: set[str] = field(default_factory=set)
    _tensors: dict[str, str] = field(default_factory=dict)  # names before by names now
    _nodes: dict[str, str] = field(default_factory=dict)
    _ports: dict[str, str] = field(default_factory=dict)  # nodes that are ports: the output's name, "" for the others

    def restore(self, result: onnx.ModelProto) -> None:
        """Take back in the quantiser's result what was done for it, in place."""
        names = self._final_names(result)
        rename_tensors(result.graph, lambda name: names.get(name, name))
        taken = set(self._nodes.values())
        for node in result.graph.node:
            short = node.name.removesuffix("_quant")
            if short in self._nodes:
                node.name = self._nodes[short]
            else:
                node.name = free_name(_led_back(node.name, self._tensors), taken)
                taken.add(node.name)
        merge_initializers(result.graph)
        sort_nodes(result.graph)

    def _final_names(self, result: onnx.ModelProto) -> dict[str, str]:
        """The names that all tensors get; ports are removed on the way."""
        graph = result.graph
        weights = {tensor.name for tensor in graph.initializer}
        fixed = weights | {entry.name for entry in graph.input}
        final: dict[str, str] = {}
        gone: dict[str, str] = {}  # what ports made, and what they read
        for node in [node for node in graph.node if node.name in self._ports]:
            source, output = node.input[0], self._ports[node.name]
            if output and (source in final or (source in fixed and self._tensors.get(source) != output)):
                final[node.output[0]] = output  # what it reads has another name already: the port stays
                continue
            if output:
                final[source] = output
            gone[node.output[0]] = source
            graph.node.remove(node)
        rename_tensors(graph, lambda name: _last(name, gone))
        outputs = set(final.values())
        taken = outputs | set(self._tensors.values())
        for name in dict.fromkeys(all_names(graph)):
            if name in final:
                continue
            user = self._tensors.get(name)
            if user is None or (user in outputs and name not in weights):
                final[name] = free_name(_led_back(name, self._tensors) if user is None else user + _INPUT, taken)
                taken.add(final[name])
            else:
                final[name] = user
        return final


def _last(name: str, steps: Mapping[str, str]) -> str:
    while name in steps:
        name = steps[name]
    return name


def isolate(prepared: onnx.ModelProto, ranges: Ranges, op_types: Collection[str], left: Collection[str]) -> Isolated:
    """Make a copy of a model for the quantiser.

    Args:
        prepared: The model; every node has a name of its own.
        ranges: Ranges of activations.
        op_types: Operators that are quantised.
        left: Names of nodes that stay in float.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(prepared)
    for scope in scopes(proto):
        for node in scope.body.node:
            while node.input and not node.input[-1]:
                node.input.pop()
    made = _Made(proto, ranges)

    def taken(node: onnx.NodeProto) -> bool:
        return node.op_type in op_types and is_standard(node) and node.name not in left

    _copy_weights(made, taken)
    _add_ports(made, taken)
    return made.renamed(left)


class _Made:
    """A model that changes, and what is to be taken back of it."""

    def __init__(self, proto: onnx.ModelProto, ranges: Ranges) -> None:
        self.proto, self.graph = proto, proto.graph
        self.ranges = dict(ranges)
        self.ports: dict[str, str] = {}
        self.copies: dict[str, str] = {}  # what a tensor is a copy of, by its name
        self._taken = set(all_names(proto.graph)) | {node.name for node in proto.graph.node}
        self.captured = _captured(proto)
        self.outputs = [entry.name for entry in proto.graph.output]

    def fresh(self, base: str) -> str:
        name = free_name(base, self._taken)
        self._taken.add(name)
        return name

    def renamed(self, left: Collection[str]) -> Isolated:
        tensors: dict[str, str] = {}
        names: dict[str, str] = {"": ""}
        for number, name in enumerate(dict.fromkeys(all_names(self.graph))):
            if name:
                names[name] = f"t{number}t"
                tensors[names[name]] = self.copies.get(name, name)
        nodes = {node.name: f"n{number}n" for number, node in enumerate(self.graph.node)}
        rename_tensors(self.graph, names.__getitem__)
        for node in self.graph.node:
            node.name = nodes[node.name]
        return Isolated(
            self.proto,
            {names[name]: found for name, found in self.ranges.items() if name in names},
            {nodes[name] for name in left if name in nodes},
            tensors,
            {new: old for old, new in nodes.items() if old not in self.ports},
            {nodes[name]: output for name, output in self.ports.items()},
        )


def _captured(proto: onnx.ModelProto) -> set[str]:
    """Names that nested graphs of the main graph mention; those of their own tensors among them do no harm."""
    found: set[str] = set()
    for node in proto.graph.node:
        for graph in graphs_of(node):
            found.update(all_names(graph))
    return found


def _copy_weights(made: _Made, taken: Callable[[onnx.NodeProto], bool]) -> None:
    """Give each way in which an initialiser is read a tensor of its own, the float ones the original."""
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    uses: dict[str, dict[tuple[object, ...], list[tuple[onnx.NodeProto, int]]]] = defaultdict(dict)
    for node in made.graph.node:
        for index, name in enumerate(node.input):
            if name in tensors and tensors[name].data_type == onnx.TensorProto.FLOAT:
                role = _role(node, index) if taken(node) else ()
                uses[name].setdefault(role, []).append((node, index))
    for name, roles in uses.items():
        original = name in made.captured or name in made.outputs or () in roles
        for role, places in roles.items():
            if not role:
                continue
            if not original:
                original = True  # the first one has it
                continue
            copy = made.graph.initializer.add()
            copy.CopyFrom(tensors[name])
            copy.name = made.fresh(f"{name}_copy")
            made.copies[copy.name] = name
            for node, index in places:
                node.input[index] = copy.name


def _role(node: onnx.NodeProto, index: int) -> tuple[object, ...]:
    """What stands for the integers that a node needs of a weight: equal where they may be the same."""
    if node.op_type in _LAYERS:
        if index != 1:
            return node.op_type, index, node.name
        turned = next((entry.i for entry in node.attribute if entry.name == "transB"), 0)
        return node.op_type, 1, turned
    if node.op_type in ("Add", "Mul"):
        return ("activation",)
    return node.op_type, index, node.name


def _add_ports(made: _Made, taken: Callable[[onnx.NodeProto], bool]) -> None:
    graph = made.graph
    known = {entry.name: entry for entry in (*graph.value_info, *graph.input, *graph.output)}
    integer: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    real: set[str] = {*made.captured, *made.outputs}
    makers = {name: node for node in graph.node for name in node.output if name}
    for node in graph.node:
        for name in node.input:
            if taken(node):
                integer[name].append(node)
            else:
                real.add(name)
    ports: list[onnx.NodeProto] = []

    def port(source: str, name: str, output: str) -> str:
        node = onnx.helper.make_node("Identity", [source], [name], made.fresh(f"{name}_port"))
        made.ports[node.name] = output
        ports.append(node)
        if source in known:
            entry = graph.value_info.add()
            entry.CopyFrom(known[source])
            entry.name = name
        return name

    names = dict.fromkeys([entry.name for entry in graph.input] + list(makers))
    for name in names:
        if (name not in makers or not taken(makers[name])) and name in real and name in made.ranges and integer[name]:
            other = port(name, made.fresh(f"{name}_integer"), "")
            made.copies[other] = name
            made.ranges[other] = made.ranges[name]
            for node in integer[name]:
                for index in [index for index, read in enumerate(node.input) if read == name]:
                    node.input[index] = other
    captured = {}
    for name in names:
        if name in made.captured and name in makers and taken(makers[name]):
            captured[name] = port(name, made.fresh(f"{name}_captured"), "")
            made.copies[captured[name]] = name
    for node in graph.node:
        for nested in graphs_of(node):
            rename_tensors(nested, lambda name: captured.get(name, name))
    for entry in graph.output:
        if entry.name in makers and taken(makers[entry.name]):
            output = entry.name
            entry.name = port(output, made.fresh(f"{output}_output"), output)
            made.copies[entry.name] = output
    graph.node.extend(ports)
    sort_nodes(graph)


def _led_back(name: str, tensors: Mapping[str, str]) -> str:
    """A name that the quantiser made from one of ours, made from the user's instead."""
    return _OURS.sub(lambda found: tensors.get(found[0], found[0]), name)
