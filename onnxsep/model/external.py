"""Tensors whose bytes lie in a data file beside the .onnx: where such files may lie, and reading one tensor.

A model may come from a stranger, and its text decides which files are opened. So every file is opened through
:class:`DataFolder`, which refuses what leads out of the model's folder, at load and again at each read.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from onnxsep.errors import ModelLoadError, spelled
from onnxsep.model.tensors import label, storage_bytes

# ONNX Runtime reads such a location as an address in memory; in a file it can only be an attack.
_MEMORY_LOCATION = "_ORT_MEM_ADDR_"


@dataclass(frozen=True)
class Slot:
    """Where the bytes of an external tensor lie: ``length`` bytes from ``offset`` in the file at ``location``."""

    location: str
    offset: int
    length: int


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the bytes of the tensor lie outside the proto."""
    return tensor.data_location == TensorProto.EXTERNAL


def slot_of(tensor: onnx.TensorProto) -> Slot:
    """The slot of an external tensor, as its proto says; the file is not looked at.

    Raises:
        ModelLoadError: A key is missing, given twice or not a number, or the length does not fit shape and type.
    """
    keys: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in keys:
            raise ModelLoadError(f"{label(tensor)}: its external data gives {entry.key!r} twice. The file is damaged.")
        keys[entry.key] = entry.value
    location = keys.get("location", "")
    if not isinstance(location, str) or not location:  # protobuf hands out bytes where they are not UTF-8
        raise ModelLoadError(f"{label(tensor)} says that its data is external but not in which file.")
    needed = storage_bytes(tensor)
    offset = _number(tensor, "offset", keys.get("offset", "0"))
    if needed is None and (tensor.data_type == TensorProto.STRING or "length" not in keys):
        raise ModelLoadError(f"{label(tensor)} has a type that cannot be external data: {tensor.data_type}.")
    length = _number(tensor, "length", keys.get("length", str(needed)))
    if needed is not None and length != needed:
        raise ModelLoadError(
            f"{label(tensor)} needs {needed} bytes for its shape {list(tensor.dims)} and type, but its external data"
            f" in {location!r} has length {length}. The file is damaged."
        )
    return Slot(location, offset, length)


def _number(tensor: onnx.TensorProto, key: str, value: str) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII):
        raise ModelLoadError(f"{label(tensor)}: the {key} of its external data is not a valid number: {value!r}.")
    return int(value)


def set_slot(tensor: onnx.TensorProto, slot: Slot) -> None:
    """Point a tensor to other external data, in place; keys that do not say where (a checksum) stay."""
    values = {"location": slot.location, "offset": str(slot.offset), "length": str(slot.length)}
    tensor.data_location = TensorProto.EXTERNAL
    for entry in tensor.external_data:
        if entry.key in values:
            entry.value = values.pop(entry.key)
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)


@dataclass(frozen=True)
class DataFolder:
    """The folder of a model, which its external data may not leave.

    Attributes:
        path: The folder.
        follow_links: Follow symbolic links that lead outside, and accept hard links. A ``..`` never leads outside.
    """

    path: Path
    follow_links: bool = False

    def open(self, location: str) -> BufferedReader:
        """Open a data file for reading, after all checks.

        Args:
            location: Path of the file, relative to the folder, as the model gives it.

        Raises:
            ModelLoadError: The file is missing, cannot be read, is not a regular file, or is outside the folder.
        """
        where = f"external data {location!r} (relative to {self.path})"
        pure = PurePath(location)
        if pure.drive or pure.root or "\0" in location or _MEMORY_LOCATION in location:
            raise ModelLoadError(
                f"{where} is not a path relative to the model. Refused, because a model from a stranger could read any"
                " file this way. Put the data file beside the model and store its relative path."
            )
        root = os.path.realpath(self.path)
        real = Path(os.path.realpath(self.path / location))
        if not real.is_relative_to(root):
            if ".." in pure.parts:
                raise ModelLoadError(
                    f"{where} leads outside the model's folder, to {real}. Refused, because a model from a stranger"
                    " could read any file this way. Put the data file beside the model."
                )
            if not self.follow_links:
                raise ModelLoadError(
                    f"{where} is a link that leads outside the model's folder, to {real}. Refused, because a model"
                    f" from a stranger could read any file this way; {_follow_links()}."
                )
        try:
            self._check(os.lstat(real), where)  # before opening: to open a device may already do something
            # The path is resolved by now: a link at its end was put there since. NONBLOCK: a fifo must not block us.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            file = os.fdopen(os.open(real, flags | getattr(os, "O_BINARY", 0)), "rb")
        except FileNotFoundError:
            raise ModelLoadError(f"{where} is missing. Put it there: the model is not complete without it.") from None
        except OSError as error:
            raise ModelLoadError(f"{where} cannot be read: {error.strerror or error}.") from error
        try:
            self._check(os.fstat(file.fileno()), where)
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, status: os.stat_result, where: str) -> None:
        if stat.S_ISLNK(status.st_mode):  # after resolving, only a link of a circle is still a link
            raise ModelLoadError(f"{where} is a link that leads back to itself. Replace it by the file.")
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{where} is not a regular file (a folder, pipe or device). Refused.")
        if status.st_nlink > 1 and not self.follow_links:
            raise ModelLoadError(
                f"{where} is a hard link: the same file has other names, and nothing shows that they are all in the"
                f" model's folder. Refused; {_follow_links()}, or replace it by a copy."
            )

    def check(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Check that the slot of every external tensor exists and may be read; reads nothing.

        Raises:
            ModelLoadError: As :meth:`open` and :func:`slot_of`; or a file ends before a slot does.
        """
        sizes: dict[str, int] = {}
        for tensor in tensors:
            if is_external(tensor):
                slot = slot_of(tensor)
                if slot.location not in sizes:
                    with self.open(slot.location) as file:
                        sizes[slot.location] = os.fstat(file.fileno()).st_size
                _check_bounds(tensor, slot, sizes[slot.location])

    def read(self, tensor: onnx.TensorProto) -> npt.NDArray[np.uint8]:
        """Read the bytes of one external tensor, and nothing else.

        Returns:
            The bytes, shape [length], in memory of their own.

        Raises:
            ModelLoadError: As :meth:`check`.
        """
        slot = slot_of(tensor)
        with self.open(slot.location) as file:
            _check_bounds(tensor, slot, os.fstat(file.fileno()).st_size)
            data = np.empty(slot.length, np.uint8)
            file.seek(slot.offset)
            if file.readinto(data.data) != slot.length:
                raise ModelLoadError(f"{label(tensor)}: {slot.location!r} became shorter while it was read.")
        return data


def _check_bounds(tensor: onnx.TensorProto, slot: Slot, size: int) -> None:
    if slot.offset + slot.length > size:
        raise ModelLoadError(
            f"{label(tensor)} needs bytes {slot.offset} to {slot.offset + slot.length} of external data"
            f" {slot.location!r}, which has only {size} bytes. The data file is cut short or belongs to another model."
        )


def _follow_links() -> str:
    return f"pass {spelled('follow_links', True)} if you trust where it leads"
