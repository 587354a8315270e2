"""The options that a step has: those of the record of its command, but for what belongs to a whole run.

That is the data, threads, where files are: options that their records mark so (``per_run``).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnxsep.compression.given import CompressOptions, Given
from onnxsep.errors import OptionError, spelled, worded
from onnxsep.model.saving import Savable
from onnxsep.options.hints import hints_of, in_words, members
from onnxsep.options.specs import Options, default_of, specs_of
from onnxsep.options.tomlfile import nearest

Function = Callable[..., Savable]


def _own_words() -> dict[str, str]:
    return {
        "model": "each step gets the result of the one before it",
        "dry_run": f"a recipe is run, or {worded('`onnxsep recipes NAME` shows it', 'read_recipe(NAME) shows it')}",
        "checkpoint": f"a run keeps its state by itself ({spelled('work')} names the folder)",
        "resume": f"a run that was interrupted goes on by itself, and {spelled('fresh')} starts again",
        "statistics": "a run has the data itself",
        "frontier": f"a run writes one model; {worded('`onnxsep plan`', 'plan()')} writes the curve",
        "progress": "the whole run has one",
        "report": f"the whole run has one: {spelled('report')}",
        "no_verify": 'write verify = "none"',
    }


def elsewhere(kind: type[Options]) -> Mapping[str, str]:
    """What is no option of a step, and where it is given instead, by the names of Python and of the command line."""
    found: dict[str, str] = {}
    shared = {one.name for one in fields(Given)}
    of_the_run = {name: spec for name, spec in specs_of(CompressOptions).items() if name in shared}
    of_the_run |= {name: spec for name, spec in specs_of(kind).items() if spec.per_run}
    for name, spec in of_the_run.items():
        flag = _key(spec.flag) if spec.flag else name
        inner = () if spec.expands is None else specs_of(spec.expands)
        for own in (name, flag, *inner):
            shown = own if own in inner else name
            found[own] = f"it is for all steps: give {worded(spelled(shown), name)} with the command"
    return MappingProxyType(found | _own_words())


def aliases(kind: type[Options]) -> Mapping[str, str]:
    """Names that the command line has for options which Python calls otherwise."""
    keys = {name: _key(spec.flag) for name, spec in specs_of(kind).items() if spec.flag and not spec.per_run}
    return {key: name for name, key in keys.items() if key != name and not key.startswith("no_")}


def _key(flag: str) -> str:
    return flag.partition("/")[0].removeprefix("--").replace("-", "_")


def defaults(kind: type[Options]) -> Mapping[str, Any]:
    """The options of a record that a step may have, and their defaults."""
    return MappingProxyType({name: default_of(kind, name) for name, spec in specs_of(kind).items() if not spec.per_run})


def checked(kind: type[Options], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The given options by their names in Python; values are checked by their types and stay as they are.

    Args:
        kind: The record of the command that does the step.
        given: Options; names with "-" for "_", and those of the command line, will do.
        where: Begins the messages.

    Raises:
        OptionError: A name is not known, given twice, or belongs to the whole run; a value has the wrong type.
    """
    known, others, also = defaults(kind), elsewhere(kind), aliases(kind)
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        name = also.get(name, name)
        if name in others and name not in known:
            raise OptionError(f"{where}: {key!r} is no option of a step: {others[name]}")
        if name not in known:
            words = [one.replace("_", "-") for one in (*known, *also)]
            near = nearest(key.replace("_", "-"), words)
            raise OptionError(f"{where}: there is no option {key!r}{near}; known options: {', '.join(words)}")
        if name in found:
            raise OptionError(f"{where}: {name!r} is given twice, as {key!r} too")
        plain = value.item() if isinstance(value, np.generic) else value  # numpy's numbers are numbers
        plain = list(plain) if isinstance(plain, tuple) else plain  # pydantic's old versions ask for it
        _check_value(kind, name, plain, f"{where}: {key!r}")
        found[name] = tuple(plain) if isinstance(plain, list) else plain
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in found]
    if missing:
        raise OptionError(f"{where}: the option {missing[0].replace('_', '-')!r} is missing")
    return found


def _check_value(kind: type[Options], name: str, value: Any, where: str) -> None:
    hint = hints_of(kind)[name]
    try:
        record: Any = kind
        _adapter(record, name).validate_python(value)
    except ValidationError:
        words = [word for one in members(hint) for word in get_args(one) if get_origin(one) is Literal]
        near = nearest(value, words) if isinstance(value, str) and words else ""
        raise OptionError(f"{where} must be {in_words(hint)}, not {value!r}{near}") from None


@functools.cache
def _adapter(kind: Any, name: str) -> TypeAdapter[Any]:
    # strict: the text "10" is no number, and true is no 1
    settings = ConfigDict(arbitrary_types_allowed=True, strict=True)
    return TypeAdapter(hints_of(kind)[name], config=settings)
