"""What plans of a run measure, kept in its work folder until they are finished."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxsep.compression.folder_files import stem
from onnxsep.planner.cache import is_cache


def cache_of(checkpoint: Path) -> Path:
    """Where a step that plans keeps what it measures, until it is finished; beside its checkpoint."""
    return checkpoint.with_suffix(".cache")


def own_caches(folder: Path, runs: Iterable[Sequence[str]]) -> list[Path]:
    """The folders of what plans have measured in a work folder of runs with these steps; a link is none."""
    names = {stem(number, step) for planned in runs for number, step in enumerate(planned, start=1)}
    places = (cache_of(folder / name) for name in sorted(names))
    return [path for path in places if path.is_dir() and not path.is_symlink() and is_cache(path)]
