"""onnxsep compress and onnxsep recipes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import onnxsep
from onnxsep.cli.app import GroupedCommand, app, say
from onnxsep.cli.derived import OUT, Given, command, model_to
from onnxsep.cli.interrupts import saying
from onnxsep.cli.options import Debug, Json, failure_shown, printed, printing, progress_bar, saved, shower
from onnxsep.compression.given import CompressOptions
from onnxsep.model.paths import OTHER_RESULT, PLAN_READ, RECIPE, TEACHER, read_of
from onnxsep.options.proposals import proposing
from onnxsep.options.specs import option, record
from onnxsep.reporting.document import Document, Line

if TYPE_CHECKING:
    from onnxsep.compression.report import StepReport


@record
class CompressCommand(CompressOptions):
    """What ``compress`` is asked for, with the recipe."""

    recipe: str = option(
        short="-r",
        proposed="onnxsep.options.proposals:recipes",
        help="A name that `onnxsep recipes` lists, a TOML file, or the manifest of a run that is to be repeated.",
    )


@command(
    CompressCommand,
    model_to("compress"),
    OUT,
    example="onnxsep compress in.onnx out.onnx --recipe fitted-int8 --data images",
)
def compress(given: Given[CompressCommand]) -> None:
    """Do the steps of a recipe (rewrite, prune, finetune, quantize) and measure the model after each of them.

    An interrupted run goes on after its last finished step when the same command is given again. OUT.onnx.manifest.json
    says what OUT.onnx was made from; as --recipe, it repeats the run.
    """
    from onnxsep.compression.api import manifest_path
    from onnxsep.compression.manifest import MANIFEST

    target, shown = given.arguments["out"], given.shown
    place = Path(given.options.work or target.with_name(target.name + ".steps"))
    chosen = onnxsep.read_recipe(given.options.recipe)
    given.check_paths(
        {OTHER_RESULT: target, MANIFEST: manifest_path(target)},
        read_of(RECIPE, chosen.path),
        read_of(TEACHER, chosen.teachers()),
        read_of(PLAN_READ, chosen.plans()),
        options=replace(given.options, work=place),
    )

    def told(step: "StepReport") -> None:
        if not shown.quiet:
            done = "was done before" if step.resumed else f"{step.seconds:.1f} s"
            say(f"step {step.number} {step.command}: {done}")

    again = f"the same command goes on with what is in {place}"
    show = shower(shown)
    with (
        failure_shown(show),
        progress_bar(shown.silent) as progress,
        saying(lambda: again if place.is_dir() else "nothing was written"),
    ):
        asked = given.keywords(work=place, progress=progress, told=told)
        del asked["recipe"]
        result = onnxsep.compress(given.arguments["model"], chosen, **asked)
    show(saved(result, target))


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
            lines += [Line(f"{step.name}: {step}" if step.options else step.name, indent=1) for step in one.steps]
        printed(Document("onnxsep recipes", tuple(lines)))
