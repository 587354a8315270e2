"""Names of the tensors of a graph and of all graphs nested in it, which are one namespace."""

import string
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count, product

import onnx

from onnxsep.graph.scopes import scopes

_FIRST = string.ascii_letters  # of a name that is a word in C, too
_OTHERS = f"{string.ascii_letters}{string.digits}_"


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


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    """Every name of a tensor in a model."""
    names: set[str] = set()
    for scope in scopes(proto):
        body = scope.body
        names.update(name for node in body.node for name in (*node.input, *node.output))
        if isinstance(body, onnx.GraphProto):
            names.update(entry.name for entry in (*body.input, *body.output, *body.value_info))
            names.update(tensor.name for tensor in body.initializer)
        else:
            names.update((*body.input, *body.output))
    return names


def rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors of the main graph everywhere; no nested graph has a tensor of its own with such a name."""
    if not names:
        return
    for scope in scopes(proto):
        if scope.namespace:
            continue
        for node in scope.body.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name in names:
                        field[index] = names[name]
        if scope.index and isinstance(scope.body, onnx.GraphProto):
            for entry in scope.body.output:
                entry.name = names.get(entry.name, entry.name)
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def short_names(taken: Collection[str]) -> Iterator[str]:
    """The shortest names that are free: of letters, digits and underscores, with a letter first."""
    words = (
        first + "".join(rest) for length in count() for first in _FIRST for rest in product(_OTHERS, repeat=length)
    )
    return (name for name in words if name not in taken)


def shorten_tensors(proto: onnx.ModelProto, kept: Collection[str]) -> None:
    """Give the tensors of the main graph, and of those nested in it, short names, the shortest to those used most.

    Args:
        proto: The model; changed in place.
        kept: Names that stay.
    """
    uses = Counter(name for name in all_names(proto.graph) if name and name not in kept)
    free = short_names(kept)
    names = {name: next(free) for name, _ in uses.most_common()}
    rename_tensors(proto.graph, lambda name: names.get(name, name))
