"""Functions that take the options of a record: typed keywords for the caller, one record for the function."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from onnxsep.options.hints import check_value, hints_of
from onnxsep.options.progress import telling
from onnxsep.options.specs import Options, default_of, python_help, specs_of

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
_Record = TypeVar("_Record", bound=Options)
_Taken = TypeVar("_Taken", bound=Options, covariant=True)
_LISTED = "    options: each by its name."  # the line of a docstring that becomes the list of options


class Takes(Protocol[P, _Taken]):
    """What gives a function the keywords of a record."""

    @overload
    def __call__(self, function: Callable[[A, _Taken], T], /) -> Callable[Concatenate[A, P], T]: ...
    @overload
    def __call__(self, function: Callable[[A, B, _Taken], T], /) -> Callable[Concatenate[A, B, P], T]: ...


def takes(kind: Callable[P, _Record]) -> Takes[P, _Record]:
    """Let a function, whose last parameter is a record of options, be called with the options as keywords.

    Types are checked, then the record's own ``check``, before the function does anything; its documentation lists the
    options.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(function).parameters.values())[:-1]
        signature = inspect.Signature(
            [*own, *parameters_of(kind)], return_annotation=inspect.signature(function).return_annotation
        )

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            bound = bind(signature, function.__name__, args, kwargs)
            given = {one.name: bound.pop(one.name) for one in own}
            hints = hints_of(function)
            for name, value in given.items():
                if name in hints:
                    check_value(name, value, hints[name])
            options = made(kind, bound)
            with telling(getattr(options, "progress", None)) as told:
                if told is not getattr(options, "progress", None):
                    options = replace(options, progress=told)
                return function(**given, **{last: options})

        last = list(inspect.signature(function).parameters)[-1]
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__doc__ = documented(function.__doc__ or "", kind)
        called.options = kind  # type: ignore[attr-defined]
        return called

    return decorate


def bind(signature: inspect.Signature, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name.

    Raises:
        TypeError: as Python raises it, with the function's name.
    """
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None


def made(kind: Callable[..., _Record], given: Mapping[str, Any]) -> _Record:
    """A record from keywords, checked.

    Raises:
        OptionError: a value has the wrong type, or cannot be used.
    """
    for name, value in given.items():
        check_value(name, value, hints_of(kind)[name])
    found = kind(**given)
    found.check()
    return found


def parameters_of(kind: Any) -> list[inspect.Parameter]:
    """The options of a record as keyword parameters."""
    hints = hints_of(kind)
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default_of(kind, name), annotation=hints[name])
        for name in specs_of(kind)
    ]


def documented(text: str, kind: Any) -> str:
    """A docstring in which the options of a record stand in the place of the line that says so."""
    lines = [f"    {name}: {python_help(spec)}" for name, spec in specs_of(kind).items()]
    before, line, behind = inspect.cleandoc(text).partition(_LISTED)
    return before + "\n".join(lines) + behind if line else before
