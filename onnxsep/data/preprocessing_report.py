"""What a run has found out about the preprocessing of images: the record in its report, and its lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from onnxsep.errors import spelled
from onnxsep.reporting.records import Record

if TYPE_CHECKING:
    from onnxsep.data.preprocessing import Preprocessing

_KEYS = ("scale", "mean", "std", "layout", "size", "color")  # those that the command line has options for


class TriedPreprocessing(Record):
    """One way of preprocessing in a trial."""

    name: str
    preprocessing: dict[str, Any]
    """What differs from the defaults, as keys of a TOML file."""
    score: float
    """By the criterion; higher is better."""
    samples: int
    """On how many it was tried: those that are clearly worse are given up early."""


class PreprocessingReport(Record):
    """What was found out about the preprocessing of images, and how."""

    preprocessing: dict[str, Any]
    """What was used: what differs from the defaults, as keys of a TOML file."""
    taken_from: Literal["given", "sidecar", "metadata", "model", "trial", "default"]
    """``given``: by the user; ``model``: its first layers; ``default``: nothing was found: 0 to 1."""
    where: str = ""
    """The file or the metadata."""
    criterion: Literal["accuracy", "consistency", "normalization", "likeness"] | None = None
    """Of the trial."""
    sure: bool
    tried: tuple[TriedPreprocessing, ...] = ()
    """The best first."""
    notes: tuple[str, ...] = ()
    """What was taken and why; a warning begins with that word."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the notes that warn."""
        return tuple(note for note in self.notes if note.startswith("warning: "))


def how_to_say(preprocessing: Preprocessing) -> str:
    """What the user writes to have it so in later runs."""
    keys = {**({"scale": 1 / 255} if preprocessing.leaves_values_open else {}), **preprocessing.keys()}
    if not spelled("preprocessing").startswith("-"):
        return f"preprocessing={keys!r}"
    if set(keys) - set(_KEYS):
        return "a TOML file with " + ", ".join(f"{key} = {_toml(value)}" for key, value in keys.items())
    return " ".join(f"--{key} {_text(key, value)}" for key, value in keys.items())


def _text(key: str, value: object) -> str:
    if isinstance(value, list):
        return ("x" if key == "size" else ",").join(_number(one) for one in value)
    return _number(value)


def _number(value: object) -> str:
    for divisor in (255, 127.5):
        if isinstance(value, float) and value == 1 / divisor:
            return f"1/{divisor:g}"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
