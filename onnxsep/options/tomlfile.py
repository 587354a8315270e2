"""Reading the user's TOML files: clear errors, and a proposal where a key is misspelt."""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxsep.errors import OptionError
from onnxsep.model.files import open_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        OptionError: it cannot be read, or is not TOML.
    """
    try:
        with open_regular(path) as file:
            return dict(tomllib.load(file))
    except OSError as error:
        raise OptionError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except RecursionError as error:
        raise OptionError(f"{str(path)!r} is not a TOML file of ours: it is nested too deep") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, a NUL in the path
        raise OptionError(f"{str(path)!r} is not a TOML file: {error}") from error


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The content of a text in TOML; ``name`` is what messages call it.

    Raises:
        OptionError: it is not TOML.
    """
    try:
        return dict(tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{name} is not TOML: {error}") from error


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known.

    Raises:
        OptionError: names the key, the known ones, and the nearest of them.
    """
    known = list(known)
    for key in given:
        if key not in known:
            raise OptionError(f"{where}: there is no key {key!r}{nearest(key, known)}; known keys: {', '.join(known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The words ", did you mean ...?" for a misspelt word, empty where none of the known ones is near."""
    near = difflib.get_close_matches(word.lower(), {item.lower(): item for item in known}, n=1)
    original = {item.lower(): item for item in known}
    return f", did you mean {original[near[0]]!r}?" if near else ""
