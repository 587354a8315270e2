"""Names of the tensors of a graph and of all graphs nested in it, which are one namespace."""

from collections.abc import Callable, Collection, Iterator

import onnx


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name of a tensor in a graph and those nested in it."""
    yield from (entry.name for entry in (*graph.input, *graph.output, *graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for nested in graphs_of(node):
            yield from all_names(nested)


def rename_tensors(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    """Give all tensors of a graph, and of those nested in it, other names."""
    for entry in (*graph.input, *graph.output, *graph.value_info):
        entry.name = new(entry.name)
    for weight in graph.initializer:
        weight.name = new(weight.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = new(tensor.values.name)
    del graph.quantization_annotation[:]
    for node in graph.node:
        for field_ in (node.input, node.output):
            for index, name in enumerate(field_):
                if name:
                    field_[index] = new(name)
        for nested in graphs_of(node):
            rename_tensors(nested, new)


def free_name(base: str, taken: Collection[str]) -> str:
    """A name that is not taken, the given one if possible."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def merge_initializers(graph: onnx.GraphProto) -> None:
    """Copies of a weight that were not quantised have its name again, and one of them is enough."""
    seen: set[str] = set()
    for tensor in list(graph.initializer):
        if tensor.name in seen:
            graph.initializer.remove(tensor)
        seen.add(tensor.name)
