"""Who makes a tensor, who uses it, what it belongs to: asked of a model as it stands, in every scope.

An index is made in one pass over the nodes, and each part of it only when it is first asked for. It does not see what
is changed in the model afterwards. Names mean what they mean in a scope: the main graph, a graph nested in it, or the
body of a function; the scope is 0, the main graph, where none is given.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import onnx

from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import (
    Owners,
    Scope,
    constant_value,
    display_name,
    is_standard,
    names_within,
    scopes,
    training_names,
)

RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that give something else each time."""
_QUANTISED = frozenset({"DequantizeLinear", "DynamicQuantizeLinear"})  # these are not folded: they say a type


class Use(NamedTuple):
    """One use of a tensor.

    Attributes:
        scope: where it is used, which may be a graph nested in the tensor's own.
        node: index of the node there that reads it; -1 where it is used by no node.
        position: of the operand; -1 where it is used by no node, or by a graph in a list of graphs.
        what: in words, where it is used by no node: "an output of the graph" and the like.
    """

    scope: int
    node: int
    position: int
    what: str = ""

    @property
    def place(self) -> Place | None:
        """The node that reads it."""
        return None if self.node < 0 else (self.scope, self.node)


class Index:
    """Makers, uses, owners and constants of a model.

    Args:
        model: the model; its nodes may stand in any order.
        all_scopes: its scopes, where they are at hand.
    """

    def __init__(self, model: onnx.ModelProto, all_scopes: Sequence[Scope] | None = None) -> None:
        self.model = model
        self.scopes = scopes(model) if all_scopes is None else all_scopes
        self._answers: dict[tuple[int, str], list[Use]] = {}
        self._nested = {scope.parent for scope in self.scopes if scope.parent is not None}

    @cached_property
    def nodes(self) -> list[list[onnx.NodeProto]]:
        """The nodes of each scope; an object stands for its node as long as the index lives."""
        return [list(scope.body.node) for scope in self.scopes]

    @cached_property
    def owners(self) -> Owners:
        """Which scope declares a name."""
        return Owners(self.scopes)

    def node(self, place: Place) -> onnx.NodeProto:
        """The node that stands at a place."""
        return self.nodes[place[0]][place[1]]

    def label(self, place: Place) -> str:
        """A node in words, such as "Conv 'conv1'", with the nested graph or function that it stands in."""
        node, where = self.node(place), self.scopes[place[0]].where
        domain = "" if is_standard(node) else f"{node.domain}."
        return f"{domain}{node.op_type} {display_name(node)!r}" + (f" ({where})" if where else "")

    def owner(self, name: str, scope: int = 0) -> int | None:
        """The scope whose tensor a name means in a scope: that one or one around it. None: nothing declares it."""
        return next(iter(self.owners.owners(scope, name)), None)

    def place(self, name: str, scope: int = 0) -> Place | None:
        """Where the node stands that makes a tensor; None for inputs, initialisers and names that nothing declares."""
        owner = self._home(name, scope)
        index = self._makers[owner].get(name) if name else None
        return None if index is None else (owner, index)

    def maker(self, name: str, scope: int = 0) -> onnx.NodeProto | None:
        """The node that makes a tensor; None as for ``place``."""
        place = self.place(name, scope)
        return None if place is None else self.node(place)

    def uses(self, name: str, scope: int = 0) -> Sequence[Use]:
        """Every use of a tensor, by nodes of its own graph first; one for each operand, so a node may come twice."""
        home = self._home(name, scope)
        if (home, name) not in self._answers:
            found = [
                Use(home, index, position)
                for index in self._own_readers(home, name)
                for position, operand in enumerate(self.nodes[home][index].input)
                if operand == name
            ]
            self._answers[home, name] = found + self._further_uses[home].get(name, [])
        return self._answers[home, name]

    def readers(self, name: str, scope: int = 0) -> list[Place]:
        """Nodes of the tensor's own graph that read it, each once; one that holds a graph reads what that captures."""
        home = self._home(name, scope)
        further = self._further_uses[home].get(name, ())
        found = {self._around((use.scope, use.node), home) for use in further if use.node >= 0 or use.scope != home}
        return sorted({*found, *((home, index) for index in self._own_readers(home, name))})

    def is_output(self, name: str, scope: int = 0) -> bool:
        """Whether a tensor is an output of a graph or function, or used in another way that is no node's."""
        return any(use.node < 0 for use in self._further_uses[self._home(name, scope)].get(name, ()))

    def tensor(self, name: str, scope: int = 0) -> onnx.TensorProto | None:
        """The initialiser, or the value of the Constant node, that a name means; None for anything else."""
        home = self._home(name, scope)
        body = self.scopes[home].body
        if name in self._stored[home]:
            assert isinstance(body, onnx.GraphProto)
            return body.initializer[self._stored[home][name]]
        node = self._makers[home].get(name) if name else None
        return None if node is None else constant_value(self.nodes[home][node])

    def is_constant(self, name: str, scope: int = 0) -> bool:
        """Whether a tensor is an initialiser, a Constant node's, or computed from nothing but such."""
        return name in self._constants[self._home(name, scope)]

    def constant(self, name: str, scope: int = 0) -> Constant | None:
        """A constant with the nodes that make it, producers first; None where the tensor is not constant."""
        if not self.is_constant(name, scope):
            return None
        home = self._home(name, scope)
        nodes: dict[Place, None] = {}
        pending = [((home, name), False)]
        while pending:
            (owner, operand), ready = pending.pop()
            index = self._makers[owner].get(operand)
            if index is None or (owner, index) in nodes:
                continue
            if ready:
                nodes[owner, index] = None
                continue
            pending.append(((owner, operand), True))
            operands = filter(None, reversed(self.nodes[owner][index].input))
            pending += [((self._home(one, owner), one), False) for one in operands]
        return Constant(home, name, tuple(nodes))

    def attribute(self, place: Place, name: str, default: Any = None) -> Any:
        """The value of a node's attribute; the default where it has none, or only a reference to the function's."""
        for entry in self.node(place).attribute:
            if entry.name == name and not entry.ref_attr_name:
                return onnx.helper.get_attribute_value(entry)
        return default

    # ---------------------------------------------------------------- how it is made

    def _home(self, name: str, scope: int) -> int:
        """The scope whose tables know a name."""
        if self.scopes[scope].parent is None:
            return scope
        owner = self.owner(name, scope)
        return scope if owner is None else owner

    def _around(self, place: Place, home: int) -> Place:
        """The node of ``home`` that is, or holds, the one at ``place``."""
        while place[0] != home:
            scope = self.scopes[place[0]]
            assert scope.parent is not None
            assert scope.holder is not None
            place = scope.parent, scope.holder[0]
        return place

    @cached_property
    def _makers(self) -> list[dict[str, int]]:
        found: list[dict[str, int]] = []
        for nodes in self.nodes:
            made = {name: index for index, node in enumerate(nodes) for name in node.output}
            made.pop("", None)
            found.append(made)
        return found

    @cached_property
    def _stored(self) -> list[dict[str, int]]:
        """Where each initialiser stands among those of its scope."""
        bodies = (scope.body for scope in self.scopes)
        return [
            {} if isinstance(body, onnx.FunctionProto) else {one.name: at for at, one in enumerate(body.initializer)}
            for body in bodies
        ]

    @cached_property
    def _reading(self) -> list[dict[str, int | list[int]]]:
        """For each scope and name the nodes of that scope that read it: one index, or a list of more.

        Most tensors have one reader, and a list for each would take most of an index's time and memory.
        """
        tables: list[dict[str, int | list[int]]] = []
        for nodes in self.nodes:
            table: dict[str, int | list[int]] = {}
            for index, node in enumerate(nodes):
                for name in node.input:
                    held = table.setdefault(name, index)
                    if isinstance(held, list):
                        held.append(index)
                    elif held != index:
                        table[name] = [held, index]
            table.pop("", None)
            tables.append(table)
        return tables

    def _own_readers(self, home: int, name: str) -> Iterable[int]:
        held = self._reading[home].get(name, ())
        return (held,) if isinstance(held, int) else dict.fromkeys(held)

    @cached_property
    def _further_uses(self) -> list[dict[str, list[Use]]]:
        """All uses but those by nodes of the tensor's own scope."""
        found: list[dict[str, list[Use]]] = [{} for _ in self.scopes]
        for scope in self.scopes:
            for name, use in self._outer_reads(scope) if scope.parent is not None else ():
                found[self._home(name, scope.index)].setdefault(name, []).append(use)
            for name, use in self._used_by_no_node(scope):
                found[self._home(name, scope.index)].setdefault(name, []).append(use)
        for name in training_names(self.model):
            found[0].setdefault(name, []).append(Use(0, -1, -1, "the training information"))
        return found

    def _outer_reads(self, scope: Scope) -> Iterator[tuple[str, Use]]:
        for index, node in enumerate(self.nodes[scope.index]):
            for position, name in enumerate(node.input):
                if name and self._home(name, scope.index) != scope.index:
                    yield name, Use(scope.index, index, position)

    def _used_by_no_node(self, scope: Scope) -> Iterator[tuple[str, Use]]:
        """Outputs and annotations; and what graphs in a list, which are no scopes of their own, mention."""
        number, body = scope.index, scope.body
        for index, node in enumerate(self.nodes[number]):
            for attribute in node.attribute if node.attribute else ():
                for graph in attribute.graphs:
                    yield from ((name, Use(number, index, -1)) for name in names_within(graph))
        if isinstance(body, onnx.FunctionProto):
            yield from ((name, Use(number, -1, -1, "an output of the function")) for name in body.output)
            return
        yield from ((output.name, Use(number, -1, -1, "an output of the graph")) for output in body.output)
        for annotation in body.quantization_annotation:
            for entry in annotation.quant_parameter_tensor_names:
                yield entry.value, Use(number, -1, -1, "a quantisation annotation")

    @cached_property
    def _constants(self) -> list[set[str]]:
        """The constant tensors of each scope: followed from initialisers and Constant nodes to what is made of them."""
        found: list[set[str]] = [set() for _ in self.scopes]
        pending = [(number, name) for number, names in enumerate(self._stored) for name in names]
        for number, nodes in enumerate(self.nodes):
            pending += [
                (number, n.output[0]) for n in nodes if n.op_type == "Constant" and constant_value(n) is not None
            ]
        waits: dict[Place, int] = {}  # operands of a node that are not known to be constant yet
        while pending:
            home, name = pending.pop()
            if self._nested and self.owners.is_ambiguous(home, name):
                continue
            found[home].add(name)
            for use in self.uses(name, home):
                if use.position < 0:
                    continue
                place = use.scope, use.node
                if place not in waits:
                    node = self.node(place)
                    waits[place] = sum(map(bool, node.input)) if _is_foldable(node) else -1
                waits[place] -= 1
                if waits[place] == 0:
                    pending += [(place[0], output) for output in self.node(place).output if output]
        return found


def _is_foldable(node: onnx.NodeProto) -> bool:
    """Whether a node gives constants where it reads nothing else."""
    if not is_standard(node) or node.op_type in RANDOM or node.op_type in _QUANTISED:
        return False
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return not any(entry.ref_attr_name or entry.type in graphs for entry in node.attribute)
