"""onnxsep inspect, check and modes: looking, and changing nothing."""

import json
from collections.abc import Callable
from typing import Any, Literal

import typer

import onnxsep
from onnxsep.checking.options import CheckOptions
from onnxsep.cli.app import OUTPUT, GroupedCommand, app, say
from onnxsep.cli.derived import Argument, Given, command, model_to
from onnxsep.cli.options import Debug, Json, printed, printing, progress_bar, shower, written
from onnxsep.model.files import write_text
from onnxsep.options.lazy import loaded
from onnxsep.options.specs import option, record
from onnxsep.reporting.document import Document, Line
from onnxsep.rewriting.inspect_options import InspectOptions


@command(InspectOptions, model_to("look at"), example="onnxsep inspect in.onnx --mode spatial", shown=("json", "debug"))
def inspect(given: Given[InspectOptions]) -> None:
    """List every Conv, what each mode would make of it, parameters and MACs; runs nothing and changes nothing."""
    with progress_bar(given.shown.silent) as progress:
        found = onnxsep.inspect(given.arguments["model"], **given.keywords(progress=progress))
    shower(given.shown)(found)


@record
class CheckCommand(CheckOptions):
    """What ``check`` is asked for, and the form of its answer."""

    style: Literal["text", "json", "github", "junit"] = option(
        default="text", group=OUTPUT, flag="--format", kept=False, help="In which form the answer is."
    )


_REFERENCE = Argument("reference", "Another .onnx, or a structure as text (.txt).", reads="the reference")


@command(
    CheckCommand,
    model_to("check", "MODEL.onnx"),
    _REFERENCE,
    example="onnxsep check out.onnx reference.txt",
    shown=("report", "quiet", "debug"),
)
def check(given: Given[CheckCommand]) -> None:
    """Compare a model with a reference: structure, weights, outputs. Exit status 3 where they differ."""
    given.check_paths({})
    asked = given.keywords()
    style = asked.pop("style")
    with progress_bar(given.shown.quiet or style != "text") as progress:
        asked["progress"] = progress
        result = onnxsep.check(given.arguments["model"], given.arguments["reference"], **asked)
    if given.shown.report is not None:
        write_text(given.shown.report, written(result, given.shown.report))
    with printing():
        if given.shown.quiet:
            pass
        elif style == "text":
            printed(loaded("onnxsep.checking.render:check_document")(result))
        else:
            render: Callable[[Any], str] = loaded(f"onnxsep.checking.formats:render_{style}")
            typer.echo(render(result).rstrip("\n"))
    raise typer.Exit(result.exit_status)


@app.command(cls=GroupedCommand, epilog="onnxsep modes --json")
def modes(as_json: Json = False, debug: Debug = False) -> None:
    """List the installed modes."""
    from onnxsep.modes.base import broken_modes

    found = onnxsep.available_modes()
    with printing():
        if as_json:
            typer.echo(json.dumps({name: mode.summary for name, mode in found.items()}, indent=1))
            return
        kinds = ((onnxsep.BlockMode, " (block mode)"), (onnxsep.WidthMode, " (width mode)"))
        lines = []
        for name, one in found.items():
            lines.append(f"{name}: {one.summary}{''.join(words for kind, words in kinds if isinstance(one, kind))}")
            lines += [f"    --set {setting.line}" for setting in one.settings]
        printed(Document("onnxsep modes", tuple(map(Line, lines))))
    for name, reason in broken_modes().items():
        say(f"{name}: cannot be loaded: {reason}")
