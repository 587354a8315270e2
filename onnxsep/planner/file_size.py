"""How large the file of a rewritten model will be, from its skeleton: nodes, names, metadata and weights as written."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import onnx

from onnxsep.engine.replacements import Replacement
from onnxsep.engine.surgery import replace_matches
from onnxsep.model.external import is_external
from onnxsep.model.io import Model
from onnxsep.model.tensors import storage_bytes, tensor_protos
from onnxsep.reporting.model_info import size_bytes


class FileSizes(Protocol):
    """Bytes of what is shipped of one model with some of its layers replaced: of the model itself, or quantised."""

    original: int
    """Of the source's file."""

    @property
    def source(self) -> int:
        """Of what is shipped with no layer replaced."""

    def of(self, rows: Sequence[Replacement]) -> int:
        """Of what is shipped with these forms."""

    def change(self, row: Replacement) -> int:
        """What one form adds."""

    def prepare(self, rows: Iterable[Replacement]) -> None:
        """Told of forms that will be asked for."""


class FileSize:
    """FileSizes of one model with some of its layers replaced.

    Args:
        model: The source.
        light: Its skeleton (``onnxsep.graph.shapes``), in which the layers were found.
    """

    def __init__(self, model: Model, light: onnx.ModelProto) -> None:
        self._light = light
        self._original = _written(light)
        self.source = self.original = size_bytes(model)

    def of(self, rows: Sequence[Replacement]) -> int:
        """Bytes of the .onnx and of its data files."""
        if not rows:
            return self.source
        changed = onnx.ModelProto()
        changed.CopyFrom(self._light)
        replace_matches(changed, rows, None)
        return self.source + _written(changed) - self._original

    def change(self, row: Replacement) -> int:
        """Bytes that one form adds."""
        return self.of([row]) - self.source

    def prepare(self, rows: Iterable[Replacement]) -> None:
        """Nothing: sizes are found at once."""


def _written(light: onnx.ModelProto) -> int:
    """What a skeleton would take with its data."""
    total, own_graph = 0, light.graph.ByteSize()
    for tensor in tensor_protos(light):
        if is_external(tensor):
            own, data = tensor.ByteSize(), storage_bytes(tensor) or 0
            plain = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type).ByteSize()
            full = plain + 1 + _varint(data) + data
            total += full + _varint(full) - own - _varint(own)
    # Before the graph, too, stands how long it is.
    return light.ByteSize() + total + _varint(own_graph + total) - _varint(own_graph)


def _varint(value: int) -> int:
    """Bytes of a length as protobuf writes it."""
    return max(-(-value.bit_length() // 7), 1)
