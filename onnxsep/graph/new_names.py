"""New names for tensors and nodes."""

from collections.abc import Sequence

import onnx

from onnxsep.graph.scopes import Scope, training_names


class Names:
    """New names that collide with none in the model."""

    def __init__(self, model: onnx.ModelProto, all_scopes: Sequence[Scope]) -> None:
        self._tensors: dict[int, set[str]] = {scope.namespace: set() for scope in all_scopes}
        self._nodes: set[str] = set()
        for scope in all_scopes:
            taken = self._tensors[scope.namespace]
            body = scope.body
            for node in body.node:
                taken.update(node.input, node.output)
                self._nodes.add(node.name)
            if isinstance(body, onnx.FunctionProto):
                taken.update(body.input, body.output, (value.name for value in body.value_info))
                continue
            taken.update(value.name for value in (*body.input, *body.output, *body.value_info))
            taken.update(tensor.name for tensor in body.initializer)
            taken.update(note.tensor_name for note in body.quantization_annotation)
            taken.update(tensor.values.name for tensor in body.sparse_initializer)
        self._tensors[0].update(training_names(model))

    def tensor(self, scope: Scope, wanted: str) -> str:
        """The wanted name, or one like it, for a tensor of a scope."""
        return _fresh(self._tensors[scope.namespace], wanted)

    def node(self, wanted: str) -> str:
        """The wanted name, or one like it, for a node."""
        return _fresh(self._nodes, wanted)


def _fresh(taken: set[str], wanted: str) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
