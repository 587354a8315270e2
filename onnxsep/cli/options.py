"""Options that several commands share, and what is done with them before and after the work."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onnxsep.cli.app import OUTPUT, say
from onnxsep.cli.interrupts import saying
from onnxsep.errors import OnnxsepError, VerificationError
from onnxsep.model.files import printable, write_text
from onnxsep.model.paths import REPORT
from onnxsep.options.progress import callback, telling
from onnxsep.options.specs import Options, option, record
from onnxsep.reporting.document import Document

if TYPE_CHECKING:  # a command imports what it works with when it runs; for its help, nothing of that is needed
    from onnxsep.model.saving import Savable
    from onnxsep.reporting.records import Report

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


@record
class Shown(Options):
    """What the command line itself does with a report."""

    report: Path | None = option(
        default=None,
        group=OUTPUT,
        writes=REPORT,
        help="Write the report to this file: as a page where it ends in .html, else as JSON.",
    )
    quiet: bool = option(default=False, group=OUTPUT, short="-q", help="Print nothing but errors.")
    json: bool = option(default=False, group=OUTPUT, help="Print the report as JSON instead of tables.")
    debug: bool = option(default=False, group=OUTPUT, help="Show the traceback of an error.")

    @property
    def silent(self) -> bool:
        """Whether nothing but a result is to be seen."""
        return self.quiet or self.json


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


def printed(document: Document) -> None:
    """Print a document on standard output, fitted to it where that is a terminal."""
    from onnxsep.reporting.text import make_console, print_document

    print_document(make_console(sys.stdout), document)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A line that says how far the work is, where standard error is a terminal; an interrupt writes nothing."""
    with saying(lambda: "nothing was written"), telling(not quiet) as told:
        yield callback(told) or (None if quiet else _Notes())


class _Notes:
    """Where there is no terminal only what is worth a line of its own is said."""

    def __call__(self, what: str, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        say(f"onnxsep: {text}")


def target_of(output: Path | None, *, dry_run: bool) -> Path | None:
    """Where the result goes; a missing OUT.onnx is wrong usage."""
    if output is None and not dry_run:
        raise typer.BadParameter("OUT.onnx is missing (or use --dry-run)")
    return None if dry_run else output


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


def written(report: "Report", target: Path) -> str:
    """A report as a file of this name holds it: a page where it ends in .html, else JSON."""
    if target.suffix.lower() in (".html", ".htm"):
        from onnxsep.reporting.page import page

        return page(report)
    return report.model_dump_json(indent=1) + "\n"


def shower(shown: Shown) -> "Callable[[Report], None]":
    """What writes a report to --report, and prints it as JSON, as text, or not at all."""
    from onnxsep.reporting.commands import document_of

    def show(done: "Report") -> None:
        if shown.report is not None:
            write_text(shown.report, written(done, shown.report))
        with printing():
            if shown.json:
                print_json(done.model_dump_json())
            elif not shown.quiet:
                printed(document_of(done))

    return show


def saved(result: "Savable", target: Path | None) -> "Report":
    """The report of a result, which is saved first where there is a target."""
    report = cast("Report", result.report)
    if target is None:
        return report
    files = result.save(target)
    notes = (*getattr(report, "notes", ()), *files.notes)
    folder = os.path.realpath(target.parent)
    written = {
        "output": printable(target),
        "output_bytes": files.size_bytes,
        "output_data": tuple(printable(Path(os.path.relpath(path.resolve(), folder))) for path in files.data_paths),
        "output_data_bytes": sum(path.stat().st_size for path in files.data_paths),
    }
    return report.model_copy(update={**written, "notes": notes})
