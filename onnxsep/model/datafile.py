"""The one data file of a model that is saved: which tensors go to it, where each one lies in it, and writing it."""

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import EncodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from onnxsep.errors import ModelSaveError
from onnxsep.model.external import Slot, is_external, set_slot, slot_of
from onnxsep.model.files import Identity, NewFiles, copy_bytes, finish
from onnxsep.model.io import Model
from onnxsep.model.tensors import DATA_FIELDS, decode, element_bits, label, storage_bytes, tensor_protos, walk

# protobuf cannot write messages of 2 GB; the margin is for readers that need some bytes more.
MAX_PROTO_BYTES = 2**31 - 2**24
# Smaller tensors stay in the .onnx even where the others go to a data file: shapes and axes are needed to read a graph.
MIN_DATA_BYTES = 1024
_PAGE = 4096


def write_data(
    model: Model, used: Mapping[str, Identity], externalize: Collection[str], new: NewFiles
) -> tuple[bytes, tuple[Path, ...]]:
    """Write the new data file of a model, if it needs one.

    Args:
        model: The model; it is not changed.
        used: Which file each location of external data in the model is.
        externalize: Initialisers of the main graph that go to the data file, if the model has external data at all.
        new: The files of this save.

    Returns:
        The content of the .onnx, and the data file.

    Raises:
        ModelSaveError: The model is too large for an .onnx file even without its large tensors.
        ModelLoadError: External data of the model cannot be read.
    """
    walked = list(walk(model.proto))
    tensors = [tensor for tensor, _ in walked]
    moved = {index for index, tensor in enumerate(tensors) if is_external(tensor)}
    movable = {index for index, (tensor, allowed) in enumerate(walked) if allowed and _is_movable(tensor)}
    if moved:
        initializers = range(len(model.proto.graph.initializer))  # the walk begins with them
        moved |= {index for index in movable.intersection(initializers) if tensors[index].name in externalize}
    path = new.target.with_name(f"{new.target.name}.{secrets.token_hex(4)}.data")
    for chosen in (moved, moved | movable):
        slots = _lay_out(used, tensors, chosen, path.name)
        content = _serialize(model.proto, tensors, slots)
        if content is None:
            continue
        if not slots:
            return content, ()
        _write(model, tensors, slots, path, new)
        return content, (path,)
    raise ModelSaveError(
        f"{new.target} was not written: without its large tensors the model still has over {MAX_PROTO_BYTES} bytes,"
        " more than an ONNX file can hold."
    )


def _is_movable(tensor: onnx.TensorProto) -> bool:
    """Whether an inline tensor is large enough, and of a type, to be written to a data file."""
    if is_external(tensor) or tensor.HasField("segment"):
        return False
    # Decoding unpacks the types that share a byte, so their bytes must be there as they are.
    whole = tensor.HasField("raw_data") or (element_bits(tensor.data_type) or 0) >= 8
    return whole and (storage_bytes(tensor) or 0) >= MIN_DATA_BYTES


def _lay_out(
    used: Mapping[str, Identity], tensors: list[onnx.TensorProto], moved: Collection[int], location: str
) -> dict[int, Slot]:
    """Where each moved tensor goes in the new data file; tensors that shared a slot share the new one."""
    slots: dict[int, Slot] = {}
    shared: dict[tuple[object, ...], Slot] = {}
    end = 0
    for index in sorted(moved):
        key: tuple[object, ...] = (index,)
        length = storage_bytes(tensors[index]) or 0
        if is_external(tensors[index]):
            origin = slot_of(tensors[index])
            length = origin.length
            key = (used[origin.location], origin.offset, length)
        if key not in shared:
            alignment = _PAGE if length >= _PAGE else 64
            start = -(-end // alignment) * alignment
            shared[key] = Slot(location, start, length)
            end = start + length
        slots[index] = shared[key]
    return slots


def _write(model: Model, tensors: list[onnx.TensorProto], slots: Mapping[int, Slot], path: Path, new: NewFiles) -> None:
    with new.create(path) as file:
        end = 0
        for index, slot in slots.items():
            if slot.offset < end:
                continue  # shares the slot of an earlier tensor
            file.seek(slot.offset)
            end = slot.offset + slot.length
            _write_tensor(model, tensors[index], file)
            if file.tell() != end:
                raise ModelSaveError(
                    f"{new.target} was not written: {label(tensors[index])} has data that does not fit it."
                )
        finish(file, end)


def _write_tensor(model: Model, tensor: onnx.TensorProto, file: BinaryIO) -> None:
    if is_external(tensor):
        origin = slot_of(tensor)
        with model.data_folder().open(origin.location) as source:
            source.seek(origin.offset)
            copy_bytes(source, file, origin.length)
    else:
        file.write(tensor.raw_data if tensor.HasField("raw_data") else decode(tensor).tobytes())


def _serialize(proto: onnx.ModelProto, tensors: list[onnx.TensorProto], slots: Mapping[int, Slot]) -> bytes | None:
    """The bytes of the proto with tensors moved to slots; None where they are more than ``MAX_PROTO_BYTES``."""
    moved = [tensors[index] for index in slots if not is_external(tensors[index])]
    everything = sum(map(_inline_bytes, tensors))
    if everything - sum(map(_inline_bytes, moved)) > MAX_PROTO_BYTES:
        return None  # the attempt would need twice the memory
    if slots:
        copy = onnx.ModelProto()
        if everything <= MAX_PROTO_BYTES:
            copy.CopyFrom(proto)
        else:
            _copy_without_data(proto, copy, {id(tensor) for tensor in moved})
        copies = list(tensor_protos(copy))
        for index, slot in slots.items():
            if not is_external(copies[index]):
                for field in DATA_FIELDS:
                    copies[index].ClearField(field)
            set_slot(copies[index], slot)
        proto = copy
    try:
        content: bytes = proto.SerializeToString()
    except (EncodeError, ValueError):  # over 2 GB; the class depends on the version of protobuf
        return None
    return content if len(content) <= MAX_PROTO_BYTES else None


def _inline_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that the data of a tensor takes in the proto, or a few more; raw data is measured without a copy."""
    if is_external(tensor):
        return 0
    return (storage_bytes(tensor) or 0) + 32 if tensor.HasField("raw_data") else tensor.ByteSize()


def _copy_without_data(source: Message, target: Message, tensors: Collection[int]) -> None:
    """Copy a message but for the data of some tensors, given by id(): all of it would need the memory twice.

    The caller must hold the tensors, so that protobuf hands out the same objects again.
    """
    if not _holds(source, tensors):
        target.CopyFrom(source)
        return
    if len(UnknownFieldSet(source)):
        raise ModelSaveError(
            f"A {source.DESCRIPTOR.name} has fields that this version of onnx ({onnx.__version__}) does not know, and"
            " the model is too large to carry them over. Update onnx."
        )
    for field, value in source.ListFields():
        if id(source) in tensors and field.name in DATA_FIELDS:
            continue
        if isinstance(value, Message):
            _copy_without_data(value, getattr(target, field.name), tensors)
        elif field.message_type is not None:
            for item in value:
                _copy_without_data(item, getattr(target, field.name).add(), tensors)
        elif isinstance(value, (int, float, str, bytes)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)


def _holds(message: Message, tensors: Collection[int]) -> bool:
    """Whether one of the tensors is in this message."""
    if isinstance(message, onnx.TensorProto):
        return id(message) in tensors
    inside = (
        [value] if isinstance(value, Message) else value
        for field, value in message.ListFields()
        if field.message_type is not None
    )
    return any(_holds(item, tensors) for items in inside for item in items)
