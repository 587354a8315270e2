"""The folder that goes to the device: pieces of a model, the model itself, and one script that times them.

KIT/measure.py      needs onnxruntime and numpy
KIT/manifest.json   what there is to time; it also says that the folder is ours
KIT/model.onnx, inputs.npz; and original.onnx, where the others are quantised
KIT/pieces/0.onnx, 0-spatial-7.onnx, ...
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from onnxsep._version import __version__
from onnxsep.errors import ModelSaveError
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.model.files import write_text
from onnxsep.model.io import Model
from onnxsep.model.paths import Kind, Reads, check_paths, read_record
from onnxsep.model.saving import save
from onnxsep.options.progress import Progress
from onnxsep.planner.latency import Then
from onnxsep.planner.latency_file import ProfiledModel
from onnxsep.planner.latency_work import Work
from onnxsep.running.runtime import CannotRun

MANIFEST, SCRIPT = "manifest.json", "measure.py"
_KIND, _SCHEMA = "onnxsep kit", 1
_WHOLE, _ORIGINAL, _INPUTS, _PIECES = "model.onnx", "original.onnx", "inputs.npz", "pieces"
_SHARED = "from onnxsep.running.timing import"  # the line of the script in whose place that module's text stands
_FUTURE = "from __future__ import annotations\n"
_QUIET = '\nimport os\n\nos.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")\n'


def is_kit(folder: Path) -> bool:
    """Whether a folder is a kit, of any version, or empty."""
    try:
        return read_record(folder / MANIFEST).get("kind") == _KIND or not any(folder.iterdir())
    except OSError:
        return False


KIT = Kind("the kit", f"kit of onnxsep (there is no {MANIFEST} of one in it)", is_kit, folder=True)


@dataclass(frozen=True)
class Kit:
    """What is to be timed.

    Attributes:
        model: The whole model.
        about: What identifies it.
        feeds: Inputs of it.
        work: Its pieces and their forms.
        then: What is done to these before they are written.
        whole: The model with the same done to it.
    """

    model: Model
    about: ProfiledModel
    feeds: Mapping[str, Any]
    work: Work
    then: Then
    whole: Model

    @property
    def names(self) -> dict[str, str]:
        """The file of each piece, by key."""
        return {key: f"{_PIECES}/{number}.onnx" for number, key in enumerate(self.work.pieces)}

    def save(self, folder: Path, reads: Reads, progress: Progress | None = None) -> int:
        """Write the folder; what an earlier kit has left in it goes.

        Args:
            folder: A new folder, an empty one, or a kit.
            reads: Files that must not be lost.
            progress: Told of every file.

        Returns:
            Bytes of its files.

        Raises:
            OptionError: Something else is there.
            ModelSaveError: It cannot be written; the folder then says that it is not complete.
        """
        check_paths(reads, {KIT: folder})
        try:
            folder.mkdir(exist_ok=True)
            _clear(folder)
            write_text(folder / MANIFEST, _text({"kind": _KIND, "schema": _SCHEMA, "complete": False}))
            (folder / _PIECES).mkdir(exist_ok=True)
            save(self.whole, folder / _WHOLE)
            if self.then.name:
                save(self.model, folder / _ORIGINAL)
            with (folder / _INPUTS).open("wb") as file:  # by number: names of inputs may be anything
                np.savez(file, *(np.asarray(value) for value in self.feeds.values()))
            pieces = self._written(folder, progress)
            write_text(folder / SCRIPT, script())
            write_text(folder / MANIFEST, _text(self._manifest(folder, pieces)))
            return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        except OSError as error:
            raise ModelSaveError(f"the kit {folder} cannot be written: {error.strerror or error}") from error

    def _written(self, folder: Path, progress: Progress | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for done, (key, name) in enumerate(self.names.items(), start=1):
            piece, forms = self.work.pieces[key], dict[str, Any]()
            feeds = piece.feeds()
            (folder / name).write_bytes(self._made(piece.model, feeds))
            for form, model in self.work.of(key).items():
                words = self.work.words[form]
                file = f"{name.removesuffix('.onnx')}-{re.sub('[^a-z0-9]+', '-', words.lower())}.onnx"
                (folder / file).write_bytes(self._made(model, feeds))
                forms[form[1]] = {"file": file, "what": words}
            kind = np.dtype(STORED_TYPES[piece.site.dtype]).name
            inputs = {one: [kind, list(shape)] for one, shape in piece.shapes.items()}
            found[key] = {"file": name, "inputs": inputs, "forms": forms}
            if progress is not None:
                progress("writing pieces", done, len(self.names))
        return found

    def _made(self, model: Model, feeds: Mapping[str, Any]) -> bytes:
        """The file of a piece; empty where it cannot be made what it is to be: the script says that it does not run."""
        try:
            return self.then.make(model, feeds).proto.SerializeToString()
        except CannotRun:
            return b""

    def _manifest(self, folder: Path, pieces: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": _KIND,
            "schema": _SCHEMA,
            "onnxsep": __version__,
            "complete": True,
            "model": self.about.model_dump(),
            "whole": _WHOLE,
            **({"then": self.then.name, "original": _ORIGINAL} if self.then.name else {}),
            "inputs": list(self.feeds),
            "pieces": pieces,
            "files": sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()),
        }


def script() -> str:
    """The text of the script: that of ``onnxsep.profiling.on_device``, with the timing in it."""
    own = (files("onnxsep.profiling") / "on_device.py").read_text(encoding="utf-8")
    timing = (files("onnxsep.running") / "timing.py").read_text(encoding="utf-8")
    timing = timing.partition(_FUTURE)[2]
    before, _, behind = own.partition(_SHARED)
    head, _, imports = before.partition(_FUTURE)
    return head + _FUTURE + _QUIET + imports + timing + behind.partition("\n")[2]


def _clear(folder: Path) -> None:
    """Remove what an earlier kit has put there; other files stay."""
    listed = read_record(folder / MANIFEST).get("files")
    for path in _own(folder, listed if isinstance(listed, list) else []):
        path.unlink(missing_ok=True)


def _own(folder: Path, listed: list[Any]) -> Iterator[Path]:
    known = re.compile(rf"{_PIECES}/[a-z0-9-]+\.onnx|{SCRIPT}|{_INPUTS}|(model|original)\.onnx(\.[0-9a-f]+\.data)?")
    for name in listed:
        path = folder / str(name)
        if known.fullmatch(str(name)) and path.is_file() and not path.is_symlink():
            yield path


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
