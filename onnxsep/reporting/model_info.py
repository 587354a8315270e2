"""A model as its header and its files describe it."""

from onnxsep.errors import ModelLoadError
from onnxsep.model.content import model_hash
from onnxsep.model.external import is_external, slot_of
from onnxsep.model.files import printable
from onnxsep.model.io import Model
from onnxsep.model.tensors import tensor_protos
from onnxsep.reporting.records import ModelInfo

_HASHED_BELOW = 10**9  # bytes; more would take too long to read for nothing else


def model_info(model: Model) -> ModelInfo:
    """Producer, versions and sizes of a model."""
    proto = model.proto
    return ModelInfo(
        path=None if model.path is None else printable(model.path),
        producer=" ".join(part for part in (proto.producer_name, proto.producer_version) if part),
        ir_version=proto.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        size_bytes=size_bytes(model),
        sha256=sha256(model),
    )


def size_bytes(model: Model) -> int:
    """Bytes of the .onnx and of the slots of external data that it uses, each once."""
    slots = {slot_of(tensor) for tensor in tensor_protos(model.proto) if is_external(tensor)}
    own = model.path.stat().st_size if model.pristine and model.path else model.proto.ByteSize()
    return own + sum(slot.length or 0 for slot in slots)


def sha256(model: Model) -> str | None:
    """What tells the file of a model from others; None where it is too large, or cannot be read, for that alone."""
    if not (model.pristine and model.path) or size_bytes(model) > _HASHED_BELOW:
        return None
    try:
        return model_hash(model)
    except ModelLoadError:  # what needs the weights will say so
        return None
