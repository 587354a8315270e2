"""The content of a model as hashes: one of its bytes; and two, of its graph and of its weights."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxsep.errors import ModelLoadError
from onnxsep.model.external import is_external
from onnxsep.model.files import open_regular
from onnxsep.model.io import Model, read_tensor
from onnxsep.model.tensors import bodies, tensor_protos

_CHUNK = 1 << 20  # bytes
_VALUES = (
    *("external_data", "data_location", "raw_data", "float_data", "double_data", "int32_data", "int64_data"),
    "uint64_data",
)
_NOTES = ("doc_string", "metadata_props")
# Who made the file, and when, is no content.
_MODEL_NOTES = ("ir_version", "producer_name", "producer_version", "model_version", "domain", *_NOTES)


@dataclass(frozen=True)
class ContentHashes:
    """SHA-256 in hexadecimal. Where tensors lie, in the .onnx or in other files, does not count.

    Attributes:
        graph: Of nodes, attributes, names, inputs, functions and operator sets, not of doc strings, metadata and what
            follows from the rest: types and shapes of other tensors.
        weights: Of the values of all tensors.
    """

    graph: str
    weights: str


def content_hashes(model: Model) -> ContentHashes:
    """The hashes of a model; all of its weights are read.

    Raises:
        ModelLoadError: Weights cannot be read.
    """
    bare = without_values(model.proto)
    _clear([bare], _MODEL_NOTES)
    for body, _ in bodies(bare):
        _clear([body], ("doc_string", "metadata_props", "value_info"))
        _clear(body.node, _NOTES)
        _clear((output for output in body.output if isinstance(output, onnx.ValueInfoProto)), ("type", *_NOTES))
        _clear((read for read in body.input if isinstance(read, onnx.ValueInfoProto)), _NOTES)
    _clear(tensor_protos(bare), _NOTES)
    weights = hashlib.sha256()
    for tensor in tensor_protos(model.proto):
        if tensor.data_type != onnx.TensorProto.STRING:
            weights.update(read_tensor(model, tensor).tobytes())
    return ContentHashes(hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest(), weights.hexdigest())


def model_hash(model: Model) -> str:
    """SHA-256 of a model, in hexadecimal.

    That of its bytes, where all weights are in them; of a model that is as it was loaded, those of the file. Where some
    are in other files: that of the model without weights, and of each weight; which of them lie where does not count.

    Raises:
        ModelLoadError: Weights cannot be read.
    """
    external = [tensor for tensor in tensor_protos(model.proto) if is_external(tensor)]
    if not external:
        if model.pristine and model.path is not None and model.base_dir is not None:
            return _file_hash(model.base_dir / model.path.name)
        return hashlib.sha256(model.proto.SerializeToString()).hexdigest()
    hasher = hashlib.sha256(without_values(model.proto).SerializeToString(deterministic=True))
    for tensor in tensor_protos(model.proto):
        if tensor.data_type != onnx.TensorProto.STRING:
            hasher.update(read_tensor(model, tensor).tobytes())
    return hasher.hexdigest()


def _file_hash(path: Path) -> str:
    hasher = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    return hasher.hexdigest()


def without_values(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the numbers of its tensors; texts stay."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in tensor_protos(bare):
        if tensor.data_type != onnx.TensorProto.STRING:
            _clear([tensor], _VALUES)
    return bare


def _clear(protos: Iterable[object], fields: Iterable[str]) -> None:
    for proto in protos:
        known = proto.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]  # the oldest onnx has fewer
        for field in fields:
            if field in known:
                proto.ClearField(field)  # type: ignore[attr-defined]
