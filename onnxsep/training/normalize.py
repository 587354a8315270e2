"""A private copy of a graph in a plain form: what :mod:`onnxsep.training.bridge` can turn into torch operations.

Exporters write the same network in many ways: weights in Constant nodes, behind Identity nodes or among the graph's
inputs, shapes computed by a dozen small nodes, float16 or float64, local functions. Here all of that becomes
initialisers in float32 and the nodes that the outputs need. Names of weights stay, because they go back by name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import UnsupportedModelError
from onnxsep.external import is_external
from onnxsep.functions import too_many_calls
from onnxsep.io import Model, read_tensor
from onnxsep.scopes import constant_value, display_name, is_standard

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
        graph: The nodes that the outputs need, sorted; every constant that they read is an initialiser; the inputs are
            those that a run needs. No Constant, no Identity; floats are float32.
        opset: The version of ONNX's own operators.
        outputs: For each output of the model the tensor that it is.
        stored: The stored type of each float tensor that is an initialiser or the value of a Constant node of the
            main graph: the tensors that can be written back.
    """

    graph: onnx.GraphProto
    opset: int
    outputs: dict[str, str]
    stored: dict[str, np.dtype[Any]]


def normalized_copy(model: Model) -> Normalized:
    """Copy a model's main graph into plain form, with its weights loaded.

    Raises:
        ModelLoadError: An external weight cannot be read.
        UnsupportedModelError: The model has sparse initialisers, or nodes that are not sorted.
    """
    return _Normalizer(model).run()


class _Normalizer:
    def __init__(self, model: Model) -> None:
        self._stored: dict[str, np.dtype[Any]] = {}
        self._constants: dict[str, NDArray[Any]] = {}
        self._aliases: dict[str, str] = {}
        own_names = _weight_names(model.proto)
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        if reason := too_many_calls(proto):
            raise UnsupportedModelError(f"{reason}; write it with fewer functions")
        if proto.functions:
            proto = inliner.inline_local_functions(proto)
        self._model = Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)
        self._own_names = own_names
        self._opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)

    def run(self) -> Normalized:
        graph = self._model.proto.graph
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedModelError(f"the weight {name!r} is stored as a sparse tensor; store it as a dense one")
        for tensor in graph.initializer:
            self._keep(tensor.name, read_tensor(self._model, tensor))
        nodes = []
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = self._aliases.get(name, name)
            if not self._is_constant(node):
                _convert_types(node.attribute)
                nodes.append(node)
        outputs = {value.name: self._aliases.get(value.name, value.name) for value in graph.output}
        needed = _needed(nodes, outputs.values())
        plain = onnx.GraphProto(name=graph.name, node=needed)
        used = {name for node in needed for name in node.input} | set(outputs.values())
        _check_sorted(needed, {*self._constants, *(value.name for value in graph.input)}, outputs)
        for name, values in self._constants.items():
            if name in used:
                plain.initializer.append(numpy_helper.from_array(values, name))
        plain.input.extend(value for value in graph.input if value.name not in self._constants)
        stored = {name: dtype for name, dtype in self._stored.items() if name in used}
        return Normalized(plain, self._opset, outputs, stored)

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
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return False
        values = {name: self._constants[name] for name in given}
        if node.op_type not in _READ_ONLY and any(array.dtype.kind == "f" for array in values.values()):
            return False
        results = _evaluate(node, values, self._opset)
        if results is None or (values and any(_is_cast_of_floats(node, array, values) for array in results)):
            return False
        self._constants.update(
            (name, _as_float32(array)) for name, array in zip(node.output, results, strict=True) if name
        )
        return True


def _weight_names(proto: onnx.ModelProto) -> set[str]:
    """Names of what can be written back: initialisers and values of Constant nodes of the main graph."""
    names = {tensor.name for tensor in proto.graph.initializer}
    return names | {node.output[0] for node in proto.graph.node if constant_value(node) is not None}


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


def _evaluate(node: onnx.NodeProto, values: dict[str, NDArray[Any]], opset: int) -> Sequence[NDArray[Any]] | None:
    """The outputs of one node, by ONNX's reference evaluator; None where that cannot compute them."""
    graph = onnx.GraphProto(name="constant", node=[node])
    for name in filter(None, node.output):
        graph.output.add().name = name
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    small = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(small).run(None, {})
    except Exception:  # it raises whatever the operator's code raises; the node is then computed at run time
        return None
    arrays = [np.asarray(array) for array in results]
    return arrays if len(arrays) == len(node.output) else None


def _convert_types(attributes: Iterable[onnx.AttributeProto]) -> None:
    """Attributes that name a float type name float32, and tensors in attributes are float32."""
    for attribute in attributes:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _FLOATS:
            attribute.i = _T.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(numpy_helper.from_array(_as_float32(numpy_helper.to_array(attribute.t))))


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _check_sorted(nodes: Sequence[onnx.NodeProto], known: set[str], outputs: dict[str, str]) -> None:
    known = {"", *known}
    for node in nodes:
        for name in node.input:
            if name not in known:
                raise UnsupportedModelError(
                    f"{node.op_type} {display_name(node)!r} reads {name!r}, which nothing computes before it;"
                    " sort the nodes of the graph"
                )
        known.update(node.output)
    for name, source in outputs.items():
        if source not in known:
            raise UnsupportedModelError(f"nothing computes the output {name!r}; is it a valid ONNX graph?")
