"""Measured latencies, kept in a folder: an item is a small file, written as soon as it is measured.

What an item holds for is in its name, as a hash, and in the item. Nothing is ever changed: another machine, version of
the runtime, number of threads or layer is another item, so that a folder can serve many models and machines.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from onnxsep.errors import ModelSaveError, spelled
from onnxsep.model.files import write_text
from onnxsep.model.paths import NOTHING, Kind, check_paths, read_record
from onnxsep.reporting.records import Record

R = TypeVar("R", bound=Record)
MARKER = "onnxsep-cache.json"
_KIND = "onnxsep latency cache"
_TEXT = "Latencies that onnxsep has measured. The folder may be removed: they are then measured again."


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache of ours, or is empty."""
    try:
        return read_record(folder / MARKER).get("kind") == _KIND or not any(folder.iterdir())
    except OSError:
        return False


CACHE = Kind("cache", f"cache of onnxsep (there is no {MARKER} in it)", is_cache, folder=True, option=True)


class LatencyCache:
    """A folder of measured latencies.

    Args:
        path: The folder; it is made where it is missing.

    Raises:
        OptionError: Something else is in the folder.
        ModelSaveError: It cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_paths(NOTHING, {CACHE: path})
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise ModelSaveError(
                f"the cache {path} cannot be made: {error.strerror or error}; name another with {spelled('cache')}"
            ) from error
        if not (path / MARKER).exists():
            write_text(path / MARKER, json.dumps({"kind": _KIND, "schema": 1, "note": _TEXT}, indent=1) + "\n")

    def find(self, kind: type[R], what: Mapping[str, object]) -> R | None:
        """An item; None where it is not there, or is damaged: it is then measured again."""
        content = read_record(self._place(what))
        if content.get("what") != dict(what):
            return None
        try:
            return kind.model_validate(content.get("found"))
        except ValidationError:
            return None

    def keep(self, what: Mapping[str, object], found: Record) -> None:
        """Write an item, atomically.

        Raises:
            ModelSaveError: It cannot be written.
        """
        text = json.dumps({"what": dict(what), "found": found.model_dump()}, indent=1)
        write_text(self._place(what), text + "\n")

    def _place(self, what: Mapping[str, object]) -> Path:
        name = hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).hexdigest()
        return self.path / f"{name[:32]}.json"
