"""What the runtime's quantiser looks for in a graph, found at once.

It goes through all nodes and all initialisers for each tensor that it quantises, so that its time grows with the square
of the graph's size. Its results stay the same, byte for byte.
"""

# ruff: noqa: D102 - methods of the runtime, which its own documentation describes
import contextlib
import itertools
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

import onnx

Nodes = dict[str, list[onnx.NodeProto]]

_one_at_a_time = threading.RLock()


class Lookups:
    """Goes before the runtime's ``ONNXModel`` in the bases of a class, some of whose methods it replaces.

    A node stays among the readers of a tensor that it has read once, so nodes that are found are asked again. Tables
    grow with what others append to the graph.
    """

    model: onnx.ModelProto

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)  # type: ignore[call-arg]
        self._forget()

    def _forget(self) -> None:
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._tensors_seen = 0
        self._forget_nodes()

    def _forget_nodes(self) -> None:
        self._readers: Nodes = {}
        self._makers: Nodes = {}
        self._nodes_seen = 0
        self._read_now: Nodes | None = None

    def _see_nodes(self) -> None:
        nodes = self.model.graph.node
        for node in nodes[self._nodes_seen :]:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            for name in node.output:
                self._makers.setdefault(name, []).append(node)
            self._read_now = None
        self._nodes_seen = len(nodes)

    def initializer(self) -> "_Initializers":
        return _Initializers(self)

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        tensors = self.model.graph.initializer
        for tensor in tensors[self._tensors_seen :]:
            self._tensors.setdefault(tensor.name, tensor)
        self._tensors_seen = len(tensors)
        return self._tensors.get(name)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        if self.get_initializer(tensor.name) is None:
            self.model.graph.initializer.append(tensor)

    def initializer_extend(self, inits: Collection[onnx.TensorProto]) -> None:
        self.model.graph.initializer.extend(inits)

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        self.get_initializer(tensor.name)
        super().remove_initializer(tensor)  # type: ignore[misc]
        self._tensors.pop(tensor.name, None)
        self._tensors_seen = len(self.model.graph.initializer)

    def remove_initializers(self, init_to_remove: Collection[onnx.TensorProto]) -> None:
        graph = self.model.graph
        _remove_first(graph.initializer, init_to_remove)
        names = {tensor.name for tensor in init_to_remove}
        for place in reversed([place for place, value in enumerate(graph.input) if value.name in names]):
            del graph.input[place]
        self._tensors, self._tensors_seen = {}, 0

    def remove_nodes(self, nodes_to_remove: Collection[onnx.NodeProto]) -> None:
        _remove_first(self.model.graph.node, nodes_to_remove)
        self._forget_nodes()

    def replace_gemm_with_matmul(self) -> Any:
        found = super().replace_gemm_with_matmul()  # type: ignore[misc]
        self._forget()
        return found

    def input_name_to_nodes(self) -> Nodes:
        self._see_nodes()
        if self._read_now is None:
            self._read_now = super().input_name_to_nodes()  # type: ignore[misc]
        return self._read_now

    def replace_node_input(self, node: onnx.NodeProto, before: str, after: str) -> None:
        super().replace_node_input(node, before, after)  # type: ignore[misc]
        self._readers.setdefault(after, []).append(node)
        self._read_now = None

    def replace_input_of_all_nodes(self, before: str, after: str) -> None:
        self._see_nodes()
        for node in self._readers.pop(before, ()):
            self.replace_node_input(node, before, after)

    def replace_input_of_nodes(self, before: str, after: str, names: Collection[str]) -> None:
        self._see_nodes()
        for node in tuple(self._readers.get(before, ())):
            if node.name in names:
                self.replace_node_input(node, before, after)

    def replace_output_of_all_nodes(self, before: str, after: str) -> None:
        self._see_nodes()
        for node in self._makers.pop(before, ()):
            super().replace_node_output(node, before, after)  # type: ignore[misc]
            self._makers.setdefault(after, []).append(node)


def _remove_first(protos: Any, unwanted: Collection[onnx.NodeProto] | Collection[onnx.TensorProto]) -> None:
    """Remove from a repeated field the first that equals each, which ``remove`` would do one at a time."""
    places: dict[str, list[int]] = {}
    for place, proto in enumerate(protos):
        places.setdefault(proto.name, []).append(place)
    gone: set[int] = set()
    for proto in unwanted:
        same = (place for place in places.get(proto.name, ()) if place not in gone and protos[place] == proto)
        gone.update(itertools.islice(same, 1))
    for place in sorted(gone, reverse=True):
        del protos[place]


class _Initializers(Sequence[onnx.TensorProto]):
    """The initialisers of a model that has ``Lookups``."""

    def __init__(self, owner: Lookups) -> None:
        self._tensors, self.find = owner.model.graph.initializer, owner.get_initializer

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, index: int) -> onnx.TensorProto: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[onnx.TensorProto]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._tensors[index]

    def __iter__(self) -> Iterator[onnx.TensorProto]:
        return iter(self._tensors)


@contextlib.contextmanager
def quick_find_by_name() -> Iterator[None]:
    """Let the modules of the runtime's quantiser, which have to be imported, use the tables of ``Lookups``.

    Threads that quantise wait for each other, because the modules are theirs together.
    """
    with _one_at_a_time:
        yield from _with_tables()


def _with_tables() -> Iterator[None]:
    original = sys.modules["onnxruntime.quantization.quant_utils"].find_by_name

    def find_by_name(name: str, items: Any) -> Any:
        return items.find(name) if isinstance(items, _Initializers) else original(name, items)

    tools = [module for name, module in sys.modules.items() if name.startswith("onnxruntime.quantization.")]
    users = [module for module in tools if getattr(module, "find_by_name", None) is original]
    for module in users:
        module.find_by_name = find_by_name  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.find_by_name = original  # type: ignore[attr-defined]
