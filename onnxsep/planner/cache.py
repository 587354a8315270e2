"""What plans have measured, kept in a folder: an item is a small file, written as soon as it is measured.

What an item holds for is in its name, as a hash, and in the item: of a latency the machine, the version of the runtime,
the number of threads and the layer. So a folder can serve many models and machines. What was measured of one model on
one set of data is in a folder within it (``onnxsep.planner.kept``).
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
_KIND = "onnxsep cache"
_KINDS = (_KIND, "onnxsep latency cache")  # the older one held latencies alone
_TEXT = "What onnxsep has measured for plans. The folder may be removed: it is then measured again."


def short_hash(what: Mapping[str, object]) -> str:
    """Part of the SHA-256 of something, in hexadecimal: a name for it."""
    return hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).hexdigest()[:32]


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache of ours, or is empty."""
    try:
        return read_record(folder / MARKER).get("kind") in _KINDS or not any(folder.iterdir())
    except OSError:
        return False


CACHE = Kind("cache", f"cache of onnxsep (there is no {MARKER} in it)", is_cache, folder=True, option=True)


class Items:
    """Small files in a folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
        return self.path / f"{short_hash(what)}.json"


class Cache(Items):
    """A folder of what was measured, with our marker.

    Args:
        path: The folder; it is made where it is missing.

    Raises:
        OptionError: Something else is in the folder.
        ModelSaveError: It cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        check_paths(NOTHING, {CACHE: path})
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise ModelSaveError(
                f"the cache {path} cannot be made: {error.strerror or error}; name another with {spelled('cache')}"
            ) from error
        if not (path / MARKER).exists():
            write_text(path / MARKER, json.dumps({"kind": _KIND, "schema": 1, "note": _TEXT}, indent=1) + "\n")
