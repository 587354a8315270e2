"""A run of training on the disk after each epoch, so that it can go on where it was interrupted.

The file holds tensors, numbers and text, and is read with torch's ``weights_only``: it cannot run code. It is written
beside the old one, which it then replaces: a full disk leaves the old one.
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxsep.errors import OptionError, spelled
from onnxsep.model.files import NewFiles
from onnxsep.model.paths import Kind
from onnxsep.training.converters import import_torch

_FORMAT = "onnxsep finetune 1"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        values: Parameters and running statistics by name, as they are.
        best: The best ones so far.
        optimizer: The ``state_dict`` of the optimiser.
        progress: Everything else, as JSON can hold it.
    """

    values: Mapping[str, Any]
    best: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    progress: Mapping[str, Any]


class CheckpointFile:
    """Where a run keeps its checkpoint.

    Args:
        path: The file.
        run: What the run is made of (model, data, options), by words for the user: only the same run can go on.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path, self._run = path, {key: _digest(value) for key, value in run.items()}

    def write(self, state: Checkpoint) -> None:
        """Replace the file.

        Raises:
            ModelSaveError: It cannot be written; it is as it was.
        """
        buffer = io.BytesIO()
        content = {
            "format": _FORMAT,
            "run": json.dumps(self._run),
            "progress": json.dumps(dict(state.progress)),
            "values": dict(state.values),
            "best": dict(state.best),
            "optimizer": dict(state.optimizer),
        }
        import_torch().save(content, buffer)
        with NewFiles(self.path) as new:
            new.commit(buffer.getvalue())

    def read(self) -> Checkpoint | None:
        """The state that the file holds; None where there is no file, or nothing in it.

        Raises:
            OptionError: It holds no checkpoint, or that of another run; the message names what differs.
        """
        if not _is_used(self.path):
            return None
        torch = import_torch()
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise ValueError(content["format"])
            run, progress = json.loads(content["run"]), json.loads(content["progress"])
            state = Checkpoint(content["values"], content["best"], content["optimizer"], progress)
        except Exception as error:  # torch raises whatever the bytes lead to
            raise OptionError(
                f"{self.path} is no checkpoint of this version of onnxsep; remove it, or name another file"
            ) from error
        other = [key for key in self._run if run.get(key) != self._run[key]]
        if other:
            raise OptionError(
                f"{self.path} is the checkpoint of another run: {', '.join(other)} differ; give the same options, or"
                " remove the file to start anew"
            )
        return state


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one of these, of any version of onnxsep; torch is not needed."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(b"onnxsep finetune " in archive.read(name) for name in names)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


CHECKPOINT = Kind("checkpoint", "checkpoint of onnxsep", is_checkpoint, option=True)


def check_new(path: Path | None, *, resume: bool) -> None:
    """Refuse to begin anew over the checkpoint of an unfinished run.

    Raises:
        OptionError: There is one.
    """
    if path is not None and not resume and _is_used(path):
        raise OptionError(f"{path} is there already; add {spelled('resume', True)} to go on from it, or remove it")


def _is_used(path: Path) -> bool:
    """Whether there is anything in a file."""
    return path.exists() and path.stat().st_size > 0


def _digest(value: Any) -> str:
    """A value, or a hash of it where it is long."""
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 100 else hashlib.sha256(text.encode()).hexdigest()
