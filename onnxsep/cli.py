"""The command line: parses, calls the API, prints. Exit status: 0 done, 1 our error, 2 usage, 3 a check failed."""

import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import onnxsep
from onnxsep.checking.formats import render_github, render_json, render_junit, render_text
from onnxsep.data import Preprocessing
from onnxsep.errors import OnnxsepError, OptionError, VerificationError
from onnxsep.feeds import parse_input_shape
from onnxsep.files import check_target, write_text
from onnxsep.modes import broken_modes
from onnxsep.render import make_console, print_inspect, print_rewrite
from onnxsep.report import RewriteReport
from onnxsep.runtime import RuntimeOptions
from onnxsep.calibration import is_statistics
from onnxsep.tables import printable
from onnxsep.verification import Verify

app = typer.Typer(
    name="onnxsep",
    help="A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_FORMATS = {"text": render_text, "json": render_json, "github": render_github, "junit": render_junit}
_debug = False


def _set_debug(value: bool) -> bool:
    global _debug
    _debug = _debug or value
    return value


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"onnxsep {onnxsep.__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of tables.")]
InputShapes = Annotated[
    list[str] | None,
    typer.Option("--input-shape", metavar="NAME:DIMS", help="Shape of an input with free dimensions, x:1,3,224,224."),
]
Inputs = Annotated[Path | None, typer.Option("--inputs", help=".npz with the inputs to run the models on.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of random inputs.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of images, .npy or .npz: what the factors are fitted to (else weights alone)."),
]
Preprocess = Annotated[
    Path | None, typer.Option("--preprocess", help="TOML file with the keys scale, mean, std, layout, size, color, ...")
]
Scale = Annotated[str | None, typer.Option("--scale", help="Images: factor of each pixel, such as 1/255 (or 1).")]
Mean = Annotated[str | None, typer.Option("--mean", help="Images: subtracted after --scale, for each channel.")]
Std = Annotated[str | None, typer.Option("--std", help="Images: what is then divided by, for each channel.")]
Layout = Annotated[str | None, typer.Option("--layout", help="Images: NCHW or NHWC; else as the model's input says.")]
Size = Annotated[str | None, typer.Option("--size", help="Images: HEIGHTxWIDTH; else as the model's input says.")]
Color = Annotated[str | None, typer.Option("--color", help="Images: RGB, BGR or GRAY.")]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links to external data (model hubs' caches).")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads to use; 0 leaves it to the runtime.")]
Provider = Annotated[str, typer.Option("--provider", help="Execution provider of ONNX Runtime.")]
CustomOps = Annotated[
    list[Path] | None, typer.Option("--custom-op-library", help="Shared library with custom operators.")
]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    """A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out."""


@app.command()
def rewrite(
    model: Annotated[Path, typer.Argument(help="The model to rewrite.", metavar="IN.onnx", readable=False)],
    output: Annotated[Path | None, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")] = None,
    mode: Annotated[str, typer.Option("--mode", "-m", help="The form that Convs get; `onnxsep modes` lists all.")] = ...,  # type: ignore[assignment]
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
        int, typer.Option("--round-ranks", min=0, help="Make channels in between multiples of this, 8 or 16.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this file as JSON.")] = None,
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
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replace Convs by separable ones, initialised from the trained weights, and compare the outputs."""
    if output is None and not dry_run:
        raise typer.BadParameter("OUT.onnx is missing (or use --dry-run)")
    if verify not in get_args(Verify):
        raise typer.BadParameter(f"{verify!r} is not one of {', '.join(get_args(Verify))}", param_hint="--verify")
    if no_verify and verify not in ("auto", "none"):
        raise typer.BadParameter(f"--no-verify and --verify {verify} contradict each other")
    if round_ranks not in (0, 8, 16):
        raise typer.BadParameter(f"{round_ranks} is not 8 or 16 (0: no rounding)", param_hint="--round-ranks")
    target = None if dry_run else output
    _check_targets(target, report, model, inputs)
    _check_statistics(statistics, data, (model, target, report, inputs))

    def show(done: RewriteReport) -> None:
        if report is not None:
            write_text(report, done.model_dump_json(indent=1) + "\n")
        with _printing():
            if as_json:
                _print_json(done.model_dump_json())
            elif not quiet:
                print_rewrite(make_console(sys.stdout), done)

    try:
        with _progress(quiet or as_json) as progress:
            result = onnxsep.rewrite(
                model,
                mode=mode,
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
                input_shapes=_shapes(input_shape),
                seed=seed,
                max_error=max_error,
                data=data,
                preprocessing=_preprocessing(preprocess, scale, mean, std, layout, size, color),
                init=init,
                samples=samples,
                positions=positions,
                statistics=statistics,
                tune=tune,
                follow_links=follow_links,
                runtime=_runtime(threads, provider, custom_op_library),
                progress=progress,
            )
    except VerificationError as error:
        if error.report is not None:
            try:
                show(error.report)
            except OnnxsepError as second:  # the failed verification is what counts
                typer.echo(f"onnxsep: {second}", err=True)
        raise
    done = result.report
    if target is not None:
        files = result.save(target)
        done = done.model_copy(update={"output": printable(target), "output_bytes": files.size_bytes})
    show(done)


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
        model, modes=mode or (), rank=rank, input_shapes=_shapes(input_shape), follow_links=follow_links
    )
    with _printing():
        if as_json:
            _print_json(found.model_dump_json())
        else:
            print_inspect(make_console(sys.stdout), found)


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
    inputs: Inputs = None,
    input_shape: InputShapes = None,
    seed: Seed = 0,
    follow_links: FollowLinks = False,
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
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
        structure=not no_structure,
        weights=not no_weights,
        outputs=not no_outputs,
        rtol=rtol,
        atol=atol,
        output_rtol=output_rtol,
        output_atol=output_atol,
        inputs=inputs,
        input_shapes=_shapes(input_shape),
        seed=seed,
        runtime=_runtime(threads, provider, custom_op_library),
        update=update,
        follow_links=follow_links,
    )
    with _printing():
        if not quiet:
            render: Callable[[Any], str] = _FORMATS[style]
            typer.echo(render(result).rstrip("\n"))
    raise typer.Exit(result.exit_status)


@app.command()
def modes(as_json: Json = False, debug: Debug = False) -> None:
    """List the installed modes."""
    found = {name: mode.summary for name, mode in onnxsep.available_modes().items()}
    with _printing():
        if as_json:
            typer.echo(json.dumps(found, indent=1))
            return
        for name, summary in found.items():
            typer.echo(f"{name}: {summary}")
    for name, reason in broken_modes().items():
        typer.echo(f"{name}: cannot be loaded: {reason}", err=True)


def _check_targets(output: Path | None, report: Path | None, model: Path, inputs: Path | None) -> None:
    """Refuse, now and not after minutes of work, targets that cannot be written or that hold something else."""
    for target in (output, report):
        if target is not None:
            check_target(target)
    for option, target, others in (("OUT.onnx", output, (inputs,)), ("--report", report, (model, output, inputs))):
        for other in others:
            if target is not None and other is not None and _same_file(target, other):
                raise OptionError(f"{option} {target} would overwrite {other}; name another file")
    if report is not None and report.exists():
        with report.open("rb") as file:
            start = file.read(64)
        if start and not re.match(rb'\{\s*"onnxsep"', start):
            raise OptionError(f"--report {report} would overwrite a file that is no report; name another file")


def _check_statistics(statistics: Path | None, data: Path | None, others: tuple[Path | None, ...]) -> None:
    """Refuse to record statistics over a file that holds something else."""
    if statistics is None or data is None:
        return
    check_target(statistics)
    for other in others:
        if other is not None and _same_file(statistics, other):
            raise OptionError(f"--statistics {statistics} would overwrite {other}; name another file")
    if statistics.exists() and not is_statistics(statistics):
        raise OptionError(
            f"--statistics {statistics} would overwrite a file that holds no statistics; name another one"
        )


def _print_json(text: str) -> None:
    """Print JSON in ASCII: it is then the same, and valid, in every encoding that a pipe may have."""
    typer.echo(json.dumps(json.loads(text), indent=1))


@contextmanager
def _printing() -> Iterator[None]:
    """The work is done: a reader that has seen enough (`| head`) is no error, an output that is full is one."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must find an open file
    except OSError as error:
        raise OnnxsepError(f"cannot print: {error.strerror or error}") from error


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other) or (one.exists() and other.exists() and one.samefile(other))


def _shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    return dict(parse_input_shape(text) for text in texts or ())


def _preprocessing(file: Path | None, *values: str | None) -> Preprocessing | None:
    """The preprocessing that options give; those of the command line win over those of the file."""
    keys = ("scale", "mean", "std", "layout", "size", "color")
    given = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    if file is None and not given:
        return None
    options = Preprocessing.from_values(given, "the command line")
    if file is None:
        return options
    return replace(Preprocessing.load(file), **{key: getattr(options, key) for key in given})


def _runtime(threads: int, provider: str, libraries: list[Path] | None) -> RuntimeOptions:
    return RuntimeOptions(threads=threads, provider=provider, custom_op_libraries=tuple(libraries or ()))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error, nothing where that is no terminal; Ctrl-C within ends in status 130."""
    console = Console(stderr=True, emoji=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    try:
        if quiet or not console.is_terminal:
            yield None
            return
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
    except KeyboardInterrupt:
        typer.echo("onnxsep: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; every error that is ours, or the user's, ends in one message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end in an error
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: temporary files are removed; nohup stays in force
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if sys.stdout is None:  # closed by the caller (>&-)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end of the process
    try:
        app()
    except OnnxsepError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:  # a bug of ours; the user still gets one line
        _fail(f"internal error, please report it with the output of --debug: {type(error).__name__}: {error}", 1)


def _fail(message: str, status: int) -> None:
    if _debug:
        traceback.print_exc()
    typer.echo(f"onnxsep: error: {message}", err=True)
    sys.exit(status)
