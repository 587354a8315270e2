"""onnxsep inspect, check and modes: looking, and changing nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import onnxsep
from onnxsep.checking.formats import render_github, render_json, render_junit, render_text
from onnxsep.cli.app import app, say
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Debug,
    FollowLinks,
    Inputs,
    InputShapes,
    Json,
    Layout,
    Mean,
    Preprocess,
    Provider,
    Quiet,
    Scale,
    Seed,
    Size,
    Std,
    Threads,
    TimeLimit,
    preprocessing_of,
    printing,
    runtime_of,
    shapes_of,
    shower,
)
from onnxsep.modes.base import broken_modes

_FORMATS = {"text": render_text, "json": render_json, "github": render_github, "junit": render_junit}


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="The model to look at.", metavar="IN.onnx", readable=False)],
    mode: Annotated[list[str] | None, typer.Option("--mode", "-m", help="Only these modes; all by default.")] = None,
    rank: Annotated[str, typer.Option("--rank", "-r", help="The rank to count at, as for rewrite.")] = "paper",
    input_shape: InputShapes = None,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List every Conv, what each mode would make of it, parameters and MACs; runs nothing and changes nothing."""
    found = onnxsep.inspect(
        model, modes=mode or (), rank=rank, input_shapes=shapes_of(input_shape), follow_links=follow_links
    )
    shower(None, as_json, quiet=False)(found)


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="The model to check.", metavar="MODEL.onnx", readable=False)],
    reference: Annotated[Path, typer.Argument(help="Another .onnx, or a structure as text (.txt).")],
    update: Annotated[bool, typer.Option("--update", help="Rewrite the reference from the model.")] = False,
    ignore_names: Annotated[bool, typer.Option("--ignore-names", help="Names may differ.")] = False,
    no_structure: Annotated[bool, typer.Option("--no-structure", help="Do not compare the structure.")] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Do not compare weights.")] = False,
    no_outputs: Annotated[bool, typer.Option("--no-outputs", help="Do not run the models.")] = False,
    rtol: Annotated[float, typer.Option("--rtol", help="Relative tolerance of weights.")] = 1e-5,
    atol: Annotated[float, typer.Option("--atol", help="Absolute tolerance of weights.")] = 1e-6,
    output_rtol: Annotated[float, typer.Option("--output-rtol", help="Relative tolerance of outputs.")] = 1e-3,
    output_atol: Annotated[
        float, typer.Option("--output-atol", help="Tolerance of outputs relative to their largest magnitude.")
    ] = 1e-4,
    style: Annotated[str, typer.Option("--format", help="text, json, github or junit.")] = "text",
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Compare every tensor that both models have, instead of structure and weights: where does an error "
            "arise?",
        ),
    ] = False,
    inputs: Inputs = None,
    input_shape: InputShapes = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of images, .npy or .npz to run the models on.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Use at most so many samples of the data.")] = 32,
    preprocess: Preprocess = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    size: Size = None,
    color: Color = None,
    seed: Seed = 0,
    follow_links: FollowLinks = False,
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
    time_limit: TimeLimit = TIME_LIMIT,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare a model with a reference: structure, weights, outputs. Exit status 3 where they differ."""
    if style not in _FORMATS:
        raise typer.BadParameter(f"{style!r} is not one of {', '.join(_FORMATS)}", param_hint="--format")
    result = onnxsep.check(
        model,
        reference,
        ignore_names=ignore_names,
        structure=False if no_structure else None,
        weights=False if no_weights else None,
        outputs=not no_outputs,
        rtol=rtol,
        atol=atol,
        output_rtol=output_rtol,
        output_atol=output_atol,
        layers=layers,
        inputs=inputs,
        data=data,
        preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
        samples=samples,
        input_shapes=shapes_of(input_shape),
        seed=seed,
        runtime=runtime_of(threads, provider, custom_op_library, time_limit),
        update=update,
        follow_links=follow_links,
    )
    with printing():
        if not quiet:
            render: Callable[[Any], str] = _FORMATS[style]
            typer.echo(render(result).rstrip("\n"))
    raise typer.Exit(result.exit_status)


@app.command()
def modes(as_json: Json = False, debug: Debug = False) -> None:
    """List the installed modes."""
    found = onnxsep.available_modes()
    with printing():
        if as_json:
            typer.echo(json.dumps({name: mode.summary for name, mode in found.items()}, indent=1))
            return
        for name, mode in found.items():
            kind = " (block mode)" if isinstance(mode, onnxsep.BlockMode) else ""
            typer.echo(f"{name}: {mode.summary}{kind}")
    for name, reason in broken_modes().items():
        say(f"{name}: cannot be loaded: {reason}")
