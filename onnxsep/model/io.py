"""Loading models without pulling external weights into memory.

:func:`load` checks the file and everything that it refers to, so that the rest of onnxsep need not expect damaged
input.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from onnxsep.errors import ModelLoadError
from onnxsep.model.external import DataFolder, is_external
from onnxsep.model.ordering import arrange_like, sorted_copy
from onnxsep.model.tensors import check_inline, decode, tensor_protos
from onnxsep.model.wellformed import check_form

_LISTED, _LONGEST = 3, 40  # inputs, and characters of their names, in a model's repr
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


@dataclass(repr=False)
class Model:
    """A model whose external weights stay in their files.

    Attributes:
        proto: The model; weights in data files are not read into it.
        path: The file that it came from, as the user named it.
        base_dir: The folder that the locations of external data are relative to; None when the model came from memory.
        follow_links: External data may be reached through links that lead out of the folder.
        pristine: ``proto`` is as it was read from ``path``, but for the order of its nodes.
        stored: The model whose nodes are stored in another than topological order; ``proto`` is a sorted copy of it.
    """

    proto: onnx.ModelProto
    path: Path | None = None
    base_dir: Path | None = None
    follow_links: bool = False
    pristine: bool = False
    stored: onnx.ModelProto | None = None

    def __repr__(self) -> str:
        graph = self.proto.graph
        name = "in memory" if self.path is None else repr(str(self.path))
        opset = next((entry.version for entry in self.proto.opset_import if not entry.domain), None)
        figures = f"{len(graph.node):,} nodes, opset {opset}, inputs {_listed(graph.input)}"
        return f"<Model {name}: {figures}, outputs {_listed(graph.output)}>"

    def in_stored_order(self) -> "Model":
        """The same, its nodes in the order that they are stored in."""
        return self.ordered_as(self)

    def ordered_as(self, source: "Model") -> "Model":
        """The same, its nodes in the order that those of ``source`` are stored in, from which it was made."""
        if source.stored is None:
            return self
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        arrange_like(proto, source.stored)
        return replace(self, proto=proto, stored=None)

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


AnyModel = str | os.PathLike[str] | onnx.ModelProto | Model


def load(source: AnyModel, *, follow_links: bool = False) -> Model:
    """Load a model and check it; weights in external data files are checked but not read.

    Nodes that are not in topological order are sorted; ``Model.stored`` has them as they were.

    Args:
        source: Path of an .onnx file; or a ModelProto that holds all its weights; or a Model, returned as it is.
            The path itself may be a link: external data is then looked for beside the link.
        follow_links: Follow symbolic links and accept hard links as external data, also where they lead out of the
            model's folder. For model hubs' caches, which are made of links; not for models from strangers.

    Raises:
        ModelLoadError: The file cannot be read, is not an ONNX file, is damaged, contradicts ONNX's format
            (``onnxsep.model.wellformed``), or its external data is missing, too short or outside the model's folder.
    """
    if isinstance(source, Model):
        return _sorted(source)
    if isinstance(source, onnx.ModelProto):
        model, name = Model(source), "the model"
    else:
        path = Path(source)
        # absolute() and not resolve(): it keeps links and "..", so that the folder is the one that the user named.
        model = Model(parse_file(path), path, path.absolute().parent, follow_links, pristine=True)
        name = str(path)
    _check(model, name)
    return _sorted(model)


def _listed(values: Iterable[onnx.ValueInfoProto]) -> str:
    """Names of a model's inputs or outputs, the first of them."""
    names = [value.name for value in values]
    shown = ", ".join(repr(name if len(name) <= _LONGEST else name[:_LONGEST] + "...") for name in names[:_LISTED])
    return (shown or "none") + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _sorted(model: Model) -> Model:
    proto = sorted_copy(model.proto)
    return model if proto is None else replace(model, proto=proto, stored=model.proto)


def read_file(path: Path) -> bytes:
    """The content of an .onnx file.

    Raises:
        ModelLoadError: It cannot be read, is not a regular file, or is larger than an ONNX file can be.
    """
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


def parse_file(path: Path) -> onnx.ModelProto:
    """The model in an .onnx file, not checked.

    Raises:
        ModelLoadError: As :func:`read_file`; or the content is not a model.
    """
    data = read_file(path)
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


def data_locations(path: Path) -> list[str]:
    """The locations of the external data of an .onnx file, each once, as it says them.

    Raises:
        ModelLoadError: As :func:`parse_file`.
    """
    tensors = [tensor for tensor in tensor_protos(parse_file(path)) if is_external(tensor)]
    entries = [entry for tensor in tensors for entry in tensor.external_data if entry.key == "location"]
    return list(dict.fromkeys(entry.value for entry in entries if isinstance(entry.value, str)))


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
        check_form(proto)
        tensors = list(tensor_protos(proto))
        for tensor in tensors:
            if not is_external(tensor):
                check_inline(tensor)
        if any(map(is_external, tensors)):
            model.data_folder().check(tensors)
    except ModelLoadError as error:
        raise ModelLoadError(f"{name}: {error}") from error


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
    return decode(tensor, model.data_folder().read(tensor) if is_external(tensor) else None)
