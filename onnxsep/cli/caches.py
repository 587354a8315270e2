"""Where commands that measure keep it, and what they say of it when they are interrupted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxsep.cli.interrupts import saying
from onnxsep.model.files import printable


def cache_beside(target: Path) -> Path:
    """The folder beside a result where what was measured for it is kept."""
    return target.with_suffix(".cache")


@contextmanager
def going_on(cache: str | os.PathLike[str] | None) -> Iterator[None]:
    """Say how to go on where an interrupt comes."""
    if cache is None:
        yield
        return
    again = f"the same command goes on with what is in {printable(cache)}"
    with saying(lambda: again if Path(cache).is_dir() else "nothing was written"):
        yield
