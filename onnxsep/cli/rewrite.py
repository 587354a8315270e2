"""onnxsep rewrite."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

import onnxsep
from onnxsep.calibration import STATISTICS
from onnxsep.cli.app import app
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Data,
    Debug,
    FollowLinks,
    Inputs,
    InputShapes,
    Json,
    Layers,
    Layout,
    Mean,
    Preprocess,
    Provider,
    Quiet,
    ReportFile,
    Scale,
    Seed,
    Size,
    Std,
    Threads,
    TimeLimit,
    check_verify,
    failure_shown,
    preprocessing_of,
    progress_bar,
    runtime_of,
    saved,
    shapes_of,
    shower,
)
from onnxsep.errors import OptionError
from onnxsep.model.files import printable
from onnxsep.model.paths import REPORT, RESULT, Reads, check_paths
from onnxsep.modes.ranks import check_rounding
from onnxsep.planner.plan_file import PLAN
from onnxsep.running.verification import Verify


@app.command()
def rewrite(
    model: Annotated[Path, typer.Argument(help="The model to rewrite.", metavar="IN.onnx", readable=False)],
    output: Annotated[Path | None, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", "-m", help="The form that Convs get, see `onnxsep modes`.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="Instead of --mode and --rank: a file that says what becomes of each layer."),
    ] = None,
    plan_out: Annotated[
        Path | None, typer.Option("--plan-out", help="Write the plan that is carried out to this TOML file.")
    ] = None,
    rank: Annotated[
        str,
        typer.Option(
            "--rank",
            "-r",
            help="paper; an integer (terms for the depthwise modes, else channels in between); 0.5: a share of the "
            "parameters; energy=0.95: a share of the squared singular values; full: exact where the form can be.",
        ),
    ] = "paper",
    force: Annotated[bool, typer.Option("--force", help="Replace Convs even where it does not pay.")] = False,
    include_first: Annotated[
        bool, typer.Option("--include-first", help="Replace first Convs too (reached straight from an input).")
    ] = False,
    recurse: Annotated[bool, typer.Option("--recurse", help="Replace Convs that onnxsep made.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only Convs whose name matches (glob).")] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="Not the Convs whose name matches (glob).")] = None,
    round_ranks: Annotated[
        int, typer.Option("--round-ranks", help="Make channels in between multiples of this, 8 or 16.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    report: ReportFile = None,
    verify: Annotated[
        str,
        typer.Option(
            "--verify",
            help="full: run both models; local: each replaced Conv alone; auto: full below 1 GB; none.",
        ),
    ] = "auto",
    no_verify: Annotated[bool, typer.Option("--no-verify", help="The same as --verify none.")] = False,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Fail (status 3) above this relative error.")
    ] = None,
    inputs: Inputs = None,
    input_shape: InputShapes = None,
    data: Data = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="How factors are found: svd (weights alone), response, compensated, joint (all factors of a Conv "
            "together, the default with --data).",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Use at most so many samples of the data.")] = 500,
    positions: Annotated[
        int, typer.Option("--positions", min=1, help="Output positions sampled in each of them.")
    ] = 64,
    refine: Annotated[
        int, typer.Option("--refine", min=0, help="Rounds of fitting pairs of Convs in a row again; slow.")
    ] = 0,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            help="With --data: record the data's statistics in this file; without: fit to recorded ones.",
        ),
    ] = None,
    tune: Annotated[
        int,
        typer.Option(
            "--tune", min=0, help="Steps of tuning the new weights together, without labels (onnxsep[finetune])."
        ),
    ] = 0,
    layers: Layers = False,
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replace Convs by separable ones, initialised from the trained weights, and compare the outputs."""
    if mode is None and plan is None:
        raise typer.BadParameter("give --mode NAME (`onnxsep modes` lists them), or --plan FILE")
    check_verify(verify, no_verify, output, dry_run, get_args(Verify))
    try:
        check_rounding(round_ranks)
    except OptionError as error:  # wrong usage, as --verify
        raise typer.BadParameter(str(error)) from None
    target = None if dry_run else output
    records = data is not None and not dry_run
    reads = Reads.of(
        model=model,
        plans=(plan,),
        data=data,
        preprocessing=preprocess,
        statistics=statistics if data is None else None,
        inputs=inputs,
        libraries=custom_op_library or (),
    )
    check_paths(reads, {RESULT: target, REPORT: report, STATISTICS: statistics if records else None, PLAN: plan_out})
    show = shower(report, as_json, quiet)
    with failure_shown(show), progress_bar(quiet or as_json) as progress:
        result = onnxsep.rewrite(
            model,
            mode=mode,
            plan=plan,
            rank=rank,
            force=force,
            include_first=include_first,
            recurse=recurse,
            only=only or (),
            skip=skip or (),
            round_ranks=round_ranks,
            dry_run=dry_run,
            verify="none" if no_verify else cast(Verify, verify),
            inputs=inputs,
            input_shapes=shapes_of(input_shape),
            seed=seed,
            max_error=max_error,
            data=data,
            preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
            init=init,
            samples=samples,
            positions=positions,
            refine=refine,
            statistics=statistics,
            tune=tune,
            layers=layers,
            follow_links=follow_links,
            runtime=runtime_of(threads, provider, custom_op_library, time_limit),
            progress=progress,
        )
    written = None if plan_out is None else result.plan
    done = saved(result, target)
    if written is not None and plan_out is not None:
        written.save(plan_out)
        done = done.model_copy(update={"plan_output": printable(plan_out)})
    show(done)
