"""Options that several commands share, and what is done with them before and after the work."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from onnxsep.cli.app import say
from onnxsep.cli.interrupts import saying
from onnxsep.data import Preprocessing
from onnxsep.errors import OnnxsepError, OptionError, VerificationError
from onnxsep.model.files import printable, write_text
from onnxsep.model.saving import Savable
from onnxsep.reporting.commands import document_of
from onnxsep.reporting.printable import printable as plain_text
from onnxsep.reporting.records import Report
from onnxsep.reporting.text import make_console, print_document
from onnxsep.running.feeds import parse_input_shape
from onnxsep.running.runtime import RuntimeOptions

_debug = False


def set_debug(value: bool) -> bool:
    """Remember that tracebacks are wanted."""
    global _debug
    _debug = _debug or value
    return value


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return _debug


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=set_debug)]
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
Labels = Annotated[
    Path | None, typer.Option("--labels", help="CSV file of names and classes, instead of the data's own labels.")
]
Scores = Annotated[
    str | None, typer.Option("--output", help="The output with the class scores, where there are several.")
]
Layers = Annotated[
    bool,
    typer.Option("--layers", help="Compare every tensor that source and result have: where does an error arise?"),
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Write the report to this file as JSON.")]
Device = Annotated[
    str, typer.Option("--device", help="What trains: auto (a GPU where torch has one), cpu, cuda, cuda:N or mps.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links to external data (model hubs' caches).")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads to use; 0 leaves it to the runtime.")]
Provider = Annotated[str, typer.Option("--provider", help="Execution provider of ONNX Runtime.")]
TIME_LIMIT = "10m"
"""As the options of a command line say it."""
_UNITS = {"s": 1, "m": 60, "h": 3600}
_LONGEST = 1e9  # seconds
TimeLimit = Annotated[
    str, typer.Option("--time-limit", help="Time that a run of a model may take: 90 (seconds), 10m, 2h; 0: any time.")
]
CustomOps = Annotated[
    list[Path] | None, typer.Option("--custom-op-library", help="Shared library with custom operators.")
]


def print_json(text: str) -> None:
    """Print JSON in ASCII: it is then the same, and valid, in every encoding that a pipe may have."""
    typer.echo(json.dumps(json.loads(text), indent=1))


@contextmanager
def printing() -> Iterator[None]:
    """The work is done: a reader that has seen enough (`| head`) is no error, an output that is full is one."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must find an open file
    except OSError as error:
        raise OnnxsepError(f"cannot print: {error.strerror or error}") from error


def shapes_of(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """What --input-shape gives."""
    return dict(parse_input_shape(text) for text in texts or ())


def preprocessing_of(file: Path | None, *values: str | None) -> Preprocessing | None:
    """The preprocessing that options give; those of the command line win over those of the file."""
    keys = ("scale", "mean", "std", "layout", "size", "color")
    given = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    if file is None and not given:
        return None
    options = Preprocessing.from_values(given, "the command line")
    if file is None:
        return options
    return replace(Preprocessing.load(file), **{key: getattr(options, key) for key in given})


def runtime_of(
    threads: int, provider: str, libraries: list[Path] | None, time_limit: str = TIME_LIMIT
) -> RuntimeOptions:
    """How models are to be run."""
    return RuntimeOptions(
        threads=threads,
        provider=provider,
        custom_op_libraries=tuple(libraries or ()),
        time_limit=_seconds(time_limit),
    )


def _seconds(text: str) -> float:
    """What --time-limit gives."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise OptionError(f"--time-limit {text!r} is no time: give seconds (90), or 90s, 10m, 2h; 0 for none")
    return seconds


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error, nothing where that is no terminal; to interrupt it writes nothing."""
    console = Console(stderr=True, emoji=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with saying(lambda: "nothing was written"):
        if quiet or not console.is_terminal:
            yield None
            return
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda name, done, total: bar.update(task, description=plain_text(name), completed=done, total=total)


def check_verify(verify: str, no_verify: bool, output: Path | None, dry_run: bool, kinds: tuple[str, ...]) -> None:
    """Refuse a wrong --verify, a contradiction, and a missing OUT.onnx, as wrong usage."""
    if output is None and not dry_run:
        raise typer.BadParameter("OUT.onnx is missing (or use --dry-run)")
    if verify not in kinds:
        raise typer.BadParameter(f"{verify!r} is not one of {', '.join(kinds)}", param_hint="--verify")
    if no_verify and verify not in ("auto", "none"):
        raise typer.BadParameter(f"--no-verify and --verify {verify} contradict each other")


@contextmanager
def failure_shown(show: Callable[[Any], None]) -> Iterator[None]:
    """Show the report that a failed verification comes with; if that fails too, the verification is what counts."""
    try:
        yield
    except VerificationError as error:
        if error.report is not None:
            try:
                show(error.report)
            except OnnxsepError as second:
                say(f"onnxsep: {second}")
        raise


def shower(report: Path | None, as_json: bool, quiet: bool) -> Callable[[Report], None]:
    """What writes a report to --report, and prints it as JSON, as text, or not at all."""

    def show(done: Report) -> None:
        if report is not None:
            write_text(report, done.model_dump_json(indent=1) + "\n")
        with printing():
            if as_json:
                print_json(done.model_dump_json())
            elif not quiet:
                print_document(make_console(sys.stdout), document_of(done))

    return show


def saved(result: Savable, target: Path | None) -> Report:
    """The report of a result, which is saved first where there is a target."""
    report = cast(Report, result.report)
    if target is None:
        return report
    files = result.save(target)
    notes = (*getattr(report, "notes", ()), *files.notes)
    return report.model_copy(update={"output": printable(target), "output_bytes": files.size_bytes, "notes": notes})
