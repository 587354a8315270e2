"""Types of options: what the hints of a function say, in words, and values that have another type."""

import dataclasses
import functools
import os
import sys
import types
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxsep.errors import OptionError, spelled
from onnxsep.layers.rank import RankPolicy
from onnxsep.options.lazy import Names

_LISTS = (Sequence, list, tuple)
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    os.PathLike: "a path",
    RankPolicy: "a rank",
}


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a value whose type is none of a hint's.

    numpy's numbers are numbers, and True is none. What is no plain option (models, data, callbacks) is not looked at.

    Raises:
        OptionError: instead of a TypeError somewhere in the work.
    """
    if not _fits(value, members(hint)):
        raise OptionError(f"{spelled(name)} must be {in_words(hint)}, not {value!r:.80}")


def hints_of(function: Any) -> dict[str, Any]:
    """The types of a function's parameters, or of a record's fields."""
    if dataclasses.is_dataclass(function):
        kind: Any = function
        return {one.name: hint_of(kind, one.name) for one in dataclasses.fields(kind)}
    return _hints(function)


_hints = functools.cache(get_type_hints)


def hint_of(kind: Any, name: str) -> Any:
    """The type of one field of a record. Only what this type names is imported for it."""
    return _hint(kind, name)


@functools.cache
def _hint(kind: Any, name: str) -> Any:
    home = next(one for one in kind.__mro__ if name in vars(one).get("__annotations__", ()))
    hint = home.__annotations__[name]
    if not isinstance(hint, str):
        return hint
    return eval(hint, vars(sys.modules[home.__module__]), Names(home.__module__))


def check_fields(record: Any, where: str) -> None:
    """Refuse fields of a dataclass whose type is none of its hints.

    Raises:
        OptionError: names the first of them.
    """
    kind: Any = type(record)
    for name, hint in hints_of(kind).items():
        if not _fits(value := getattr(record, name), members(hint)):
            raise OptionError(f"{where}: {name} must be {in_words(hint)}, not {value!r:.80}")


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union is made of."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for part in get_args(hint) for one in members(part))
    return (hint,)


def in_words(hint: Any) -> str:
    """What can be given for a type."""
    found: list[str] = []
    for one in members(hint):
        if get_origin(one) is Literal:
            found.append("one of " + ", ".join(map(str, get_args(one))))
        elif one in _WORDS:
            found.append(_WORDS[one])
        elif get_origin(one) in _WORDS:
            found.append(_WORDS[get_origin(one)])
        elif get_origin(one) in _LISTS:
            found.append("a list of " + ("paths" if Path in get_args(one) else "texts"))
        elif get_origin(one) is Mapping:
            found.append("a dict")
        elif _is_ours(one):
            found.append(f"a {one.__name__}")
    return " or ".join(dict.fromkeys(found)) or str(hint)


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    return any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; true for types that are no plain options."""
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool) or is_numpys(value, "bool_")
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str or get_origin(kind) is Literal:  # which words there are, the function says itself
        return isinstance(value, str)
    if kind is Path or kind is os.PathLike or get_origin(kind) is os.PathLike:
        return isinstance(value, os.PathLike)
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):  # a text is a sequence of texts, and never meant
        parts = (*members(get_args(kind)[0]), str)
        return isinstance(value, list | tuple) and all(_fits(one, parts) for one in value)
    if get_origin(kind) is Sequence and get_args(kind)[0] is not Any:
        parts = members(get_args(kind)[0])
        return isinstance(value, Sequence) and all(_fits(one, parts) for one in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping)
    return not _is_ours(kind) or isinstance(value, kind)


def is_numpys(value: Any, kind: str) -> bool:
    """Whether a value is of a class of numpy, which is not imported to know it: nothing else has made such a value."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, kind))


def _is_ours(kind: Any) -> bool:
    """Whether it is a class of this package that has instances of its own (no protocol)."""
    return (
        isinstance(kind, type) and kind.__module__.startswith("onnxsep.") and not getattr(kind, "_is_protocol", False)
    )
