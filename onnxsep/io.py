"""Loading and saving models without pulling external weights into memory.

:func:`load` checks the file and everything that it refers to, so that the rest of onnxsep need not expect damaged
input. :func:`save` is atomic: data file first, then a temporary .onnx beside the target, checked, then renamed.
"""

import contextlib
import math
import mmap
import os
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import TensorProto

from onnxsep.errors import ModelLoadError, ModelSaveError
from onnxsep.external import (
    CHUNK,
    ELEMENT_BITS,
    DataFolder,
    Slot,
    copy_bytes,
    finish,
    is_external,
    label,
    same_content,
    set_slot,
    slot_of,
    storage_bytes,
)

# protobuf cannot write messages of 2 GB; the margin is for readers that need some bytes more.
MAX_PROTO_BYTES = 2**31 - 2**24
# Smaller tensors stay in the .onnx even where the others go to a data file: shapes and axes are needed to read a graph.
MIN_DATA_BYTES = 1024
_PAGE = 4096

_MAGIC = (
    (0, b"version https://git-lfs", "this is a Git LFS pointer, fetch the real file (git lfs pull)"),
    (0, b"\x89PNG", "this is a PNG image"),
    (0, b"\xff\xd8\xff", "this is a JPEG image"),
    (0, b"PK\x03\x04", "this is a zip archive (a PyTorch or Keras file?); export the model to ONNX"),
    (0, b"\x89HDF", "this is an HDF5 file (Keras?); export the model to ONNX"),
    (0, b"\x1f\x8b", "this is a gzip archive, unpack it first"),
    (4, b"TFL3", "this is a TensorFlow Lite file"),
    (4, b"ORTM", "this is a file in ONNX Runtime's own format; use the .onnx that it was made from"),
)

_NUMPY: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.UINT8: "|u1",
    TensorProto.INT8: "|i1",
    TensorProto.UINT16: "<u2",
    TensorProto.INT16: "<i2",
    TensorProto.INT32: "<i4",
    TensorProto.INT64: "<i8",
    TensorProto.BOOL: "|b1",
    TensorProto.FLOAT16: "<f2",
    TensorProto.DOUBLE: "<f8",
    TensorProto.UINT32: "<u4",
    TensorProto.UINT64: "<u8",
    TensorProto.COMPLEX64: "<c8",
    TensorProto.COMPLEX128: "<c16",
}
_ML_DTYPES: dict[int, str] = {
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
}
# The field of TensorProto that holds the values where there is no raw_data; int32_data for all other types.
_FIELD_OF: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_FIELD_DTYPE = {
    "float_data": "<f4",
    "double_data": "<f8",
    "int32_data": "<i4",
    "int64_data": "<i8",
    "uint64_data": "<u8",
}


Identity = tuple[int, int]  # device and number of a file


@dataclass
class Model:
    """A model whose external weights stay in their files.

    Attributes:
        proto: The model; weights in data files are not read into it.
        path: The file that it came from, as the user named it.
        base_dir: The folder that the locations of external data are relative to; None when the model came from memory.
        follow_links: External data may be reached through links that lead out of the folder.
        pristine: ``proto`` is as it was read from ``path``.
    """

    proto: onnx.ModelProto
    path: Path | None = None
    base_dir: Path | None = None
    follow_links: bool = False
    pristine: bool = False

    def data_folder(self) -> DataFolder:
        """The folder of the external data.

        Raises:
            ModelLoadError: The model came from memory, so that nobody knows where its data is.
        """
        if self.base_dir is None:
            raise ModelLoadError(
                "The model came from memory and keeps weights in external data files; nothing says in which folder."
                " Pass the path of the .onnx file instead."
            )
        return DataFolder(self.base_dir, self.follow_links)


@dataclass(frozen=True)
class SavedFiles:
    """What a save left on the disk.

    Attributes:
        path: The .onnx file.
        data_paths: The files of external data that it uses.
        size_bytes: The size of all of them, in bytes.
    """

    path: Path
    data_paths: tuple[Path, ...]
    size_bytes: int

    @property
    def data_path(self) -> Path | None:
        """The data file (the first one, where a copied model has several), or None."""
        return self.data_paths[0] if self.data_paths else None


# ---------------------------------------------------------------- walking


def _holders(proto: onnx.ModelProto) -> Iterator[tuple[onnx.GraphProto | onnx.FunctionProto, bool]]:
    """Every graph and function, the main graph first, and whether it is (in) a function."""
    yield from ((graph, False) for graph in _with_subgraphs(proto.graph))
    for training in proto.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from ((inner, False) for inner in _with_subgraphs(graph))
    for function in proto.functions:
        yield from ((inner, True) for inner in _with_subgraphs(function))


def _with_subgraphs(
    holder: onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    yield holder
    for _, attribute in _attributes(holder):
        if attribute.HasField("g"):
            yield from _with_subgraphs(attribute.g)
        for graph in attribute.graphs:
            yield from _with_subgraphs(graph)


def _attributes(
    holder: onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[tuple[onnx.NodeProto | None, onnx.AttributeProto]]:
    for node in holder.node:
        for attribute in node.attribute:
            yield node, attribute
    if isinstance(holder, onnx.FunctionProto):
        for attribute in holder.attribute_proto:  # default values
            yield None, attribute


def _walk(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Every tensor, and whether runtimes accept it as external data: initialisers and Constant nodes of graphs."""
    for holder, in_function in _holders(proto):
        if isinstance(holder, onnx.GraphProto):
            for tensor in holder.initializer:
                yield tensor, True
            for sparse in holder.sparse_initializer:
                yield sparse.values, False
                yield sparse.indices, False
        for node, attribute in _attributes(holder):
            if attribute.HasField("t"):
                yield attribute.t, node is not None and node.op_type == "Constant" and not in_function
            for tensor in attribute.tensors:
                yield tensor, False
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values, False
                yield attribute.sparse_tensor.indices, False
            for sparse in attribute.sparse_tensors:
                yield sparse.values, False
                yield sparse.indices, False


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model, the initialisers of the main graph first.

    Covers initialisers, attributes, sparse tensors, subgraphs, functions and training information.
    """
    return (tensor for tensor, _ in _walk(proto))


# ---------------------------------------------------------------- loading


def load(source: str | os.PathLike[str] | onnx.ModelProto | Model, *, follow_links: bool = False) -> Model:
    """Load a model and check it; weights in external data files are checked but not read.

    Args:
        source: Path of an .onnx file; or a ModelProto that holds all its weights; or a Model, returned as it is.
            The path itself may be a link: external data is then looked for beside the link.
        follow_links: Follow symbolic links and accept hard links as external data, also where they lead out of the
            model's folder. For model hubs' caches, which are made of links; not for models from strangers.

    Raises:
        ModelLoadError: The file cannot be read, is not an ONNX file, is damaged, or its external data is missing, too
            short or outside the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        model = Model(source)
        _check(model, "the model")
        return model
    path = Path(source)
    # absolute() and not resolve(): it keeps links and "..", so that the folder is the one that the user named.
    model = Model(_parse(path), path, path.absolute().parent, follow_links, pristine=True)
    _check(model, str(path))
    return model


def _read(path: Path) -> bytes:
    """The content of an .onnx file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelLoadError(f"{path} is a folder. Name the .onnx file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path} is not a regular file. Name an .onnx file.")
        with path.open("rb") as file:
            if status.st_size >= 2**31:
                kind = _kind(file.read(512)) or "an ONNX file cannot be larger: weights belong into external data"
                raise ModelLoadError(f"{path} is over 2 GB: {kind}.")
            return file.read()
    except FileNotFoundError:
        raise ModelLoadError(f"{path} does not exist. Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelLoadError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _parse(path: Path) -> onnx.ModelProto:
    data = _read(path)
    if not data:
        raise ModelLoadError(f"{path} is empty. Download or export the model again.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        kind = _kind(data[:512])
        if kind is None and data[0] == 8:  # the first field of every exporter's file: ir_version
            kind = "it starts like one but is cut short or damaged. Download or export the model again"
        raise ModelLoadError(
            f"{path} is not a complete ONNX file: {kind or 'its bytes are something else'}."
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.ir_version):
        kind = _kind(data[:512]) or "there is no graph in it. Is it a data file, or a single tensor?"
        raise ModelLoadError(f"{path} is not an ONNX model: {kind}")
    return proto


def _kind(head: bytes) -> str | None:
    """What a file is by its first 512 bytes, or None."""
    for start, magic, kind in _MAGIC:
        if head[start:].startswith(magic):
            return kind
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character that the 512th byte cuts
            return None
        text = head[: error.start].decode("utf-8")
    if not all(character.isprintable() or character in "\r\n\t" for character in text):
        return None
    if text.lstrip().startswith("<"):
        return "this is an HTML or XML page; was a web page saved instead of the file?"
    return "this is a JSON file" if text.lstrip()[:1] in ("{", "[") else "this is a text file, not a binary ONNX file"


def _check(model: Model, name: str) -> None:
    proto = model.proto
    try:
        if not proto.HasField("graph"):
            raise ModelLoadError("there is no graph in it.")
        if not proto.opset_import:
            raise ModelLoadError("it imports no operator set. The file is cut short, or its exporter is at fault.")
        _check_names(proto)
        tensors = list(tensor_protos(proto))
        for tensor in tensors:
            if not is_external(tensor):
                _check_inline(tensor)
        if any(map(is_external, tensors)):
            model.data_folder().check(tensors)
    except ModelLoadError as error:
        raise ModelLoadError(f"{name}: {error}") from error


def _check_names(proto: onnx.ModelProto) -> None:
    """Names must be text: protobuf hands out bytes, not str, for what is not UTF-8."""
    for holder, _ in _holders(proto):
        for node in holder.node:
            attributes = (attribute.name for attribute in node.attribute)
            _check_text(node.name, node.op_type, node.domain, *node.input, *node.output, *attributes)
        if isinstance(holder, onnx.FunctionProto):
            _check_text(holder.name, holder.domain, *holder.input, *holder.output)
        else:
            for named in (holder.initializer, holder.input, holder.output, holder.value_info):
                _check_text(*(item.name for item in named))


def _check_text(*names: object) -> None:
    for name in names:
        if not isinstance(name, str):
            raise ModelLoadError(f"a name in the graph is not UTF-8 text: {name!r}. The file is damaged.")


def _check_inline(tensor: onnx.TensorProto) -> None:
    """The data in the proto must be as long as shape and type say."""
    needed = storage_bytes(tensor)
    if tensor.HasField("segment") or (needed is None and tensor.data_type != TensorProto.STRING):
        return  # segments and unknown types are carried over as they are; reading them is an error
    if tensor.HasField("raw_data") and needed is not None:
        have, want, unit = len(tensor.raw_data), needed, "bytes"
    else:
        bits = ELEMENT_BITS.get(tensor.data_type, 8)
        count = math.prod(tensor.dims)
        if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
            count *= 2
        have, unit = len(getattr(tensor, _FIELD_OF.get(tensor.data_type, "int32_data"))), "values"
        want = (count * bits + 7) // 8 if bits in (2, 4) else count  # these are packed, one byte per value
    if have != want:
        raise ModelLoadError(
            f"{label(tensor)} has {have} {unit} of data but its shape {list(tensor.dims)} and type need {want}."
            " The file is damaged."
        )


# ---------------------------------------------------------------- reading tensors


def read_tensor(model: Model, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    """The values of one tensor, in the type that it is stored in (types of ml_dtypes for bfloat16 and float8).

    Types that pack several values into a byte come in the type that the installed onnx has for them.

    Of external data only the tensor's own bytes are read.

    Args:
        model: The model that the tensor belongs to.
        tensor: An initialiser, or the value of a Constant node, with data inside or outside the proto.

    Returns:
        An array of the tensor's shape that does not depend on the proto or the file; it may be read-only.

    Raises:
        ModelLoadError: The data cannot be read (checked again, as in :func:`load`), or the type is not supported.
    """
    raw = model.data_folder().read(tensor) if is_external(tensor) else None
    shape = tuple(tensor.dims)
    try:
        dtype = _dtype(tensor.data_type)
        if dtype is None or tensor.HasField("segment"):  # strings and types that are packed
            if raw is not None:
                tensor = onnx.TensorProto(data_type=tensor.data_type, dims=shape, raw_data=raw.tobytes())
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        if raw is not None:
            return raw.view(dtype).reshape(shape)
        if tensor.HasField("raw_data"):
            return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
        field = _FIELD_OF.get(tensor.data_type, "int32_data")
        values = np.array(getattr(tensor, field), _FIELD_DTYPE[field])
        if field == "int32_data" and tensor.data_type != TensorProto.INT32:
            values = values.astype(f"<u{dtype.itemsize}")  # the value's bits, in its low bytes
        elif field == "uint64_data":
            values = values.astype(dtype)
        return values.view(dtype).reshape(shape)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{label(tensor)} of type {tensor.data_type} cannot be read: {error}.") from error


def _dtype(data_type: int) -> np.dtype[Any] | None:
    if data_type in _ML_DTYPES:
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[data_type]))
        return small
    return np.dtype(_NUMPY[data_type]) if data_type in _NUMPY else None


# ---------------------------------------------------------------- saving


def save(model: Model | onnx.ModelProto, path: str | os.PathLike[str], externalize: Collection[str] = ()) -> SavedFiles:
    """Write a model, atomically: on any failure the target is as it was before and nothing else is left behind.

    - A model that is still as it was loaded: the .onnx is copied byte for byte. Its data files are shared when the
      target is in the same folder, else copied to the same relative place; where other files are in the way, the
      next rule holds.
    - Otherwise external data is copied, in constant memory, into one new file ``<target>.<8 hex digits>.data``.
    - Inline data stays inline, unless the .onnx would be over 2 GB: then its largest tensors go to the data file.
    - An old data file of the target is removed if nothing but the old target needed it. When a model is saved over
      its own file, tensors can no longer be read through the old ``Model``: load it again.
    - A target that is a link is replaced by a file; the file that it pointed to stays as it is.

    Args:
        model: The model; it is not changed.
        path: The .onnx file to write; its folder must exist. Permissions of a file that is there are kept.
        externalize: Names of initialisers of the main graph (new factors) that go to the data file if the model has
            external data at all and they have 1024 bytes or more.

    Raises:
        ModelSaveError: The target cannot be written.
        ModelLoadError: The external data of the model cannot be read.
    """
    source = model if isinstance(model, Model) else Model(model)
    target = Path(path)
    try:
        return _save(source, target, externalize)
    except OSError as error:
        raise ModelSaveError(f"{target} was not written: {error.strerror or error}. Nothing was changed.") from error


def _save(model: Model, target: Path, externalize: Collection[str]) -> SavedFiles:
    mode = _check_target(target)
    used = _files_used(model)
    if target.exists() and _identity(target) in used.values():
        raise ModelSaveError(f"{target} holds weights of the model that is being saved. Choose another name.")
    in_place = _is_own_file(target, model)
    old = _old_data(target)
    unchanged = _unchanged_bytes(model)
    with _NewFiles(mode) as new:
        data_paths = None if unchanged is None else _keep_data(model, target, used, new)
        if unchanged is not None and data_paths is not None:
            content = unchanged
        else:
            content, data_paths = _write_data(model, target, used, externalize, new)
        size = len(content) + sum(path.stat().st_size for path in data_paths)
        needed = {_identity(path) for path in data_paths} | (set() if in_place else set(used.values()))
        if not in_place or content is not unchanged:
            new.commit(content, target)
    with contextlib.suppress(OSError):  # the save is complete; a file that is left over harms nobody
        _remove_old_data(old, needed, target)
    return SavedFiles(target, data_paths, size)


def _check_target(target: Path) -> int | None:
    """Refuse what cannot be a target; return the permissions of the file that is there, or None."""
    if "\0" in str(target):
        raise ModelSaveError(f"{str(target)!r} cannot be written: no file can have this name.")
    if not target.parent.is_dir():
        raise ModelSaveError(f"{target} cannot be written: {target.parent} is not a folder. Create it first.")
    if not target.exists():  # a link that leads nowhere is replaced like any other
        return None
    mode = target.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ModelSaveError(f"{target} cannot be written: it is {what}. Name an .onnx file.")
    if not os.access(target, os.W_OK):
        raise ModelSaveError(f"{target} cannot be written: it is write-protected.")
    return stat.S_IMODE(mode)


def _is_own_file(target: Path, model: Model) -> bool:
    """Whether the target is the file that the model was loaded from."""
    if model.path is None or model.base_dir is None:
        return False
    return target.name == model.path.name and target.parent.samefile(model.base_dir)


def _identity(file: Path | BinaryIO) -> Identity:
    status = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _files_used(model: Model) -> dict[str, Identity]:
    """The locations of external data that the model uses, and which file each one is."""
    used: dict[str, Identity] = {}
    for tensor in tensor_protos(model.proto):
        if is_external(tensor) and (location := slot_of(tensor).location) not in used:
            with model.data_folder().open(location) as file:
                used[location] = _identity(file)
    return used


class _NewFiles:
    """The new files of one save; they are removed again unless the save is completed."""

    def __init__(self, mode: int | None) -> None:
        self.mode = mode
        self.created: list[Path] = []
        self.last: Path | None = None

    def __enter__(self) -> "_NewFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupt can come just after the last file was renamed: then the save is complete and the data stays.
        if kind is None or (self.last is not None and not os.path.lexists(self.last)):
            return
        for path in reversed(self.created):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def create(self, path: Path) -> BinaryIO:
        """Open a file that must not exist yet; folders that are missing are made."""
        for folder in reversed([parent for parent in path.parents if not parent.exists()]):
            folder.mkdir()
            self.created.append(folder)
        self.created.append(path)
        try:
            file = path.open("xb")
        except FileExistsError:
            self.created.remove(path)  # not ours
            raise
        if self.mode is not None:
            path.chmod(self.mode)
        return file

    def commit(self, content: bytes, target: Path) -> None:
        """Write the .onnx beside the target, read it again, and rename it to the target."""
        path = target.with_name(f".onnxsep-{secrets.token_hex(8)}.tmp")
        with self.create(path) as file:
            file.write(content)
            finish(file, len(content))
        with path.open("rb") as file:
            start = 0
            while chunk := file.read(CHUNK):
                if chunk != content[start : start + CHUNK]:
                    break
                start += len(chunk)
            if start != len(content):
                raise ModelSaveError(f"{target} was not written: the disk gave back other bytes than were written.")
        self.last = path
        path.replace(target)
        if hasattr(os, "O_DIRECTORY"):  # make the rename itself last; Windows cannot
            with contextlib.suppress(OSError):  # not every file system can either, and the file is complete
                folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def _unchanged_bytes(model: Model) -> bytes | None:
    """The bytes of the model's file, if the model is still what they say."""
    if not model.pristine or model.path is None or model.base_dir is None:
        return None
    try:
        data = _read(model.base_dir / model.path.name)
        if model.proto.SerializeToString() == data:
            return data
        # An exporter may have written the same fields in another way, so compare what they mean.
        again = onnx.ModelProto.FromString(data).SerializeToString(deterministic=True)
        return data if again == model.proto.SerializeToString(deterministic=True) else None
    except (ModelLoadError, DecodeError):  # the file is gone, or another one took its place
        return None
    except (EncodeError, ValueError):  # the proto grew over 2 GB; the class depends on the version of protobuf
        return None


def _keep_data(model: Model, target: Path, used: Collection[str], new: _NewFiles) -> tuple[Path, ...] | None:
    """Give an unchanged model its data files at the target, under the same locations.

    Returns:
        The data files; or None, with nothing written, where something else has their place.
    """
    if not used:
        return ()
    folder = model.data_folder()
    paths = tuple(target.parent / location for location in used)
    if target.parent.samefile(folder.path):
        return paths
    missing = []
    for location, path in zip(used, paths, strict=True):
        if not _is_free(location, path, target):
            return None
        if not path.exists():
            missing.append((location, path))
            continue
        try:
            with DataFolder(target.parent).open(location) as there, folder.open(location) as source:
                if not same_content(there, source):
                    return None
        except ModelLoadError:  # a link, a pipe: not a file that the result could use
            return None
    for location, path in missing:
        with folder.open(location) as source, new.create(path) as file:
            size = os.fstat(source.fileno()).st_size
            copy_bytes(source, file, size)
            finish(file, size)
    return paths


def _is_free(location: str, path: Path, target: Path) -> bool:
    """Whether a data file may be at this place beside the target."""
    if ".." in PurePath(location).parts or path == target or path.is_symlink():
        return False
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    return above.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target.parent))


def _write_data(
    model: Model, target: Path, used: Mapping[str, Identity], externalize: Collection[str], new: _NewFiles
) -> tuple[bytes, tuple[Path, ...]]:
    """Write the new data file, if one is needed.

    Returns:
        The content of the .onnx, and the data file.
    """
    walked = list(_walk(model.proto))
    tensors = [tensor for tensor, _ in walked]
    moved = {index for index, tensor in enumerate(tensors) if is_external(tensor)}
    if moved:
        initializers = range(len(model.proto.graph.initializer))  # the walk begins with them
        moved |= {i for i in initializers if tensors[i].name in externalize and _is_movable(tensors[i])}
    location = _fresh_name(target)
    slots = _lay_out(used, tensors, moved, location)
    content = _serialize(model.proto, tensors, slots)
    if content is None:
        movable = {i for i, (tensor, allowed) in enumerate(walked) if allowed and _is_movable(tensor)}
        smallest = _serialize(model.proto, tensors, _lay_out(used, tensors, moved | movable, location))
        if smallest is None:
            raise ModelSaveError(
                f"{target} was not written: without its large tensors the model still has over {MAX_PROTO_BYTES} bytes,"
                " more than an ONNX file can hold."
            )
        room = MAX_PROTO_BYTES - len(smallest)
        for index in sorted(movable - moved, key=lambda index: _inline_bytes(tensors[index])):
            room -= _inline_bytes(tensors[index])
            if room < 0:
                moved.add(index)
        slots = _lay_out(used, tensors, moved, location)
        content = _serialize(model.proto, tensors, slots)
        if content is None:
            raise AssertionError("the room for inline tensors was computed too large")
    if not slots:
        return content, ()
    path = target.with_name(location)
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
                    f"{target} was not written: {label(tensors[index])} has data that does not fit it."
                )
        finish(file, end)
    return content, (path,)


def _write_tensor(model: Model, tensor: onnx.TensorProto, file: BinaryIO) -> None:
    if is_external(tensor):
        origin = slot_of(tensor)
        with model.data_folder().open(origin.location) as source:
            source.seek(origin.offset)
            copy_bytes(source, file, origin.length)
    elif tensor.HasField("raw_data"):
        file.write(tensor.raw_data)
    else:
        file.write(read_tensor(model, tensor).tobytes())


def _fresh_name(target: Path) -> str:
    while True:
        name = f"{target.name}.{secrets.token_hex(4)}.data"
        if not os.path.lexists(target.with_name(name)):
            return name


def _is_movable(tensor: onnx.TensorProto) -> bool:
    """Whether an inline tensor is large enough, and of a type, to be written to a data file."""
    size = storage_bytes(tensor)
    packed = ELEMENT_BITS.get(tensor.data_type, 0) < 8 and not tensor.HasField("raw_data")
    if is_external(tensor) or tensor.HasField("segment") or packed:
        return False
    return size is not None and size >= MIN_DATA_BYTES


def _inline_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that the data of a tensor takes in the proto: never less, a few more."""
    if is_external(tensor):
        return 0
    return (storage_bytes(tensor) or 0) + 32 if tensor.HasField("raw_data") else tensor.ByteSize()


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


def _serialize(proto: onnx.ModelProto, tensors: list[onnx.TensorProto], slots: dict[int, Slot]) -> bytes | None:
    """The bytes of the proto with tensors moved to slots; None where they are more than ``MAX_PROTO_BYTES``."""
    sizes = [_inline_bytes(tensor) for tensor in tensors]
    if sum(size for index, size in enumerate(sizes) if index not in slots) > MAX_PROTO_BYTES:
        return None
    if slots:
        inline = {id(tensors[index]) for index in slots if not is_external(tensors[index])}
        copy = onnx.ModelProto()
        if sum(sizes) <= MAX_PROTO_BYTES:
            copy.CopyFrom(proto)
        else:
            _copy_without_data(proto, copy, inline)
        for index, tensor in enumerate(tensor_protos(copy)):
            if index in slots:
                if id(tensors[index]) in inline:
                    for field in ("raw_data", *_FIELD_DTYPE):
                        tensor.ClearField(field)
                set_slot(tensor, slots[index])
        proto = copy
    try:
        content: bytes = proto.SerializeToString()
    except (EncodeError, ValueError):  # over 2 GB; the class depends on the version of protobuf
        return None
    return content if len(content) <= MAX_PROTO_BYTES else None


def _copy_without_data(source: Message, target: Message, tensors: set[int]) -> None:
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
        if field.message_type is None and isinstance(value, (int, float, str, bytes)):
            if id(source) not in tensors or field.name != "raw_data":
                setattr(target, field.name, value)
        elif isinstance(value, Message):
            _copy_without_data(value, getattr(target, field.name), tensors)
        elif field.message_type is not None:
            for item in value:
                _copy_without_data(item, getattr(target, field.name).add(), tensors)
        elif id(source) not in tensors or field.name not in _FIELD_DTYPE:
            getattr(target, field.name).extend(value)


def _holds(message: Message, tensors: set[int]) -> bool:
    """Whether the data of one of the tensors is in this message; graphs are always taken apart."""
    if isinstance(message, (onnx.ModelProto, onnx.GraphProto)):
        return True
    if isinstance(message, onnx.NodeProto):
        return any(_holds(attribute, tensors) for attribute in message.attribute)
    if isinstance(message, onnx.AttributeProto):
        return message.HasField("g") or len(message.graphs) > 0 or (message.HasField("t") and id(message.t) in tensors)
    return id(message) in tensors


def _old_data(target: Path) -> list[Path]:
    """Data files beside the target, named after it, that the model which is there now uses."""
    if target.is_symlink() or not target.is_file():
        return []
    found = [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(target.name) and path.name != target.name and path.is_file() and not path.is_symlink()
    ]
    if not found:
        return []
    try:
        locations = {str(PurePath(slot_of(t).location)) for t in tensor_protos(_parse(target)) if is_external(t)}
    except ModelLoadError:  # what is there is not a model, so nothing is known to be its data
        return []
    return [path for path in found if path.name in locations and path.stat().st_nlink == 1]


def _remove_old_data(old: list[Path], needed: set[Identity], target: Path) -> None:
    """Remove old data files that neither the new model nor another model in the folder uses."""
    for path in old:
        others = (other for other in target.parent.iterdir() if other.name != target.name)
        if _identity(path) in needed or any(_mentions(other, path.name) for other in others):
            continue
        path.unlink()


def _mentions(file: Path, name: str) -> bool:
    """Whether an .onnx file has a name in it; one that cannot be read may have."""
    if file.suffix.lower() != ".onnx":
        return False
    try:
        if not file.is_file() or not file.stat().st_size:
            return False
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(os.fsencode(name)) >= 0
    except OSError:
        return True
