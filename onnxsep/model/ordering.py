"""The order of nodes: models whose nodes do not stand behind what they read, and the order in which they are stored.

ONNX wants nodes in topological order, runtimes sort them all the same, and so some exporters and editors do not.
Everything here works on sorted nodes: ``io.load`` sorts, and a result gets the order of its source back.
"""

from collections.abc import Collection, Iterator, Sequence

import onnx

from onnxsep.model.tensors import Body


def sorted_copy(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy with the nodes of every graph and function in topological order; None where they are so already.

    Nodes move no further than they must. Those in a circle, which no runtime runs, stay in the order that they have.
    """
    if all(_Body(body).is_sorted for body in _bodies(proto)):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for body in _bodies(copy):
        _Body(body).sort()
    return copy


def sort_nodes(body: Body) -> None:
    """Put the nodes of a graph or function, and of the graphs in it, into topological order, in place."""
    _Body(body).sort()


def arrange_like(proto: onnx.ModelProto, stored: onnx.ModelProto) -> None:
    """Give nodes the order that they have in another model; new ones stand before the next one that it has too.

    Nodes are known by what they compute: the name of their first output, which a replaced node's last successor keeps.

    Args:
        proto: a model in topological order, which is changed.
        stored: the model that it was made from.
    """
    functions = {(one.domain, one.name, one.overload): one for one in stored.functions}
    _arrange_body(proto.graph, stored.graph)
    for function in proto.functions:
        if (key := (function.domain, function.name, function.overload)) in functions:
            _arrange_body(function, functions[key])


def _arrange_body(body: Body, stored: Body) -> None:
    places = {name: index for index, node in enumerate(stored.node) if (name := _first_output(node))}
    following = len(stored.node)
    keys: list[int] = []
    for node in reversed(body.node):
        following = places.get(_first_output(node), following)
        keys.append(following)
    keys.reverse()
    for node, key in zip(body.node, keys, strict=True):
        if places.get(_first_output(node)) != key:
            continue
        graphs = {entry.name: entry.g for entry in stored.node[key].attribute if entry.HasField("g")}
        for attribute in node.attribute:
            if attribute.HasField("g") and attribute.name in graphs:
                _arrange_body(attribute.g, graphs[attribute.name])
    _arrange(body, sorted(range(len(keys)), key=keys.__getitem__))


def _first_output(node: onnx.NodeProto) -> str:
    return next((name for name in node.output if name), "")


def _arrange(body: Body, order: Sequence[int]) -> None:
    if list(order) == list(range(len(order))):
        return
    nodes = [body.node[index] for index in order]
    body.ClearField("node")
    body.node.extend(nodes)


def _bodies(proto: onnx.ModelProto) -> Iterator[Body]:
    yield proto.graph
    yield from proto.functions


class _Body:
    """A graph or function: what each node reads of it, and whether all nodes stand behind what they read."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._nested: list[_Body] = []
        self._reads = [self._read_by(node) for node in body.node]
        self._makers = {name: index for index, node in enumerate(body.node) for name in node.output if name}
        self.is_sorted: bool = all(one.is_sorted for one in self._nested) and all(
            self._makers.get(name, -1) < index for index, names in enumerate(self._reads) for name in names
        )

    def _read_by(self, node: onnx.NodeProto) -> Collection[str]:
        """Names that a node takes from its own graph, through nested graphs too."""
        found: list[str] = [name for name in node.input if name]
        for attribute in node.attribute if node.attribute else ():
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                self._nested.append(_Body(graph))
                found += self._nested[-1]._free_names()
        return found

    def _free_names(self) -> set[str]:
        """Names that a graph reads and does not make itself."""
        graph = self._body
        assert isinstance(graph, onnx.GraphProto)
        names = {name for reads in self._reads for name in reads}.union(value.name for value in graph.output)
        names.difference_update(self._makers, (value.name for value in graph.input))
        names.difference_update(tensor.name for tensor in graph.initializer)
        names.difference_update(tensor.values.name for tensor in graph.sparse_initializer)
        return names

    def sort(self) -> None:
        """Put the nodes into topological order, those of nested graphs too."""
        if self.is_sorted:
            return
        for one in self._nested:  # before its holder is moved
            one.sort()
        _arrange(self._body, self._order())

    def _order(self) -> list[int]:
        """Indices of the nodes: each as it stands, behind those that it still waits for."""
        waits = [[self._makers[name] for name in names if name in self._makers] for names in self._reads]
        order: list[int] = []
        done, entered = [False] * len(waits), [False] * len(waits)
        for start in range(len(waits)):
            stack = [start]
            while stack:  # no recursion: it may be a chain of thousands
                index = stack[-1]
                missing = [] if entered[index] else [other for other in waits[index] if not entered[other]]
                entered[index] = True
                if missing:
                    stack += reversed(missing)
                    continue
                stack.pop()
                if not done[index]:
                    done[index] = True
                    order.append(index)
        return order
