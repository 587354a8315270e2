"""Names that a module has without importing them: each is imported when it is first asked for (PEP 562).

So the records of options, of which the command line makes its commands, need none of the libraries that models and data
need: ``onnxsep --help`` imports neither onnx nor numpy. Type checkers read the same names under ``TYPE_CHECKING``.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy(module: str, homes: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a module that has names of other modules.

    Args:
        module: Its ``__name__``.
        homes: Names, by the module that defines them.
    """
    home = {name: place for place, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[module], name, value)  # not asked for again
        return value

    return get, lambda: sorted({*vars(sys.modules[module]), *home})


def loaded(place: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


class Names(dict[str, Any]):
    """The names of a module as those that ``eval`` looks up, with the lazy ones."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = sys.modules[module]

    def __missing__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError:
            raise KeyError(name) from None
