"""What the shell's completion proposes for an option: found without importing what it names."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from onnxsep.options.lazy import loaded

MODES_GROUP = "onnxsep.modes"  # of entry points
RECIPES = Path(__file__).parents[1] / "recipes"
MODES = f"{__name__}:modes"


def modes() -> list[str]:
    """The names of the installed modes."""
    return sorted({one.name for one in entry_points(group=MODES_GROUP)})


def recipes() -> list[str]:
    """The names of the recipes that come with onnxsep."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def proposing(words: Iterable[str]) -> Callable[[str], list[str]]:
    """What proposes some words, or those that a function finds, which is named as ``module:function``."""

    def propose(incomplete: str) -> list[str]:
        with suppress(Exception):  # what cannot be listed is not proposed; an error would be in the user's way
            found = loaded(words)() if isinstance(words, str) else words
            return [word for word in found if word.startswith(incomplete)]
        return []

    return propose


TARGETS = (
    "params=0.4",
    "macs=0.5",
    "size=0.3",
    "latency=0.6",
    "ram=0.7",
    "drop=1",
    "error=0.05",
    "kl=0.02",
)  # of a plan
