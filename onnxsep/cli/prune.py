"""onnxsep prune."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from onnxsep import pruning
from onnxsep.cli.app import app
from onnxsep.cli.options import (
    TIME_LIMIT,
    CustomOps,
    Debug,
    FollowLinks,
    Inputs,
    InputShapes,
    Json,
    Provider,
    Quiet,
    ReportFile,
    Seed,
    Threads,
    TimeLimit,
    check_verify,
    failure_shown,
    progress_bar,
    runtime_of,
    saved,
    shapes_of,
    shower,
)
from onnxsep.model.paths import REPORT, RESULT, Reads, check_paths
from onnxsep.pruning.selecting import Norm, Scope
from onnxsep.pruning.verifying import Verify


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="The model to prune.", metavar="IN.onnx", readable=False)],
    output: Annotated[Path | None, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", help="Share of the Conv weights that go, 0.59.")
    ] = None,
    step: Annotated[
        float | None, typer.Option("--step", help="Share of the remaining weights that goes each time, 0.2.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="How many times --step is taken; else once.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="N:M", help="Keep the N largest of every M input channels, 2:4."),
    ] = None,
    channels: Annotated[
        bool,
        typer.Option(
            "--channels", help="Take whole channels out of the graph: a smaller file and fewer MACs, in any runtime."
        ),
    ] = False,
    multiple: Annotated[
        int, typer.Option("--round", min=0, help="With --channels: keep multiples of so many channels, 8 or 16.")
    ] = 0,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope",
            help="global: compare the weights of all layers (the default); layer: the same share of each (the "
            "default of --channels).",
        ),
    ] = None,
    norm: Annotated[
        str,
        typer.Option("--norm", help="Of the filters that --channels compares, l1 or l2; single weights order alike."),
    ] = "l1",
    linear: Annotated[bool, typer.Option("--linear", help="Prune Gemm and MatMul weights too.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only layers whose name matches (glob).")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Not the layers whose name matches (glob).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go and write nothing.")] = False,
    report: ReportFile = None,
    verify: Annotated[
        str, typer.Option("--verify", help="full: run both models; auto: full below 1 GB; none.")
    ] = "auto",
    no_verify: Annotated[bool, typer.Option("--no-verify", help="The same as --verify none.")] = False,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Fail (status 3) above this relative error.")
    ] = None,
    inputs: Inputs = None,
    input_shape: InputShapes = None,
    seed: Seed = 0,
    follow_links: FollowLinks = False,
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
    time_limit: TimeLimit = TIME_LIMIT,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Set the smallest weights to zero, or take whole channels out (--channels).

    Give one of --sparsity, --step and --pattern. Zeros alone give no speed in ONNX Runtime, which computes with them as
    with any number, and no smaller file until it is zipped; --channels gives both. The network has to be fine-tuned
    afterwards.
    """
    check_verify(verify, no_verify, output, dry_run, get_args(Verify))
    for option, value, known in (
        ("--scope", scope, get_args(Scope)),
        ("--norm", norm, get_args(Norm)),
    ):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)
    target = None if dry_run else output
    reads = Reads.of(model=model, inputs=inputs, libraries=custom_op_library or ())
    check_paths(reads, {RESULT: target, REPORT: report})
    show = shower(report, as_json, quiet)
    with failure_shown(show), progress_bar(quiet or as_json) as progress:
        result = pruning.prune(
            model,
            sparsity=sparsity,
            step=step,
            steps=steps,
            pattern=pattern,
            scope=cast(Scope | None, scope),
            norm=cast(Norm, norm),
            linear=linear,
            channels=channels,
            multiple=multiple,
            only=only or (),
            skip=skip or (),
            dry_run=dry_run,
            verify="none" if no_verify else cast(Verify, verify),
            inputs=inputs,
            input_shapes=shapes_of(input_shape),
            seed=seed,
            max_error=max_error,
            follow_links=follow_links,
            runtime=runtime_of(threads, provider, custom_op_library, time_limit),
            progress=progress,
        )
    show(saved(result, target))
