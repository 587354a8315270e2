"""Writing files so that a failure leaves the target as it was, and copying large files in little memory."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from weakref import WeakSet

from onnxsep.errors import ModelLoadError, ModelSaveError

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_PATIENCE = 0.3  # seconds, for a rename
_placing = threading.Lock()  # held while a finished file gets its name
_folders: "WeakSet[tempfile.TemporaryDirectory[str]]" = WeakSet()
_unfinished: "set[NewFiles]" = set()
Identity = tuple[int, int]  # device and number of a file


def identity(file: Path | BinaryIO) -> Identity:
    """Which file this is, whatever the name or link that leads to it."""
    status = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text; bytes in it that are no UTF-8 are written as escapes, for no report could hold them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that a user named; a pipe or a device could keep us waiting, or never end.

    Raises:
        OSError: It cannot be opened, or is not a regular file; ``strerror`` says so.
        ValueError: No file can have this name.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file (a pipe or a device); name a file")
    return path.open("rb")


def check_target(target: Path) -> int | None:
    """Refuse what cannot be a target; return the permissions of the file that is there, or None.

    Raises:
        ModelSaveError: The folder is missing, or the target is a folder, no regular file or write-protected.
    """
    if "\0" in str(target):
        raise ModelSaveError(f"{str(target)!r} cannot be written: no file can have this name.")
    try:
        if not target.parent.is_dir():
            raise ModelSaveError(f"{target} cannot be written: {target.parent} is not a folder. Create it first.")
        if not os.access(target.parent, os.W_OK):
            raise ModelSaveError(f"{target} cannot be written: the folder {target.parent} is write-protected.")
        if not target.exists():  # a link that leads nowhere is replaced like any other
            return None
        mode = target.stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise ModelSaveError(f"{target} cannot be written: it is {what}. Name a file.")
        if any(_is_of_the_system(place.parent.resolve()) for place in _links(target)):
            raise ModelSaveError(f"{target} cannot be written: its folder belongs to the system. Name a file.")
        if not os.access(target, os.W_OK):
            raise ModelSaveError(f"{target} cannot be written: it is write-protected.")
        return stat.S_IMODE(mode)
    except OSError as error:
        raise _not_written(target, error) from error


def _links(target: Path) -> Iterator[Path]:
    """The target, and where it leads, link by link."""
    for _ in range(40):  # as many as a kernel follows
        yield target
        if not target.is_symlink():
            return
        target = target.parent / target.readlink()


def _is_of_the_system(folder: Path) -> bool:
    """Folders of devices: a link such as /dev/stdout must not become a file."""
    return folder in (Path("/dev"), Path("/dev/fd")) or Path("/proc") in (folder, *folder.parents)


def _not_written(target: Path, error: OSError) -> ModelSaveError:
    return ModelSaveError(f"{target} was not written: {error.strerror or error}. It is as it was.")


class NewFiles:
    """Write a file, and others that it needs, atomically.

    A context: files that :meth:`create` made are removed again unless :meth:`commit` put the target in place. A target
    that is a link is replaced by a file.

    Raises:
        ModelSaveError: The target cannot be written (:func:`check_target`), or an OSError came up in the context.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._mode: int | None = None
        self._created: list[Path] = []
        self._finished: Path | None = None  # the temporary file, from when it is to be renamed

    def __enter__(self) -> "NewFiles":
        self._mode = check_target(self.target)
        _unfinished.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.remove() and isinstance(error, OSError):
            raise _not_written(self.target, error) from error
        _unfinished.discard(self)

    def remove(self) -> bool:
        """Remove the files, unless the target is in place; whether they had to be removed."""
        # An interrupt can come just after the last file was renamed: then all is complete and stays.
        if self._finished is not None and not os.path.lexists(self._finished):
            return False
        for path in reversed(self._created):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        return True

    def create(self, path: Path) -> BinaryIO:
        """Open a file that must not exist yet, with the permissions of the target; missing folders are made."""
        for folder in reversed([parent for parent in path.parents if not parent.exists()]):
            folder.mkdir()
            self._created.append(folder)
        self._created.append(path)
        try:
            file = path.open("xb")
        except FileExistsError:
            self._created.remove(path)  # not ours
            raise
        if self._mode is not None:
            path.chmod(self._mode)
        return file

    def commit(self, content: bytes) -> None:
        """Write the content beside the target, read it again, and rename it to the target."""
        path = self.target.with_name(f".onnxsep-{secrets.token_hex(8)}.tmp")
        with self.create(path) as file:
            file.write(content)
            finish(file, len(content))
        with path.open("rb") as file:
            if not same_content(file, BytesIO(content)):
                raise ModelSaveError(
                    f"{self.target} was not written: the disk gave back other bytes than were written."
                )
        with _placing:
            self._finished = path
            path.replace(self.target)
        if hasattr(os, "O_DIRECTORY"):  # make the rename itself last; Windows cannot
            with contextlib.suppress(OSError):  # not every file system can either, and the file is complete
                folder = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for files of this process; a context, at whose end it goes.

    Raises:
        OSError: There is no place for it.
    """
    folder = tempfile.TemporaryDirectory(prefix="onnxsep-")
    _folders.add(folder)
    return folder


def abandon() -> None:
    """Remove what is not finished, and finish nothing from now on: the process is about to end, whatever it is in."""
    _placing.acquire(timeout=_PATIENCE)  # for good
    for new in list(_unfinished):
        new.remove()
    for folder in list(_folders):
        shutil.rmtree(folder.name, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text, atomically; line ends are written as they are.

    Raises:
        ModelSaveError: The target cannot be written; it is as it was.
    """
    with NewFiles(target) as new:
        new.commit(text.encode("utf-8"))


def copy_bytes(source: BinaryIO, target: BinaryIO, length: int) -> None:
    """Copy bytes in chunks, from the position in ``source`` to the one in ``target``.

    Chunks of zeros are skipped, so that a sparse file stays sparse: ``target`` must be a new file, and
    :func:`finish` must be called at its end.

    Raises:
        ModelLoadError: The source ends too early.
        OSError: The target cannot be written.
    """
    while length:
        chunk = source.read(min(length, _CHUNK))
        if not chunk:
            raise ModelLoadError(f"external data {source.name!r} became shorter while it was copied.")
        if chunk == _ZEROS[: len(chunk)]:
            target.seek(len(chunk), os.SEEK_CUR)
        else:
            target.write(chunk)
        length -= len(chunk)


def finish(file: BinaryIO, size: int) -> None:
    """Give a new file its size, which holes at its end have not, and wait until it is on the disk."""
    file.truncate(size)
    file.flush()
    os.fsync(file.fileno())


def same_content(left: BinaryIO, right: BinaryIO) -> bool:
    """Whether two files hold the same bytes from their positions on."""
    while True:
        chunk = left.read(_CHUNK)
        if chunk != right.read(_CHUNK):
            return False
        if not chunk:
            return True
