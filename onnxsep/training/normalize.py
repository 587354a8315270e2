"""A private copy of a graph in a plain form: what :mod:`onnxsep.training.bridge` can turn into torch operations.

Exporters write the same network in many ways: weights in Constant nodes, behind Identity nodes or among the graph's
inputs, shapes computed by a dozen small nodes, float16 or float64, local functions, branches of which one is never
taken. Here all of that becomes initialisers in float32 and the nodes that the outputs need. Names of weights stay,
because they go back by name.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner, numpy_helper

from onnxsep.errors import UnsupportedModelError
from onnxsep.graph.scopes import constant_value, is_standard, scopes
from onnxsep.model.external import is_external
from onnxsep.model.functions import too_many_calls
from onnxsep.model.io import Model, read_tensor
from onnxsep.training.node_order import branches, check_sorted, needed_nodes, reads, sorted_nodes
from onnxsep.training.reference import evaluate

_T = onnx.TensorProto


_FLOATS = {_T.FLOAT16, _T.BFLOAT16, _T.DOUBLE}  # what becomes float32


_FLOAT_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16))


# Operators whose output is no float although an input may be one, so that folding them loses no weight.
_READ_ONLY = {"Shape", "Size", "Cast"}


_NEVER_FOLDED = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}


_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Normalized:
    """A graph in plain form.

    Attributes:
        graph: The nodes that the outputs need, sorted; every constant that they read is an initialiser, also where they
            are in a branch; names are unique over all branches; the inputs are those that the nodes read. No Constant,
            no Identity; floats are float32.
        opset: The version of ONNX's own operators.
        versions: The version of each domain's operators; "" is ONNX's own.
        outputs: The tensor that each output is, for those that can be trained on (:func:`trained_outputs`), or for all
            where there are none.
        stored: The stored type of each float tensor that can be written back (:func:`writable_tensors`).
    """

    graph: onnx.GraphProto
    opset: int
    versions: dict[str, int]
    outputs: dict[str, str]
    stored: dict[str, np.dtype[Any]]


def normalized_copy(model: Model) -> Normalized:
    """Copy a model's main graph into plain form, with its weights loaded.

    Raises:
        ModelLoadError: An external weight cannot be read.
        UnsupportedModelError: The model has sparse initialisers, or nodes that read what nothing computes.
    """
    return _Normalizer(model).run()


def trained_outputs(graph: onnx.GraphProto) -> list[str]:
    """The outputs that a model can be trained on: tensors of floats that depend on an input.

    Classes, labels as text and boxes' numbers have no gradients; a weight that is given out is no work of the network.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    varying: set[str] = set()
    found = [value.name for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    while found:  # nodes need not be sorted
        name = found.pop()
        if name and name not in varying:
            varying.add(name)
            found += (output for node in readers.get(name, ()) for output in node.output)
    floats = {_T.FLOAT, _T.UNDEFINED, *_FLOATS}
    return [
        value.name
        for value in graph.output
        if value.name in varying
        and value.type.WhichOneof("value") in (None, "tensor_type")
        and value.type.tensor_type.elem_type in floats
    ]


class _Normalizer:
    def __init__(self, model: Model) -> None:
        self._stored: dict[str, np.dtype[Any]] = {}
        self._constants: dict[str, NDArray[Any]] = {}
        self._aliases: dict[str, str] = {}
        self._own_names = set(writable_tensors(model.proto))
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        if reason := too_many_calls(proto):
            raise UnsupportedModelError(f"{reason}; write it with fewer functions")
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        self._model = Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)
        self._versions = {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in proto.opset_import
        }
        self._opset = self._versions.setdefault("", 1)
        weights = {tensor.name for tensor in proto.graph.initializer}  # which old models list among the inputs
        inputs = (value.name for value in proto.graph.input)
        self._taken = {name for name in inputs if name not in weights}  # names of tensors so far, in all branches

    def run(self) -> Normalized:
        graph = self._model.proto.graph
        wanted = trained_outputs(graph) or [value.name for value in graph.output]
        nodes = self._plain(graph, {})
        outputs = {name: self._aliases.get(name, name) for name in wanted}
        needed = needed_nodes(nodes, outputs.values())
        plain = onnx.GraphProto(name=graph.name, node=needed)
        used = {name for node in needed for name in reads(node)} | set(outputs.values())
        check_sorted(needed, {*self._constants, *(value.name for value in graph.input)}, outputs)
        for name, values in self._constants.items():
            if name in used:
                plain.initializer.append(numpy_helper.from_array(values, name))
        plain.input.extend(value for value in graph.input if value.name in used and value.name not in self._constants)
        plain.value_info.extend(graph.value_info)  # for converters that look up shapes
        stored = {name: dtype for name, dtype in self._stored.items() if name in used}
        return Normalized(plain, self._opset, self._versions, outputs, stored)

    def _plain(self, graph: onnx.GraphProto, renamed: dict[str, str]) -> list[onnx.NodeProto]:
        """The nodes of a graph without constants, and with nested graphs that are alike.

        Args:
            graph: The main graph, or one that a node holds; it is changed.
            renamed: New names of what the graph, or one around it, computes; another branch has used the old ones.
        """
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedModelError(f"the weight {name!r} is stored as a sparse tensor; store it as a dense one")
        renamed = dict(renamed)
        if graph is not self._model.proto.graph:
            for value in graph.input:
                value.name = self._unique(value.name, renamed)
        for tensor in graph.initializer:
            values = read_tensor(self._model, tensor)
            self._keep(self._unique(tensor.name, renamed), values)
        nodes: list[onnx.NodeProto] = []
        for node in sorted_nodes(graph.node):
            for index, name in enumerate(node.input):
                node.input[index] = self._current(name, renamed)
            for index, name in enumerate(node.output):
                node.output[index] = self._unique(name, renamed) if name else name
            taken = self._taken_branch(node)
            if taken is not None:
                nodes += self._plain(taken, renamed)
                ends = (value.name for value in taken.output)
                self._aliases.update((name, end) for name, end in zip(node.output, ends, strict=False) if name)
                continue
            if is_standard(node):
                for branch in branches(node):
                    inner = self._plain(branch, renamed)
                    inner = needed_nodes(inner, (value.name for value in branch.output))
                    del branch.node[:], branch.initializer[:]
                    branch.node.extend(inner)
            if not self._is_constant(node):
                _convert_types(node.attribute)
                nodes.append(node)
        if graph is not self._model.proto.graph:
            for value in graph.output:
                value.name = self._current(value.name, renamed)
        return nodes

    def _unique(self, name: str, renamed: dict[str, str]) -> str:
        """A name for a tensor that no other one has in any branch."""
        found = name
        while found in self._taken:
            found += "'"
        self._taken.add(found)
        renamed[name] = found
        return found

    def _current(self, name: str, renamed: dict[str, str]) -> str:
        name = renamed.get(name, name)
        return self._aliases.get(name, name)

    def _taken_branch(self, node: onnx.NodeProto) -> onnx.GraphProto | None:
        """The branch that an If always takes, where its condition is known now."""
        if node.op_type != "If" or not is_standard(node) or node.input[0] not in self._constants:
            return None
        taken = "then_branch" if self._constants[node.input[0]].all() else "else_branch"
        return next((entry.g for entry in node.attribute if entry.name == taken), None)

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        if values.dtype in _FLOAT_DTYPES and name in self._own_names:
            self._stored[name] = values.dtype
        self._constants[name] = _as_float32(values)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether the node's outputs are known now; they are then constants or other names of tensors."""
        if not is_standard(node):
            return False
        node.domain = ""
        self._read_attributes(node)
        if node.op_type == "Identity":
            self._aliases[node.output[0]] = node.input[0]
            return True
        tensor = constant_value(node)
        if tensor is not None:
            self._keep(node.output[0], read_tensor(self._model, tensor))
            return True
        return self._is_folded(node)

    def _read_attributes(self, node: onnx.NodeProto) -> None:
        """Put external tensors of attributes into the node: others would open any file that they name."""
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                if is_external(tensor):
                    tensor.CopyFrom(numpy_helper.from_array(read_tensor(self._model, tensor), tensor.name))

    def _is_folded(self, node: onnx.NodeProto) -> bool:
        """Fold what computes shapes, axes and pads; an expression of float weights stays, so that they can be tuned."""
        given = [name for name in node.input if name]
        if node.op_type in _NEVER_FOLDED or any(name not in self._constants for name in given):
            return False
        if branches(node):
            return False
        values = {name: self._constants[name] for name in given}
        if node.op_type not in _READ_ONLY and any(array.dtype.kind == "f" for array in values.values()):
            return False
        results = evaluate(node, values, self._opset)
        if results is None or (values and any(_is_cast_of_floats(node, array, values) for array in results)):
            return False
        self._constants.update(
            (name, _as_float32(array)) for name, array in zip(node.output, results, strict=True) if name
        )
        return True


def writable_tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors that can be written back, by name: initialisers and values of Constant nodes.

    Those of the main graph, and those of branches in it whose name is the only one of its kind.
    """
    found: dict[str, onnx.TensorProto] = {}
    count: Counter[str] = Counter()
    for scope in scopes(proto):
        if scope.namespace:  # a function may be called more than once
            continue
        here = {node.output[0]: value for node in scope.body.node if (value := constant_value(node)) is not None}
        if isinstance(scope.body, onnx.GraphProto):
            here.update((tensor.name, tensor) for tensor in scope.body.initializer)
        count.update(here.keys())
        found = {**here, **found}
    main = {tensor.name for tensor in proto.graph.initializer} | {
        name for node in proto.graph.node for name in node.output
    }
    return {name: tensor for name, tensor in found.items() if count[name] == 1 or name in main}


def _as_float32(values: NDArray[Any]) -> NDArray[Any]:
    """Floats of every width as float32, finite ones finite; other types as they are. Always an array of its own."""
    if values.dtype not in _FLOAT_DTYPES:
        return np.array(values)
    if values.dtype == np.float64:
        values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    return np.array(values, np.float32)


def _is_cast_of_floats(node: onnx.NodeProto, result: NDArray[Any], values: dict[str, NDArray[Any]]) -> bool:
    floats = any(array.dtype.kind == "f" for array in values.values())
    return node.op_type == "Cast" and floats and result.dtype in _FLOAT_DTYPES


def _convert_types(attributes: Iterable[onnx.AttributeProto]) -> None:
    """Attributes that name a float type name float32, and tensors in attributes are float32."""
    for attribute in attributes:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _FLOATS:
            attribute.i = _T.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(numpy_helper.from_array(_as_float32(numpy_helper.to_array(attribute.t))))
