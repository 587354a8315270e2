"""Types of options: what the hints of a function say, in words, and values that have another type."""

import functools
import inspect
import os
import types
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from onnxsep.errors import OptionError
from onnxsep.types import RankPolicy

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")
_LISTS = (Sequence, list, tuple)
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    RankPolicy: "a rank",
}


def checks_types(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let a function refuse, before it does anything, options whose type is none of its hints.

    numpy's numbers are numbers, and True is none. What is no plain option (models, data, callbacks) is not looked at.

    Raises:
        OptionError: instead of a TypeError somewhere in the work.
    """

    @functools.wraps(function)
    def checked(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        hints = _hints(function)
        for name, value in inspect.signature(function).bind_partial(*args, **kwargs).arguments.items():
            if name in hints and not _fits(value, members(hints[name])):
                raise OptionError(f"{name} must be {in_words(hints[name])}, not {value!r:.80}")
        return function(*args, **kwargs)

    return checked


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


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
        elif get_origin(one) in _LISTS:
            found.append("a list of texts")
    return " or ".join(dict.fromkeys(found)) or str(hint)


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    return any(_is(value, kind) for kind in kinds)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; true for types that are no plain options."""
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str or get_origin(kind) is Literal:  # which words there are, the function says itself
        return isinstance(value, str)
    if kind is Path or kind is os.PathLike or get_origin(kind) is os.PathLike:
        return isinstance(value, os.PathLike)
    if get_origin(kind) is Sequence and get_args(kind) == (str,):
        return isinstance(value, Sequence) and all(isinstance(one, str) for one in value)
    return kind is not RankPolicy or isinstance(value, RankPolicy)
