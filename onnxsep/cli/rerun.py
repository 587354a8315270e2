"""onnxsep rerun: a run again, from the report that it has left."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxsep._version import __version__
from onnxsep.cli.app import GroupedCommand, app, say
from onnxsep.cli.derived import COMMANDS, Argument, Command
from onnxsep.cli.options import Debug, Json, Quiet, Shown, printing
from onnxsep.cli.words import plain, words_of
from onnxsep.errors import OnnxsepError, OptionError
from onnxsep.model.paths import read_record
from onnxsep.options.specs import IN_MEMORY, Options, in_memory, specs_of

if TYPE_CHECKING:
    from onnxsep.model.io import Model


@app.command(cls=GroupedCommand, epilog="onnxsep rerun run.json out.onnx")
def rerun(
    report: Annotated[Path, typer.Argument(help="The report of the run: of --report, or of --json.")],
    target: Annotated[
        Path | None, typer.Argument(help="Where the result goes; where it went by default.", metavar="OUT.onnx")
    ] = None,
    line: Annotated[bool, typer.Option("--print", help="Print the command line, and run nothing.")] = False,
    new_report: Annotated[
        Path | None,
        typer.Option("--report", help="Write the report to this file: as a page where it ends in .html, else as JSON."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Repeat a run with the options that its report holds."""
    content = read_record(report)
    asked = _asked(content, report)
    command = COMMANDS[str(content["command"])]
    places = _arguments(command, content, asked, target)
    if line:
        words = _words(command, asked, places)
        with printing():
            typer.echo(shlex.join(["onnxsep", command.name, *words]))
        return
    options = _options(command, asked)
    _warn(content, places)
    command(places, options, Shown(report=new_report, quiet=quiet, json=as_json, debug=debug))


def _asked(content: Mapping[str, Any], report: Path) -> dict[str, Any]:
    """What a report says of the options.

    Raises:
        OptionError: it is no report, or one that does not say them.
    """
    if not content:
        raise OptionError(f"{report} is no report of onnxsep: give the file that --report has written")
    asked = content.get("options")
    if not isinstance(asked, dict) or not asked or content.get("command") not in COMMANDS:
        raise OptionError(
            f"{report} does not say all options of the run, as reports of older versions do not; give it anew"
        )
    return asked


def _arguments(
    command: Command[Any], content: Mapping[str, Any], asked: Mapping[str, Any], target: Path | None
) -> dict[str, Any]:
    """The arguments of the command."""
    found: dict[str, Any] = {}
    for one in command.arguments:
        value = asked.get(one.name)
        if one.name == "out":
            found[one.name] = target or _target(one, content, asked)
            continue
        _refuse_memory(one.name, value)
        if value is None:
            raise OptionError(f"the report does not say the {one.name} of the run")
        found[one.name] = [Path(item) for item in value] if one.several else Path(value)
    return found


def _target(one: Argument, content: Mapping[str, Any], asked: Mapping[str, Any]) -> Path | None:
    written = content.get("output")
    if isinstance(written, str):
        return Path(written)
    if one.required or not asked.get("dry_run"):
        raise OptionError("the result of that run was not saved: say where that of this one goes (OUT.onnx)")
    return None


def _refuse_memory(name: str, value: Any) -> None:
    """Refuse what only the process of that run had.

    Raises:
        OptionError: it did.
    """
    if in_memory(value):
        kind = value.get(IN_MEMORY) if isinstance(value, dict) else None
        words = f"an object of Python ({kind})" if kind else "objects of Python"
        raise OptionError(f"{name} was {words} in that run, which no report can hold: repeat it in Python")


def _given(kind: type[Options], asked: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the report says of the options of a record; those that it does not know have their defaults."""
    for name in specs_of(kind):
        if name in asked:
            _refuse_memory(name, asked[name])
            yield name, asked[name]


def _options(command: Command[Any], asked: Mapping[str, Any]) -> Options:
    specs, given = specs_of(command.kind), {}
    for name, value in _given(command.kind, asked):
        expands = specs[name].expands
        given[name] = plain(value) if expands is None else expands.revived(value)
    found: Options = command.kind(**given)
    return found


def _words(command: Command[Any], asked: Mapping[str, Any], places: Mapping[str, Any]) -> list[str]:
    """The words of the command line behind the command's name."""
    words: list[str] = []
    for place in places.values():
        words += map(str, place if isinstance(place, list) else [] if place is None else [place])
    for name, value in _given(command.kind, asked):
        words += words_of(command.kind, name, value)
    return words


def _warn(content: Mapping[str, Any], places: Mapping[str, Any]) -> None:
    """Say where the version, or the file of the model, is another one."""
    from onnxsep.model.io import load

    version = content.get("onnxsep", __version__)
    if version != __version__:
        say(f"onnxsep: warning: the report was made by onnxsep {version}, and this is {__version__}")
    rows, source = content.get("models"), content.get("source")
    measured = [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    infos = [source] if isinstance(source, dict) else measured
    models = places.get("models") or [places["model"]]
    for model, info in zip(models, infos, strict=False):
        with suppress(OnnxsepError):  # the command itself will say so
            if (found := _other(load(model, follow_links=True), info)) is not None:
                say(f"onnxsep: warning: {model} {found}: it is another model")


def _other(model: "Model", info: Mapping[str, Any]) -> str | None:
    """How a model differs from the one that a report speaks of; None where it does not, as far as that is known."""
    from onnxsep.reporting.model_info import sha256, size_bytes

    now, size = size_bytes(model), info.get("size_bytes", info.get("file_bytes"))
    if isinstance(size, int) and now != size:
        return f"has {now:,} bytes, and had {size:,}"
    known = info.get("sha256")
    if known is not None and (found := sha256(model)) != known:
        return f"has the SHA-256 {found}, and had {known}"
    return None
