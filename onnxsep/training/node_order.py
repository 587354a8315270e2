"""Nodes and what they read, the graphs that they hold included; which are needed, and in which order."""

import heapq
from collections.abc import Iterable, Iterator, Sequence

import onnx

from onnxsep.errors import UnsupportedModelError
from onnxsep.graph.scopes import display_name


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node holds."""
    return [graph for entry in node.attribute for graph in ([entry.g] if entry.HasField("g") else entry.graphs)]


def reads(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads from around it: its inputs, and what the graphs that it holds capture."""
    names = [name for name in node.input if name]
    for graph in branches(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        for inner in graph.node:
            names += [name for name in reads(inner) if name not in own]
            own.update(inner.output)
        names += [value.name for value in graph.output if value.name not in own]
    return list(dict.fromkeys(names))


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes in the order in which they run; what is in a branch in front of the node that holds it."""
    for node in nodes:
        for graph in branches(node):
            yield from every_node(graph.node)
        yield node


def needed_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            wanted.update(reads(node))
            found.append(node)
    return found[::-1]


def sorted_nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each behind those that it reads from. Sorted ones stay as they are, and so do those in a circle."""
    made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{made[name] for name in reads(node) if name in made} for node in nodes]
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(needs):
        for other in needed:
            readers.setdefault(other, []).append(index)
    ready = [index for index, needed in enumerate(needs) if not needed]  # ascending, so a heap
    order = []
    while ready:
        order.append(index := heapq.heappop(ready))
        for reader in readers.get(index, ()):
            needs[reader].discard(index)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    return [nodes[index] for index in order] if len(order) == len(nodes) else list(nodes)


def check_sorted(nodes: Sequence[onnx.NodeProto], known: set[str], outputs: dict[str, str]) -> None:
    """Refuse nodes that read what no node before them computes.

    Raises:
        UnsupportedModelError: Names the first of them.
    """
    known = {"", *known}
    for node in nodes:
        for name in reads(node):
            if name not in known:
                raise UnsupportedModelError(
                    f"{node.op_type} {display_name(node)!r} reads {name!r}, which nothing computes before it;"
                    " is it a valid ONNX graph?"
                )
        known.update(node.output)
    for name, source in outputs.items():
        if source not in known:
            raise UnsupportedModelError(f"nothing computes the output {name!r}; is it a valid ONNX graph?")
