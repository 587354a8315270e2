"""onnxsep compress and onnxsep recipes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onnxsep import compression
from onnxsep.cli.app import app, say
from onnxsep.cli.interrupts import saying
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Debug,
    Device,
    FollowLinks,
    Inputs,
    InputShapes,
    Json,
    Labels,
    Layout,
    Mean,
    Preprocess,
    Provider,
    Quiet,
    ReportFile,
    Scale,
    Scores,
    Size,
    Std,
    Threads,
    TimeLimit,
    preprocessing_of,
    printing,
    progress_bar,
    runtime_of,
    saved,
    shapes_of,
    shower,
)
from onnxsep.compression.api import manifest_path
from onnxsep.compression.folder_files import WORK
from onnxsep.compression.manifest import MANIFEST
from onnxsep.compression.report import StepReport
from onnxsep.model.paths import OTHER_RESULT, REPORT, Reads, check_paths


@app.command()
def compress(
    model: Annotated[Path, typer.Argument(help="The model to compress.", metavar="IN.onnx", readable=False)],
    target: Annotated[Path, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="A name that `onnxsep recipes` lists, a TOML file, or the manifest of a run that is to be repeated.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of images, .npy or .npz: what steps fit, train and calibrate with."),
    ] = None,
    labels: Labels = None,
    test: Annotated[
        Path | None,
        typer.Option("--test", help="Samples that each step's result is measured on, and that no step sees."),
    ] = None,
    test_labels: Annotated[
        Path | None, typer.Option("--test-labels", help="CSV file of names and classes, instead of those of --test.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="MODULE:FUNCTION", help="Your own metric, as for evaluate."),
    ] = None,
    scores: Scores = None,
    test_samples: Annotated[
        int | None, typer.Option("--test-samples", min=1, help="Measure on at most so many samples.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=0, help="Timed runs of each model; 0: no latency.")] = 30,
    work: Annotated[
        Path | None,
        typer.Option("--work", help="Folder for finished steps, from which a run goes on; OUT.onnx.steps."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again: remove the steps that an unfinished run has left.")
    ] = False,
    keep_steps: Annotated[
        bool, typer.Option("--keep-steps", help="Keep the work folder with the result and report of each step.")
    ] = False,
    report: ReportFile = None,
    inputs: Inputs = None,
    input_shape: InputShapes = None,
    preprocess: Preprocess = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    size: Size = None,
    color: Color = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every step whose recipe names none.")] = 0,
    follow_links: FollowLinks = False,
    device: Device = "auto",
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
    time_limit: TimeLimit = TIME_LIMIT,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do the steps of a recipe (rewrite, prune, finetune, quantize) and measure the model after each of them.

    An interrupted run goes on after its last finished step when the same command is given again. OUT.onnx.manifest.json
    says what OUT.onnx was made from; as --recipe, it repeats the run.
    """
    place = work or target.with_name(target.name + ".steps")
    chosen = compression.read_recipe(recipe)
    reads = Reads.of(
        model=model,
        data=data,
        labels=labels,
        test=test,
        test_labels=test_labels,
        preprocessing=preprocess,
        inputs=inputs,
        recipe=chosen.path,
        teachers=chosen.teachers(),
        plans=chosen.plans(),
        libraries=custom_op_library or (),
    )
    check_paths(reads, {OTHER_RESULT: target, MANIFEST: manifest_path(target), REPORT: report, WORK: place})
    runtime = runtime_of(threads, provider, custom_op_library, time_limit)

    def told(step: StepReport) -> None:
        if not quiet:
            done = "was done before" if step.resumed else f"{step.seconds:.1f} s"
            say(f"step {step.number} {step.command}: {done}")

    again = f"the same command goes on with what is in {place}"
    with progress_bar(quiet or as_json) as progress, saying(lambda: again if place.is_dir() else "nothing was written"):
        result = compression.compress(
            model,
            chosen,
            data=data,
            labels=labels,
            test=test,
            test_labels=test_labels,
            metric=metric,
            output=scores,
            test_samples=test_samples,
            runs=runs,
            seed=seed,
            preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
            inputs=inputs,
            input_shapes=shapes_of(input_shape) or None,
            work=place,
            fresh=fresh,
            keep_steps=keep_steps,
            follow_links=follow_links,
            device=device,
            runtime=runtime,
            progress=progress,
            told=told,
        )
    shower(report, as_json, quiet)(saved(result, target))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file, to copy and change it.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes that come with onnxsep, or print the file of one of them."""
    if name is not None:
        chosen = compression.read_recipe(name)
        with printing():
            typer.echo(
                json.dumps({"name": name, "text": chosen.text}, indent=1) if as_json else chosen.text, nl=as_json
            )
        return
    found = compression.shipped_recipes()
    with printing():
        if as_json:
            listed = [
                {"name": key, "description": one.description, "steps": [step.name for step in one.steps]}
                for key, one in found.items()
            ]
            typer.echo(json.dumps(listed, indent=1))
            return
        for key, one in found.items():
            typer.echo(f"{key}: {one.description}")
            for step in one.steps:
                typer.echo(f"  {step.name}: {step}" if step.options else f"  {step.name}")
