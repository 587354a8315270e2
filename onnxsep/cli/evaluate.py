"""onnxsep evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from onnxsep import evaluation
from onnxsep.cli.app import app
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Debug,
    FollowLinks,
    Json,
    Labels,
    Layout,
    Mean,
    Preprocess,
    Provider,
    Scale,
    Scores,
    Size,
    Std,
    Threads,
    TimeLimit,
    preprocessing_of,
    progress_bar,
    runtime_of,
    shower,
)


@app.command()
def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(help="The models; the first is what the others are compared with.", metavar="MODEL.onnx"),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of images (one folder per class), .npy or .npz.")],
    labels: Labels = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="MODULE:FUNCTION",
            help="Your own metric instead of accuracy: (outputs by name, labels) -> a number, higher is better; the "
            "module may lie in the current folder.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="A model to compare outputs with; needs no labels.", metavar="REF.onnx"),
    ] = None,
    output: Scores = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Use at most so many samples of the data; all by default.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Samples in one run; by default 1 in timed runs and 16 in the others."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=0, help="Timed runs of each model; 0: no latency.")] = 30,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure peak memory.")] = False,
    preprocess: Preprocess = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    size: Size = None,
    color: Color = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the choice of --samples.")] = 0,
    follow_links: FollowLinks = False,
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
    time_limit: TimeLimit = TIME_LIMIT,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure models side by side: accuracy or agreement, size, parameters, MACs, latency, memory."""
    with progress_bar(quiet=as_json) as progress:
        report = evaluation.evaluate(
            models,
            data=data,
            labels=labels,
            metric=metric,
            reference=reference,
            output=output,
            preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
            samples=samples,
            seed=seed,
            batch=batch,
            runs=runs,
            memory=not no_memory,
            follow_links=follow_links,
            runtime=runtime_of(threads, provider, custom_op_library, time_limit),
            progress=progress,
        )
    shower(None, as_json, quiet=False)(report)
