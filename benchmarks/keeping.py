"""Results that are kept: a file for each, so that a benchmark that was ended goes on where it was."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


class Keeping:
    """A folder of results.

    Args:
        folder: Where they are; made where it is missing. None: nothing is kept.
        closed: Whether nothing is added.
    """

    def __init__(self, folder: Path | None, *, closed: bool = False) -> None:
        self._folder, self._closed = folder, closed
        if folder is not None and not closed:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of a name, made where it is not there; one that JSON gives back as it was.

        Raises:
            KeyError: It is not there, and nothing is added.
        """
        file = None if self._folder is None else self._folder / (re.sub(r"[^\w.=-]+", "_", name) + ".json")
        if file is not None and file.exists():
            found: Result = json.loads(file.read_text())
            return found
        if self._closed:
            raise KeyError(name)
        made = make()
        if file is not None:
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(made))
            unfinished.replace(file)
        return made
