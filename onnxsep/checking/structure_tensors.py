"""Tensors and attributes in the text form of a structure, and what is asked about nodes to write them."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto

from onnxsep.checking.structure_words import (
    SHOW,
    SHOW_EACH,
    list_text,
    string_text,
    tensor_type_text,
    word,
)
from onnxsep.model.io import Model, read_tensor

_SHOWN_ELEMENTS = 16
_FIELDS = {
    "FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "SPARSE_TENSOR": "sparse_tensor",
    "TYPE_PROTO": "tp", "FLOATS": "floats", "INTS": "ints", "STRINGS": "strings", "TENSORS": "tensors",
    "GRAPHS": "graphs", "SPARSE_TENSORS": "sparse_tensors", "TYPE_PROTOS": "type_protos",
}  # fmt: skip
_SHOWN_TYPES = frozenset(
    (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64, TensorProto.BOOL, TensorProto.STRING)
)


@dataclass(frozen=True)
class StructureTensor:
    """A tensor that the text declares: ``line`` is its index in the lines, ``where`` names it uniquely."""

    line: int
    where: str
    tensor: TensorProto


class Tensors:
    """The tensors that a text declares, and how their values and those of attributes are written."""

    def __init__(self, model: Model, lines: Sequence[str]) -> None:
        self._source = model
        self._lines = lines
        self._places: dict[str, int] = {}
        self.found: list[StructureTensor] = []

    def collect(self, where: str, tensor: TensorProto) -> None:
        """Remember a tensor that the next line declares."""
        count = self._places[where] = self._places.get(where, 0) + 1
        if count > 1:  # only in invalid models, or where nodes without outputs hold tensors
            where = f"{where} ({count})"
        self.found.append(StructureTensor(len(self._lines), where, tensor))

    def collect_sparse(self, where: str, sparse: onnx.SparseTensorProto) -> None:
        """Remember the two tensors of a sparse one."""
        self.collect(f"{where}, values", sparse.values)
        self.collect(f"{where}, indices", sparse.indices)

    def value(self, tensor: TensorProto, consumers: Collection[str] = ()) -> str:
        """`` = value`` where the tensor is small and no float; data of a quantised layer is not structure either."""
        quantised = set(consumers) == {"DequantizeLinear"}
        if tensor.data_type not in _SHOWN_TYPES or math.prod(tensor.dims) > _SHOWN_ELEMENTS or quantised:
            return ""
        if tensor.data_type == TensorProto.STRING:
            return f" = [{', '.join(map(string_text, tensor.string_data))}]"
        return f" = {json.dumps(read_tensor(self._source, tensor).tolist())}"

    def attribute(self, attribute: AttributeProto, where: str) -> str:
        """The value of an attribute that holds no graph."""
        if attribute.ref_attr_name:
            return f"parameter {word(attribute.ref_attr_name)}"
        kind = attribute_kind(attribute)
        values = getattr(attribute, kind)
        if kind in SHOW:
            return SHOW[kind](values)
        if kind in SHOW_EACH:
            return list_text(kind, values, SHOW_EACH[kind])
        if kind == "t":
            return self._tensor_attribute(where, values)
        if kind == "sparse_tensor":
            return self._sparse_attribute(where, values)
        show = self._tensor_attribute if kind == "tensors" else self._sparse_attribute
        return list_text(kind, [show(f"{where}[{index}]", value) for index, value in enumerate(values)], str)

    def _tensor_attribute(self, where: str, tensor: TensorProto) -> str:
        self.collect(where, tensor)
        return f"tensor {tensor_type_text(tensor)}{self.value(tensor)}"

    def _sparse_attribute(self, where: str, sparse: onnx.SparseTensorProto) -> str:
        self.collect_sparse(where, sparse)
        return f"sparse tensor {tensor_type_text(sparse)}"


def is_constant_tensor(node: onnx.NodeProto) -> bool:
    """A Constant whose value is one tensor; those with another attribute are written as nodes."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return False
    if len(node.attribute) != 1 or node.attribute[0].ref_attr_name or node.input:
        return False
    return bool(node.attribute[0].HasField("t") or node.attribute[0].HasField("sparse_tensor"))


def attribute_kind(attribute: AttributeProto) -> str:
    """The field that holds the value: by the declared type, or by what is there where old files declare none."""
    if attribute.type:
        return _FIELDS[AttributeProto.AttributeType.Name(attribute.type)]
    return next((field.name for field, _ in attribute.ListFields() if field.name in _FIELDS.values()), "i")


def graphs(attribute: AttributeProto) -> list[onnx.GraphProto]:
    """The graphs that an attribute holds."""
    return ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)


def uses(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str]]:
    """Every tensor that nodes read, with the operator that reads it; nested graphs included."""
    for node in nodes:
        yield from ((name, node.op_type) for name in node.input if name)
        for attribute in node.attribute:
            for graph in graphs(attribute):
                yield from uses(graph.node)
                yield from ((value.name, "output") for value in graph.output)


def metadata_of(infos: Iterable[onnx.ValueInfoProto]) -> dict[str, list[onnx.StringStringEntryProto]]:
    """The metadata of tensors, by name."""
    found: dict[str, list[onnx.StringStringEntryProto]] = {}
    for info in infos:
        if entries := list(getattr(info, "metadata_props", ())):
            found.setdefault(info.name, []).extend(entries)
    return found


def consumers(nodes: Iterable[onnx.NodeProto]) -> dict[str, set[str]]:
    """The operators that read each tensor, nested graphs included."""
    found: dict[str, set[str]] = {}
    for name, operator in uses(nodes):
        found.setdefault(name, set()).add(operator)
    return found
