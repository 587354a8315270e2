"""What can be chosen of a mode beside its rank: ``--set reduction=4``.

A mode declares its settings, and reads their values with ``self.setting(name)``. What the user gives, on the command
line, in Python, in a recipe or in a plan, comes through ``with_settings``, which refuses all else.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from onnxsep.errors import OptionError, spelled
from onnxsep.options.tomlfile import nearest

_Own = TypeVar("_Own", bound="Adjustable")
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_SWITCH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True)
class Setting:
    """One thing that a mode lets the user choose.

    Attributes:
        name: The user's word for it.
        default: Its value where nothing is given; values are of the same type: bool, int, float or str.
        help: What it does, in a few words.
        fits: Whether a value is in range, and the range in words, as in "1 or more".
        choices: The words that a text may be.
    """

    name: str
    default: bool | int | float | str
    help: str
    fits: tuple[Callable[[Any], bool], str] | None = None
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return _KINDS[type(self.default)] + (f", {self.fits[1]}" if self.fits else "")

    @property
    def line(self) -> str:
        """All about it in one line."""
        return f"{self.name}={as_text(self.default)}: {self.help} ({self.values})"

    def value(self, given: object) -> bool | int | float | str:
        """What was given, a number or a word or the text of one, as a value.

        Raises:
            OptionError: It is of another type, or out of range.
        """
        found = self._typed(given)
        wrong = found is None or (self.choices and found not in self.choices)
        if wrong or (self.fits is not None and not self.fits[0](found)):
            near = nearest(given, self.choices) if isinstance(given, str) else ""
            raise OptionError(f"{self.name} must be {self.values}, not {given!r:.80}{near}")
        assert found is not None
        return found

    def _typed(self, given: object) -> bool | int | float | str | None:
        kind = type(self.default)
        try:
            if kind is str:
                return given if isinstance(given, str) else None
            if kind is bool:
                return _SWITCH.get(given.lower()) if isinstance(given, str) else given if given in (0, 1) else None
            if isinstance(given, bool):
                return None
            if kind is int:
                return int(given) if isinstance(given, str | Integral) else None
            return float(given) if isinstance(given, str | Real) else None
        except ValueError:
            return None


class Adjustable:
    """What has settings: base of both kinds of modes."""

    name: ClassVar[str]
    settings: ClassVar[tuple[Setting, ...]] = ()
    """What the user can choose of it."""
    given: Mapping[str, bool | int | float | str] = _NOTHING
    """What the user has chosen, by name."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "given": dict(self.given)}  # the view of it cannot be sent to another process

    def setting(self, name: str) -> Any:
        """The value of a setting."""
        return {**{one.name: one.default for one in self.settings}, **self.given}[name]

    def with_settings(self: _Own, given: Mapping[str, object] | None) -> _Own:
        """The mode with these settings, beside those that it was given before; the mode itself stays as it is.

        Args:
            given: Values by name, or texts of them.

        Raises:
            OptionError: It has no such setting, or the setting no such value.
        """
        if not given:
            return self
        known = {one.name: one for one in self.settings}
        if not known:
            raise OptionError(f"mode {self.name} has no settings; leave {spelled('settings')} out")
        values = dict(self.given)
        for name, value in given.items():
            if name not in known:
                lines = "; ".join(one.line for one in known.values())
                raise OptionError(f"mode {self.name} has no setting {name!r}{nearest(name, known)}; it has {lines}")
            try:
                values[name] = known[name].value(value)
            except OptionError as error:
                raise OptionError(f"mode {self.name}: {error}") from None
        changed = copy.copy(self)
        changed.given = MappingProxyType(values)
        return changed


def as_text(value: object) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_settings(texts: Iterable[str]) -> dict[str, str]:
    """What ``--set NAME=VALUE`` says.

    Raises:
        OptionError: A text is not of that form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals or not value:
            raise OptionError(f"{spelled('settings')} {text!r}: write it as NAME=VALUE, for example reduction=4")
        if name in found:
            raise OptionError(f"{spelled('settings')}: {name!r} is given twice")
        found[name] = value
    return found


NUMBERS = (lambda text: bool(whole_numbers(text)), "whole numbers, as in 10,22,42")
"""What fits a setting of several numbers."""


def whole_numbers(text: str) -> list[int]:
    """The numbers of "10,22,42", all 1 or more; nothing where it is no such text."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    return numbers if len(numbers) == len(parts) and min(numbers) > 0 else []
