"""A float32 copy of a model in float64 or bfloat16.

ONNX Runtime has no CPU kernels for many operators in these types, Conv among them. Both models of a comparison are
then copied to float32 and compared there.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.model.io import Model, read_tensor

_T = onnx.TensorProto
_NAMES: dict[int, str] = {_T.DOUBLE: "float64", _T.BFLOAT16: "bfloat16"}
# Attributes that name an element type, in ONNX's own operators. BitCast's "to" stays: bits cannot change their width.
_TYPE_ATTRIBUTES = {
    "to",
    "dtype",
    "output_datatype",
    "output_dtype",
    "precision",
    "softmax_precision",
    "stash_type",
}
_LARGEST = float(np.finfo(np.float32).max)


def float32_copy(model: Model) -> Model:
    """Copy a model, with float32 in the place of float64 and bfloat16.

    Initialisers, tensors in attributes, the types of inputs, outputs and value infos, and attributes that name a type
    are converted, in subgraphs and functions too. float16 stays. Weights in files are read if they are converted, and
    stay in their files otherwise. Values beyond float32's range become its largest, never infinite.

    Raises:
        ModelLoadError: an external weight cannot be read.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    copy = Model(proto=proto, base_dir=model.base_dir, follow_links=model.follow_links)
    _Visitor(copy, convert=True).visit()
    return copy


def held_types(model: Model) -> tuple[str, ...]:
    """Which of "bfloat16" and "float64" the model holds: those that ``float32_copy`` would convert."""
    visitor = _Visitor(model, convert=False)
    visitor.visit()
    return tuple(sorted(visitor.found))


def as_float32(array: np.ndarray) -> np.ndarray:
    """The array in float32, if it is float64 or bfloat16; finite values stay finite. Other types are returned as is."""
    if array.dtype.name not in _NAMES.values():
        return array
    wide = array.astype(np.float64)
    return np.where(np.isfinite(wide), np.clip(wide, -_LARGEST, _LARGEST), wide).astype(np.float32)


class _Visitor:
    """Finds, and on request converts, whatever holds or names one of the two types."""

    def __init__(self, model: Model, *, convert: bool) -> None:
        self._model = model
        self._convert = convert
        self.found: set[str] = set()

    def visit(self) -> None:
        self._graph(self._model.proto.graph)
        for function in self._model.proto.functions:
            self._nodes(function.node)
            self._attributes(function.attribute_proto, standard=False)
            self._values(function.value_info)

    def _is_held(self, elem_type: int) -> bool:
        if elem_type not in _NAMES:
            return False
        self.found.add(_NAMES[elem_type])
        return self._convert

    def _graph(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self._tensor(tensor)
        for sparse in graph.sparse_initializer:
            self._tensor(sparse.values)
        for values in (graph.input, graph.output, graph.value_info):
            self._values(values)
        self._nodes(graph.node)

    def _values(self, values: Iterable[onnx.ValueInfoProto]) -> None:
        for value in values:
            self._type(value.type)

    def _type(self, kind: onnx.TypeProto) -> None:
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            held = getattr(kind, which)
            if self._is_held(held.elem_type):
                held.elem_type = _T.FLOAT
        elif which in ("sequence_type", "optional_type"):
            self._type(getattr(kind, which).elem_type)
        elif which == "map_type":
            self._type(kind.map_type.value_type)

    def _nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            names_a_type = node.domain in ("", "ai.onnx") and node.op_type != "BitCast"
            self._attributes(node.attribute, standard=names_a_type)

    def _attributes(self, attributes: Iterable[onnx.AttributeProto], *, standard: bool) -> None:
        for attribute in attributes:
            if attribute.ref_attr_name:
                continue
            if standard and attribute.name in _TYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT:
                if self._is_held(attribute.i):
                    attribute.i = _T.FLOAT
                continue
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                self._tensor(tensor)
            sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for entry in (*sparse, *attribute.sparse_tensors):
                self._tensor(entry.values)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                self._graph(graph)
            for kind in (*([attribute.tp] if attribute.HasField("tp") else []), *attribute.type_protos):
                self._type(kind)

    def _tensor(self, tensor: onnx.TensorProto) -> None:
        if not self._is_held(tensor.data_type):
            return
        converted = numpy_helper.from_array(as_float32(read_tensor(self._model, tensor)))
        tensor.data_type = converted.data_type
        tensor.raw_data = converted.raw_data
        for field in ("double_data", "int32_data", "external_data", "data_location"):
            tensor.ClearField(field)
