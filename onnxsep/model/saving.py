"""Saving models: atomically, byte for byte where nothing changed, and without reading external weights into memory.

The data files come first, then a temporary .onnx beside the target, which is checked and renamed.
"""

import contextlib
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxsep.errors import ModelLoadError
from onnxsep.model.datafile import write_data
from onnxsep.model.external import DataFolder, is_external, slot_of
from onnxsep.model.files import Identity, NewFiles, copy_bytes, finish, identity, printable, same_content
from onnxsep.model.io import Model, parse_file, read_file
from onnxsep.model.paths import RESULT, Kind, Reads, check_paths, is_report
from onnxsep.model.tensors import tensor_protos

_SEARCHED_BYTES = 100_000_000  # larger files are searched for a name only where they begin as a model does
# The keys of a model's fields: ir_version, producer, domain, model_version, doc_string, graph, opset_import, metadata.
_BEGINNINGS = {bytes([key]) for key in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)}


@dataclass(frozen=True)
class SavedFiles:
    """What a save left on the disk.

    Attributes:
        path: The .onnx file.
        data_paths: The files of external data that it uses.
        size_bytes: The size of all of them, in bytes.
        notes: Old data files of the target that stay, and why.
    """

    path: Path
    data_paths: tuple[Path, ...]
    size_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def data_path(self) -> Path | None:
        """The data file (the first one, where a copied model has several), or None."""
        return self.data_paths[0] if self.data_paths else None


class Told(Protocol):
    """What a report can do, whatever it is of."""

    def summary(self) -> str:
        """What matters, in a line or two."""

    def to_frame(self) -> Any:
        """The rows of its table as a ``pandas.DataFrame``."""

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """All of it."""

    def _repr_html_(self) -> str: ...


class Savable:
    """What the results of all passes have in common; in Python, ``print(result.report)`` shows the command's table.

    Attributes:
        model: The result.
        report: What was done; it has the fields ``output`` and ``output_bytes``, None before the result is saved.
        new_initializers: Its weights that go into the data file, where the source has one.
        reads: The files that it was made from: but for the model itself, they are not overwritten.
    """

    model: Model
    report: Told
    new_initializers: tuple[str, ...]
    reads: Reads

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report.summary()}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def to_frame(self) -> Any:
        """The rows of the report's table as a ``pandas.DataFrame``.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return self.report.to_frame()

    @property
    def proto(self) -> onnx.ModelProto:
        """The result's model; weights in external files are not in it."""
        return self.model.proto

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write the model, atomically; its external weights are streamed into one new data file beside it.

        Raises:
            ModelSaveError: The target cannot be written.
            OptionError: It would overwrite a file that the result was made from, or one that is no model.
            ModelLoadError: External data of the model cannot be read.
        """
        return write_model(self.model, path, externalize=self.new_initializers, reads=self.reads)


def save(model: Model | onnx.ModelProto, path: str | os.PathLike[str], externalize: Collection[str] = ()) -> SavedFiles:
    """Write a model, atomically: on any failure the target is as it was before and nothing else is left behind.

    - A model that is still as it was loaded: the .onnx is copied byte for byte. Its data files are shared when the
      target is in the same folder, else copied to the same relative place; where other files are in the way, the
      next rule holds.
    - Otherwise external data is copied, in constant memory, into one new file ``<target>.<8 hex digits>.data``.
    - Inline data stays inline, unless the .onnx would be over 2 GB: then its initialisers and Constants of 1024 bytes
      or more go to the data file.
    - An old data file of the target is removed if nothing but the old target needed it. It stays where any other file
      of its folder contains its name (a copy of the model, a script); files over 100 MB are searched for it only where
      they begin as a model does. When a model is saved over its own file, tensors can no longer be read through the old
      ``Model``: load it again.
    - A file that is there is replaced only if it is a model, or empty. A target that is a link is replaced by a file;
      the file that it pointed to stays as it is.

    Args:
        model: The model; it is not changed.
        path: The .onnx file to write; its folder must exist. Permissions of a file that is there are kept.
        externalize: Names of initialisers of the main graph (new factors) that go to the data file if the model has
            external data at all and they have 1024 bytes or more.

    Raises:
        ModelSaveError: The target cannot be written.
        OptionError: It holds weights of the model that is being saved, or something that is no model.
        ModelLoadError: The external data of the model cannot be read.
    """
    return write_model(model, path, externalize)


def write_model(
    model: Model | onnx.ModelProto,
    path: str | os.PathLike[str],
    externalize: Collection[str] = (),
    *,
    reads: Reads | None = None,
    kind: Kind = RESULT,
) -> SavedFiles:
    """As :func:`save`, where it is known what the model was made from.

    Args:
        model: The model.
        path: The .onnx file to write.
        externalize: Names of initialisers that go to the data file.
        reads: The files that must not be overwritten; None: those of the model.
        kind: What the target is called, and whether it may take the model's place.
    """
    source = model.in_stored_order() if isinstance(model, Model) else Model(model)
    target = Path(path)
    check_paths(Reads.of(source) if reads is None else reads, {kind: target})
    with NewFiles(target) as new:
        used = _files_used(source)
        in_place = _is_own_file(target, source)
        old = _old_data(target)
        kept = _keep(source, used, new)
        content, data_paths = kept or write_data(source, used, externalize, new)
        saved = SavedFiles(target, data_paths, len(content) + sum(path.stat().st_size for path in data_paths))
        needed = {identity(path) for path in data_paths} | (set() if in_place else set(used.values()))
        if kept is None or not in_place:
            new.commit(content)
    return replace(saved, notes=tuple(_remove_old_data(old, needed, target)))


def _files_used(model: Model) -> dict[str, Identity]:
    """The locations of external data that the model uses, and which file each one is."""
    used: dict[str, Identity] = {}
    for tensor in tensor_protos(model.proto):
        if is_external(tensor) and (location := slot_of(tensor).location) not in used:
            with model.data_folder().open(location) as file:
                used[location] = identity(file)
    return used


# ---------------------------------------------------------------- a model that is as it was loaded


def _own_file(model: Model) -> Path | None:
    """The file that the model was loaded from, wherever the working folder is now."""
    return None if model.path is None or model.base_dir is None else model.base_dir / model.path.name


def _is_own_file(target: Path, model: Model) -> bool:
    own = _own_file(model)
    return own is not None and target.name == own.name and target.parent.samefile(own.parent)


def _keep(model: Model, used: Mapping[str, Identity], new: NewFiles) -> tuple[bytes, tuple[Path, ...]] | None:
    """The bytes and the data files of an unchanged model; None where it changed, or its data has no place."""
    content = _unchanged_bytes(model)
    if content is None:
        return None
    data_paths = _keep_data(model, used, new)
    return None if data_paths is None else (content, data_paths)


def _unchanged_bytes(model: Model) -> bytes | None:
    """The bytes of the model's file, if the model is still what they say."""
    own = _own_file(model)
    if not model.pristine or own is None:
        return None
    try:
        data = read_file(own)
        if model.proto.SerializeToString() == data:
            return data
        # An exporter may have written the same fields in another way, so compare what they mean.
        again = onnx.ModelProto.FromString(data).SerializeToString(deterministic=True)
        return data if again == model.proto.SerializeToString(deterministic=True) else None
    except (ModelLoadError, DecodeError):  # the file is gone, or another one took its place
        return None
    except (EncodeError, ValueError):  # the proto grew over 2 GB; the class depends on the version of protobuf
        return None


def _keep_data(model: Model, used: Collection[str], new: NewFiles) -> tuple[Path, ...] | None:
    """Give an unchanged model its data files at the target, under the same locations.

    Returns:
        The data files; or None, with nothing written, where something else has their place.
    """
    if not used:
        return ()
    folder, there = model.data_folder(), DataFolder(new.target.parent)
    paths = {there.path / location: location for location in used}
    if not there.path.samefile(folder.path):
        for path, location in paths.items():
            if not _is_free(location, new.target) or (path.exists() and not _is_same(location, there, folder)):
                return None
        for path, location in paths.items():
            if not path.exists():
                with folder.open(location) as source, new.create(path) as file:
                    size = os.fstat(source.fileno()).st_size
                    copy_bytes(source, file, size)
                    finish(file, size)
    return tuple(paths)


def _is_free(location: str, target: Path) -> bool:
    """Whether a data file may be at this place beside the target."""
    path = target.parent / location
    if ".." in PurePath(location).parts or path == target or path.is_symlink():
        return False
    above = next(folder for folder in path.parents if os.path.lexists(folder))
    return above.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target.parent))


def _is_same(location: str, left: DataFolder, right: DataFolder) -> bool:
    """Whether two folders have the same file at a location."""
    try:
        with left.open(location) as one, right.open(location) as other:
            return same_content(one, other)
    except ModelLoadError:  # a link, a pipe: not a file that the result could use
        return False


# ---------------------------------------------------------------- data of the old target


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
        tensors = tensor_protos(parse_file(target))
        locations = {str(PurePath(slot_of(tensor).location)) for tensor in tensors if is_external(tensor)}
    except ModelLoadError:  # what is there is not a model, so nothing is known to be its data
        return []
    return [path for path in found if path.name in locations and path.stat().st_nlink == 1]


def _remove_old_data(old: list[Path], needed: set[Identity], target: Path) -> Iterator[str]:
    """Remove old data files that neither the new model nor another file in the folder needs; say which ones stay."""
    for path in old:
        with contextlib.suppress(OSError):  # the save is complete; a file that is left over harms nobody
            if identity(path) in needed:
                continue
            others = (other for other in sorted(target.parent.iterdir()) if other.name not in (target.name, path.name))
            needing = next((other for other in others if _may_need(other, path.name, needed)), None)
            if needing is None:
                path.unlink()
            else:
                yield f"the old data file {printable(path)} stays, for {printable(needing.name)} contains its name"


def _may_need(file: Path, name: str, needed: set[Identity]) -> bool:
    """Whether a file needs what it has the name of in it; one that cannot be read may. A report only says it."""
    try:
        size = file.stat().st_size if file.is_file() else 0
        if not size or identity(file) in needed:
            return False
        with file.open("rb") as opened:
            if size > _SEARCHED_BYTES and opened.read(1) not in _BEGINNINGS:
                return False
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(os.fsencode(name)) >= 0 and not is_report(file)
    except (OSError, ValueError):
        return True
