"""onnxsep quantize."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from onnxsep import quantization
from onnxsep.cli.app import app
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Debug,
    FollowLinks,
    Json,
    Labels,
    Layers,
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
    failure_shown,
    preprocessing_of,
    progress_bar,
    runtime_of,
    saved,
    shower,
)
from onnxsep.model.paths import REPORT, RESULT, Reads, check_paths
from onnxsep.quantization.settings import Activations, Format, Method


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="The model to quantise.", metavar="IN.onnx", readable=False)],
    output: Annotated[Path, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")],
    data: Annotated[
        Path, typer.Option("--data", help="Folder of images, .npy or .npz: what ranges of activations come from.")
    ],
    format_: Annotated[
        str,
        typer.Option("--format", help="qdq: float operators between QuantizeLinear and DequantizeLinear; qoperator."),
    ] = "qdq",
    activations: Annotated[
        str | None,
        typer.Option("--activations", help="int8 or uint8; by default int8, and uint8 with --int8-io."),
    ] = None,
    per_channel: Annotated[
        bool, typer.Option("--per-channel/--per-tensor", help="One scale for each output channel of a weight, or one.")
    ] = True,
    reduce_range: Annotated[
        bool,
        typer.Option("--reduce-range", help="7-bit weights, for CPUs without VNNI when activations are uint8."),
    ] = False,
    method: Annotated[
        str, typer.Option("--method", help="How ranges of activations are found: minmax, entropy, percentile.")
    ] = "minmax",
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="Percent of the values that a range holds; 99.999 by default.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave nodes whose name matches in float (glob).")
    ] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="Do not shorten the names that the quantiser makes.")
    ] = False,
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize/--no-equalize", help="Scale the channels between two layers in a row alike (computes the same)."
        ),
    ] = True,
    bias_correction: Annotated[
        bool,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Change biases so that each layer's output keeps its mean over the samples.",
        ),
    ] = True,
    int8_io: Annotated[
        bool,
        typer.Option(
            "--int8-io",
            help="Float inputs and outputs become integers of the type of the activations (uint8 by default), as on a "
            "microcontroller; metadata tell scale and zero point.",
        ),
    ] = False,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Calibrate with at most so many samples of the data.")
    ] = 200,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Fail (status 3) above this relative error.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            help="Points of top-1 accuracy that may be lost: layers that hurt stay in float, as few as possible. Needs "
            "labels, and samples beyond those of the calibration.",
        ),
    ] = None,
    labels: Labels = None,
    scores: Scores = None,
    layers: Layers = False,
    report: ReportFile = None,
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
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantise weights and activations to 8 bits with ONNX Runtime's static quantiser; only --max-drop needs labels."""
    for option, value, known in (
        ("--format", format_, get_args(Format)),
        ("--activations", activations, get_args(Activations)),
        ("--method", method, get_args(Method)),
    ):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)
    libraries = custom_op_library or ()
    reads = Reads.of(model=model, data=data, labels=labels, preprocessing=preprocess, libraries=libraries)
    check_paths(reads, {RESULT: output, REPORT: report})
    show = shower(report, as_json, quiet)
    with failure_shown(show), progress_bar(quiet or as_json) as progress:
        result = quantization.quantize(
            model,
            data=data,
            format=cast(Format, format_),
            activations=cast(Activations | None, activations),
            per_channel=per_channel,
            reduce_range=reduce_range,
            method=cast(Method, method),
            percentile=percentile,
            exclude=exclude or (),
            keep_names=keep_names,
            equalize=equalize,
            bias_correction=bias_correction,
            int8_io=int8_io,
            preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
            samples=samples,
            seed=seed,
            max_error=max_error,
            max_drop=max_drop,
            labels=labels,
            output=scores,
            layers=layers,
            follow_links=follow_links,
            runtime=runtime_of(threads, provider, custom_op_library, time_limit),
            progress=progress,
        )
    show(saved(result, output))
