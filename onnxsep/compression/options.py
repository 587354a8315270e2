"""The options that a step has: read from the signature of the function that does it, so that they are listed once.

What belongs to a whole run, and not to one step (the data, threads, where files are), is no option of a step.
"""

import functools
import inspect
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import onnx
from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnxsep.errors import OptionError
from onnxsep.model.io import Model
from onnxsep.model.saving import Savable
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.options.hints import in_words, members
from onnxsep.options.tomlfile import nearest
from onnxsep.planner.plan_file import PlanFile

Function = Callable[..., Savable]

_PREPROCESSING = "it is for all steps: give --{0} with the command (in Python: preprocessing=)"
ELSEWHERE: dict[str, str] = {
    "model": "each step gets the result of the one before it",
    "dry_run": "a recipe is run, or `onnxsep recipes NAME` shows it",
    "checkpoint": "a run keeps its state by itself (--work names the folder)",
    "resume": "a run that was interrupted goes on by itself, and --fresh starts again",
    "statistics": "a run has the data itself",
    "progress": "the whole run has one",
    "report": "the whole run has one: --report",
    "no_verify": 'write verify = "none"',
    "preprocess": _PREPROCESSING.format("preprocess"),
    **{name: _PREPROCESSING.format(name) for name in ("scale", "mean", "std", "layout", "size", "color")},
    **{
        name: f"it is for all steps: give --{name.replace('_', '-')} with the command (in Python: {argument}=)"
        for name, argument in (
            ("data", "data"),
            ("labels", "labels"),
            ("output", "output"),
            ("inputs", "inputs"),
            ("input_shape", "input_shapes"),
            ("input_shapes", "input_shapes"),
            ("preprocessing", "preprocessing"),
            ("follow_links", "follow_links"),
            ("device", "device"),
            ("runtime", "runtime"),
            ("threads", "runtime"),
            ("provider", "runtime"),
            ("custom_op_library", "runtime"),
            ("time_limit", "runtime"),
        )
    },
}
"""What is no option of a step, and where it is given instead."""


@functools.cache
def defaults(function: Function) -> Mapping[str, Any]:
    """The options of a function that a step may have, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return types.MappingProxyType({one.name: one.default for one in parameters if one.name not in ELSEWHERE})


def checked(function: Function, given: Mapping[str, Any], aliases: Mapping[str, str], where: str) -> dict[str, Any]:
    """The given options by the function's own names; values are checked by its type hints and stay as they are.

    Args:
        function: What does the step.
        given: Options; names with "-" for "_", as on the command line, and ``aliases`` will do.
        aliases: Names that the command has for parameters which are called otherwise.
        where: Begins the messages.

    Raises:
        OptionError: A name is not known, given twice, or belongs to the whole run; a value has the wrong type.
    """
    known = defaults(function)
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        name = aliases.get(name, name)
        if name in ELSEWHERE and name not in known:
            raise OptionError(f"{where}: {key!r} is no option of a step: {ELSEWHERE[name]}")
        if name not in known:
            words = [one.replace("_", "-") for one in (*known, *aliases)]
            near = nearest(key.replace("_", "-"), words)
            raise OptionError(f"{where}: there is no option {key!r}{near}; known options: {', '.join(words)}")
        if name in found:
            raise OptionError(f"{where}: {name!r} is given twice, as {key!r} too")
        plain = value.item() if isinstance(value, np.generic) else value  # numpy's numbers are numbers
        _check_value(function, name, plain, f"{where}: {key!r}")
        found[name] = tuple(plain) if isinstance(plain, list) else plain
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in found]
    if missing:
        raise OptionError(f"{where}: the option {missing[0].replace('_', '-')!r} is missing")
    return found


def as_json(value: Any) -> Any:
    """A value of an option as JSON can hold it; a recipe takes it back, but for models, which become words."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mode | BlockMode):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, onnx.ModelProto | Model):
        return "a model in memory"
    if isinstance(value, PlanFile):
        return "a plan in memory"
    if isinstance(value, Sequence):
        return [as_json(item) for item in value]
    return str(value)  # a RankPolicy


def _check_value(function: Function, name: str, value: Any, where: str) -> None:
    hint = get_type_hints(function)[name]
    try:
        _adapter(function, name).validate_python(value)
    except ValidationError:
        words = [word for one in members(hint) for word in get_args(one) if get_origin(one) is Literal]
        near = nearest(value, words) if isinstance(value, str) and words else ""
        raise OptionError(f"{where} must be {in_words(hint)}, not {value!r}{near}") from None


@functools.cache
def _adapter(function: Function, name: str) -> TypeAdapter[Any]:
    # strict: the text "10" is no number, and true is no 1
    settings = ConfigDict(arbitrary_types_allowed=True, strict=True)
    return TypeAdapter(get_type_hints(function)[name], config=settings)
