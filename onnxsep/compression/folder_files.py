"""Which files of a work folder are a run's: those that its manifest names. All others are the user's, and stay."""

import re
import stat
from collections.abc import Iterable
from pathlib import Path

from onnxsep.model.paths import Kind, read_record

MANIFEST, LOCK = "manifest.json", "lock"
# What a step writes, after its number and name; and what is left where a process was killed while it wrote.
_ENDINGS = re.compile(r"\.onnx(\.[0-9a-f]{8}\.data)?|(\.failed)?\.json|\.checkpoint")
_TEMPORARY = re.compile(r"\.onnxsep-[0-9a-f]{16}\.tmp")


def stem(number: int, step: str) -> str:
    """What the names of a step's files begin with."""
    return f"{number:02}-{step}"


def names_step(name: str, planned: Iterable[str]) -> bool:
    """Whether a file's name is one that a run of these steps gives to the files of a step."""
    stems = (stem(number, step) for number, step in enumerate(planned, start=1))
    return any(name.startswith(begin) and _ENDINGS.fullmatch(name[len(begin) :]) for begin in stems)


def is_own(path: Path, planned: Iterable[str]) -> bool:
    """Whether a file in a work folder was written by a run of these steps; a link never was."""
    known = path.name == MANIFEST or _TEMPORARY.fullmatch(path.name) or names_step(path.name, planned)
    return bool(known) and _is_file(path)


def planned_in(folder: Path) -> tuple[str, ...] | None:
    """The steps that the manifest of a work folder plans, whichever version wrote it; None where there is none.

    The manifest beside a result lists that result, and makes no work folder of the folder where it lies.
    """
    manifest = folder / MANIFEST
    content = read_record(manifest) if _is_file(manifest) else {}
    if not str(content.get("kind")).startswith("onnxsep compress ") or content.get("result") is not None:
        return None
    planned = content.get("planned")
    return tuple(map(str, planned)) if isinstance(planned, list) else ()


def is_work_folder(folder: Path) -> bool:
    """Whether a run may use a folder: one that runs have made, or that is empty."""
    try:
        return planned_in(folder) is not None or all(_is_left_over(path) for path in folder.iterdir())
    except OSError:
        return False


WORK = Kind(
    "work",
    "work folder of onnxsep (there is no manifest of a run in it)",
    is_work_folder,
    folder=True,
    option=True,
)


def _is_left_over(path: Path) -> bool:
    """Whether a file is what a run leaves that was killed before it wrote its first manifest."""
    lock = path.name == LOCK and _is_file(path) and path.stat().st_size == 0
    return lock or (_TEMPORARY.fullmatch(path.name) is not None and _is_file(path))


def _is_file(path: Path) -> bool:
    """Whether this is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
