"""onnxsep compress and onnxsep recipes."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxsep
from onnxsep.cli.app import OUTPUT, GroupedCommand, app, say
from onnxsep.cli.derived import OUT, Given, command, model_to
from onnxsep.cli.interrupts import saying
from onnxsep.cli.options import Debug, Json, Shown, failure_shown, printed, printing, progress_bar, saved, shower
from onnxsep.compression.search_options import SearchOptions
from onnxsep.errors import on_the_command_line
from onnxsep.model.paths import OTHER_RESULT, PLAN_READ, RECIPE, TEACHER, Kind, read_of
from onnxsep.options.proposals import proposing
from onnxsep.options.specs import option, record
from onnxsep.options.taking import made
from onnxsep.reporting.document import Document, Line

if TYPE_CHECKING:
    from onnxsep.compression.report import StepReport


@record
class CompressCommand(SearchOptions):
    """What ``compress`` is asked for, with the recipe."""

    recipe: str | None = option(
        default=None,
        short="-r",
        proposed="onnxsep.options.proposals:recipes",
        help="A name that `onnxsep recipes` lists, a TOML file, or the manifest of a run that is to be repeated.",
    )
    dry_run: bool = option(
        default=False,
        group=OUTPUT,
        help="With {target}: say which ways would be tried and about how long each takes, and do nothing.",
    )


@command(
    CompressCommand,
    model_to("compress"),
    OUT,
    example="onnxsep compress in.onnx out.onnx --recipe fitted-int8 --data images",
)
def compress(given: Given[CompressCommand]) -> None:
    """Do the steps of a recipe, or find steps for --target, and measure the model after each of them.

    An interrupted run goes on after its last finished step when the same command is given again. OUT.onnx.manifest.json
    says what OUT.onnx was made from; as --recipe, it repeats the run. With --target the recipe that was found is
    OUT.recipe.toml.
    """
    from onnxsep.compression.api import manifest_path
    from onnxsep.compression.manifest import MANIFEST

    options, target, shown = given.options, given.arguments["out"], given.shown
    if (options.recipe is None) == (not options.target):
        raise typer.BadParameter("give --recipe NAME (`onnxsep recipes` lists them), or --target size=0.1")
    place = Path(options.work or target.with_name(target.name + ".steps"))
    chosen = None if options.recipe is None else onnxsep.read_recipe(options.recipe)
    targets = {OTHER_RESULT: target, MANIFEST: manifest_path(target)}
    if chosen is None:
        given.check_paths({**targets, **_beside(target)}, options=replace(options, work=f"{place}-1"))
    else:
        files = (read_of(RECIPE, chosen.path), read_of(TEACHER, chosen.teachers()), read_of(PLAN_READ, chosen.plans()))
        given.check_paths(targets, *files, options=replace(options, work=place))
    if options.dry_run:
        _print_ways(given)
        return
    again = f"the same command goes on with what is in {place}"
    if chosen is None:
        again += "-1 and so on"

    def kept() -> bool:
        return place.is_dir() if chosen is not None else any(place.parent.glob(f"{place.name}-[0-9]*"))

    show = shower(shown)
    with (
        failure_shown(show),
        progress_bar(shown.silent) as progress,
        saying(lambda: again if kept() else "nothing was written"),
    ):
        asked = given.keywords(work=place, progress=progress, told=lambda step: _told(step, shown))
        for name in ("recipe", "dry_run"):
            del asked[name]
        result = onnxsep.compress(given.arguments["model"], chosen, **asked)
    show(saved(result, target))


def _told(step: "StepReport", shown: Shown) -> None:
    if not shown.quiet:
        done = "was done before" if step.resumed else f"{step.seconds:.1f} s"
        say(f"step {step.number} {step.command}: {done}")


def _beside(target: Path) -> dict[Kind, Path | None]:
    """What a search writes beside the model."""
    from onnxsep.compression.recipe import RECIPE_OUT
    from onnxsep.compression.searching import plan_path, recipe_path
    from onnxsep.planner.plan_file import PLAN

    return {RECIPE_OUT: recipe_path(target), PLAN: plan_path(target)}


def _print_ways(given: Given[CompressCommand]) -> None:
    """What a search would do."""
    from onnxsep.compression.searching import Search

    if given.options.recipe is not None:
        raise typer.BadParameter("--dry-run goes with --target; `onnxsep recipes NAME` shows a recipe")
    asked = {one.name: getattr(given.options, one.name) for one in fields(SearchOptions)}
    with on_the_command_line():
        search = Search(given.arguments["model"], made(SearchOptions, asked))
    with printing():
        if given.shown.json:
            listed = [{"way": one.way.name, "seconds": one.seconds, "steps": one.steps} for one in search.planned]
            typer.echo(json.dumps(listed, indent=1))
        elif not given.shown.quiet:
            lines = [Line(one.line) for one in search.planned]
            missing = [Line(search.missing)] if search.missing else []
            printed(Document("onnxsep compress", (*lines, *missing)))


@app.command(cls=GroupedCommand, epilog="onnxsep recipes fitted-int8 > mine.toml")
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print this recipe's file, to copy and change it.",
            autocompletion=proposing("onnxsep.options.proposals:recipes"),
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes that come with onnxsep, or print the file of one of them."""
    if name is not None:
        chosen = onnxsep.read_recipe(name)
        with printing():
            typer.echo(
                json.dumps({"name": name, "text": chosen.text}, indent=1) if as_json else chosen.text, nl=as_json
            )
        return
    found = onnxsep.shipped_recipes()
    with printing():
        if as_json:
            listed = [
                {"name": key, "description": one.description, "steps": [step.name for step in one.steps]}
                for key, one in found.items()
            ]
            typer.echo(json.dumps(listed, indent=1))
            return
        lines = []
        for key, one in found.items():
            lines.append(Line(f"{key}: {one.description}"))
            lines += [Line(step.line, indent=1) for step in one.steps]
        printed(Document("onnxsep recipes", tuple(lines)))
