"""The size of a model as it will lie on the disk, and after zip."""

import zlib
from collections.abc import Iterator

from onnxsep.model.external import is_external, slot_of
from onnxsep.model.io import Model
from onnxsep.model.tensors import tensor_protos

LEVEL = 6  # what zip takes by default
MEASURED_BELOW = 10**9  # bytes; above it the packing alone would take minutes
_CHUNK = 1 << 20


def zipped_bytes(model: Model) -> int:
    """Bytes of the .onnx and the external data that it uses, after deflate at level 6."""
    packer, total = zlib.compressobj(LEVEL), 0
    for chunk in _chunks(model):
        total += len(packer.compress(chunk))
    return total + len(packer.flush())


def _chunks(model: Model) -> Iterator[bytes]:
    content = model.proto.SerializeToString()
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]
    seen = set()
    for tensor in tensor_protos(model.proto):
        if is_external(tensor) and (slot := slot_of(tensor)) not in seen:
            seen.add(slot)
            yield model.data_folder().read(tensor).tobytes()
