"""Commands from records: what the command line asks for is read from the record of a command's options.

A command is a function of what was given (:class:`Given`), and says which record it takes, which arguments, and which
of the options about output (:class:`Shown`) it has.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_origin

import typer

from onnxsep.cli.app import GroupedCommand, app
from onnxsep.cli.options import Shown, set_debug
from onnxsep.errors import on_the_command_line
from onnxsep.model.paths import MODEL, Kind, Read, Reads, check_paths, read_of
from onnxsep.options.hints import hint_of, members
from onnxsep.options.proposals import proposing
from onnxsep.options.specs import Options, Spec, choices, default_of, shown_help, specs_of
from onnxsep.options.tomlfile import nearest

R = TypeVar("R", bound=Options)
_LISTS: dict[Any, str] = {list[str]: "TEXT", list[Path]: "FILE"}  # what ``--help`` shows for an item


@dataclass(frozen=True)
class Argument:
    """An argument of a command, which has no name on the command line.

    Attributes:
        name: As the Python function calls it.
        help: What it is.
        metavar: What stands for it in ``--help``.
        required: Whether it must be given.
        several: Whether there may be more than one.
        reads: What messages call the file, if it is read.
        readable: Whether the parser already looks if a file that is there can be read.
    """

    name: str
    help: str
    metavar: str | None = None
    required: bool = True
    several: bool = False
    reads: str | None = None
    readable: bool = True


def model_to(do: str, metavar: str = "IN.onnx") -> Argument:
    """The model that a command works on."""
    return Argument("model", f"The model to {do}.", metavar, reads=MODEL, readable=False)


OUT = Argument("out", "Where the result goes.", "OUT.onnx")
OPTIONAL_OUT = Argument("out", "Where the result goes.", "OUT.onnx", required=False)


@dataclass(frozen=True)
class Given(Generic[R]):
    """What was given on the command line.

    Attributes:
        arguments: By name.
        options: The record, checked.
        shown: What is done with the report.
        read: The files that are read.
    """

    arguments: Mapping[str, Any]
    options: R
    shown: Shown
    read: tuple[Read, ...]

    def keywords(self, **others: Any) -> dict[str, Any]:
        """The options as keywords of the Python function; ``others`` stand in the place of those."""
        own = {name: getattr(self.options, name) for name in specs_of(type(self.options))}
        return {**own, **others}

    def check_paths(
        self, targets: Mapping[Kind, Path | None], *more: Iterable[Read], options: Options | None = None
    ) -> None:
        """Refuse targets that would overwrite something.

        Args:
            targets: What is written beside the files that options name.
            more: What is read beside those.
            options: The options as the command completes them.
        """
        writes = (options or self.options).writes()
        check_paths(Reads.of(None, self.read, *more), {**targets, **self.shown.writes(), **writes})


@dataclass(frozen=True)
class Command(Generic[R]):
    """A command of the command line.

    Attributes:
        name: What the user types.
        kind: The record of its options.
        arguments: What stands before them.
        run: Does it.
    """

    name: str
    kind: type[R]
    arguments: tuple[Argument, ...]
    run: Callable[[Given[R]], None]

    def __call__(self, arguments: Mapping[str, Any], options: R, shown: Shown, texts: Sequence[Options] = ()) -> None:
        """Do it with what was given."""
        read: list[Read] = []
        for one in self.arguments:
            if one.reads is not None:
                read += read_of(one.reads, arguments[one.name])
        read += options.reads()
        for more in texts:
            read += more.reads()
        self.run(Given(arguments, options, shown, tuple(read)))


COMMANDS: dict[str, Command[Any]] = {}
"""The commands that take a record, by name."""


def command(
    kind: type[R], *arguments: Argument, example: str = "", shown: Sequence[str] = ("report", "quiet", "json", "debug")
) -> Callable[[Callable[[Given[R]], None]], Command[R]]:
    """Make a function a command of the command line; its documentation is the command's.

    Args:
        kind: The record of its options.
        arguments: What stands before them.
        example: A command line that works.
        shown: Which options about output it has.
    """

    def decorate(function: Callable[[Given[R]], None]) -> Command[R]:
        made_of = Command(function.__name__, kind, arguments, function)
        COMMANDS[made_of.name] = made_of
        register(made_of, function.__doc__ or "", example, shown)
        return made_of

    return decorate


@dataclass(frozen=True)
class _Asked:
    """A parameter of the command line: the record that it belongs to, and its option."""

    kind: type[Options]
    name: str
    spec: Spec


def asked_of(kind: type[Options]) -> list[_Asked]:
    """The parameters of a record on the command line, those of inner records in their places."""
    found: list[_Asked] = []
    for name, spec in specs_of(kind).items():
        if spec.expands is not None:
            found += asked_of(spec.expands)
        elif spec.flag is not None:
            found.append(_Asked(kind, name, spec))
    return found


def register(made_of: Command[Any], text: str, example: str, shown: Sequence[str]) -> None:
    """Add a command to the application."""
    asked = [*asked_of(made_of.kind), *(one for one in asked_of(Shown) if one.name in shown)]
    parameters = [_argument(one) for one in made_of.arguments]
    with on_the_command_line():
        for one in asked:
            parameters += _parameters(one)

    def called(**values: Any) -> None:
        arguments = {one.name: values.pop(one.name) for one in made_of.arguments}
        own = Shown(**{name: values.pop(name) for name in shown})
        texts: list[Options] = []
        options = from_values(made_of.kind, values, texts)
        made_of(arguments, options, own, texts)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(made_of.name, cls=GroupedCommand, help=inspect.cleandoc(text), epilog=example)(called)


def from_values(kind: type[R], values: Mapping[str, Any], texts: list[Options]) -> R:
    """A record from what the command line gives; the records of texts within it are added to ``texts``."""
    given: dict[str, Any] = {}
    for name, spec in specs_of(kind).items():
        if spec.expands is not None:
            built = from_values(spec.expands, values, texts)
            texts.append(built)
            given[name] = built.build()
        elif spec.flag is not None:
            given[name] = _value(kind, name, spec, values)
    return kind(**given)


def _value(kind: type[Options], name: str, spec: Spec, values: Mapping[str, Any]) -> Any:
    if _only_off(kind, name, spec):
        return False if values[_key(flag_of(name, spec))] else default_of(kind, name)
    value = values[name]
    for flag, stands_for in spec.switches.items():
        if values[_key(flag)]:
            if value not in (default_of(kind, name), stands_for):
                raise typer.BadParameter(f"{flag} and {flag_of(name, spec)} {value} contradict each other")
            value = stands_for
    words = choices(kind, name)
    if words and value is not None and value not in words:
        near = nearest(value, words)
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(words)}{near}", param_hint=flag_of(name, spec))
    if spec.parse is not None and value is not None:
        return spec.parse(value)
    if isinstance(value, list):
        return tuple(value)
    return default_of(kind, name) if value is None and _is_list(kind, name, spec) else value


def _only_off(kind: type[Options], name: str, spec: Spec) -> bool:
    """Whether an option is a flag that switches off what is on by default."""
    return typed(kind, name, spec) is bool and (spec.flag or "").startswith("--no-")


def _argument(one: Argument) -> inspect.Parameter:
    several = list[Path] if one.several else Path
    info = typer.Argument(help=one.help, metavar=one.metavar, readable=one.readable)
    default = inspect.Parameter.empty if one.required else None
    hint = Annotated[several if one.required else several | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def flag_of(name: str, spec: Spec) -> str:
    """What an option is called on the command line."""
    return spec.flag or "--" + name.replace("_", "-")


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _is_list(kind: type[Options], name: str, spec: Spec) -> bool:
    return get_origin(typed(kind, name, spec)) is list


def typed(kind: type[Options], name: str, spec: Spec) -> Any:
    """The type of what is typed for an option."""
    if spec.typed is not None:
        return spec.typed
    parts = [part for part in members(hint_of(kind, name)) if part is not type(None)]
    if any(
        get_origin(part) in (Sequence, list, tuple) or getattr(part, "__name__", "") == "Sequence" for part in parts
    ):
        return list[str]
    if any(part is os.PathLike or get_origin(part) is os.PathLike or part is Path for part in parts):
        return Path
    for plain in (bool, int, float):
        if plain in parts:
            return plain
    return str


def _parameters(one: _Asked) -> list[inspect.Parameter]:
    """The parameters of an option: itself, and a flag for each value that has one."""
    spec, default = one.spec, default_of(one.kind, one.name)
    kind = typed(one.kind, one.name, spec)
    flag = flag_of(one.name, spec)
    info: dict[str, Any] = {"help": shown_help(spec), "rich_help_panel": spec.group or None}
    words = choices(one.kind, one.name)
    if metavar := spec.metavar or "|".join(words) or _LISTS.get(kind):
        info["metavar"] = metavar
    if words or spec.proposed:
        info["autocompletion"] = proposing(words or spec.proposed)
    if spec.minimum is not None and kind in (int, float):
        info["min"] = spec.minimum
    if one.name == "debug":
        info["callback"] = set_debug
    if _only_off(one.kind, one.name, spec):
        return [_parameter(_key(flag), bool, typer.Option(flag, **info), False)]
    names = [flag, *([spec.short] if spec.short else [])]
    several = get_origin(kind) is list
    optional = several or default is None
    annotation = kind | None if optional and kind is not bool else kind
    if kind is bool and default is None:
        annotation = bool | None
    shown_default = None if several else default
    found = [_parameter(one.name, annotation, typer.Option(*names, **info), shown_default)]
    for switch, stands_for in spec.switches.items():
        words = typer.Option(switch, help=f"The same as {flag} {stands_for}.", rich_help_panel=spec.group or None)
        found.append(_parameter(_key(switch), bool, words, False))
    return found


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])
