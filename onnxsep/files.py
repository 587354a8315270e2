"""Writing small files so that a failure leaves the target as it was."""

import os
import secrets
import stat
from pathlib import Path

from onnxsep.errors import ModelSaveError


def check_target(target: Path) -> int | None:
    """Refuse what cannot be a target; return the permissions of the file that is there, or None.

    Raises:
        ModelSaveError: the folder is missing, or the target is a folder, no regular file or write-protected.
    """
    try:
        if not target.parent.is_dir():
            raise ModelSaveError(f"{target} cannot be written: {target.parent} is not a folder. Create it first.")
        if not os.path.lexists(target):
            return None
        if target.exists():
            kind = target.stat().st_mode
            if not stat.S_ISREG(kind):
                what = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
                raise ModelSaveError(f"{target} cannot be written: it is {what}. Name a file.")
            if not os.access(target, os.W_OK):
                raise ModelSaveError(f"{target} cannot be written: it is write-protected.")
        return None if target.is_symlink() else stat.S_IMODE(target.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelSaveError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text with LF line ends, atomically.

    Raises:
        ModelSaveError: the target cannot be written; it is as it was.
    """
    mode = check_target(target)
    temporary = target.with_name(f".onnxsep-{secrets.token_hex(8)}.tmp")
    try:
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ModelSaveError(f"{target} was not written: {error.strerror or error}. Nothing was changed.") from error
