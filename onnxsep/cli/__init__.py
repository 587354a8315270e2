"""The command line: parses, calls the API, prints. Exit status: 0 done, 1 our error, 2 usage, 3 a check failed.

One module for each command, or for a few that belong together; to import it adds its commands to the application. Where
the first word of the command line is the name of a module, that one is enough, and ``--version`` needs none. Else all
are imported, in the order of their names. None of them imports, before it runs, what works on models or data.
"""

import io
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

import typer

import onnxsep
from onnxsep.cli import interrupts
from onnxsep.cli.app import app, say
from onnxsep.cli.completion import first_word
from onnxsep.cli.options import Debug, debugging
from onnxsep.errors import OnnxsepError, on_the_command_line

__all__ = ["app", "load_commands", "main"]

_NEED_ALL = {"rerun", "report"}  # one may call any command, the other speaks of the options of any
_VERSION = "--version"


def load_commands(wanted: str = "") -> None:
    """Import the module of a command, or of all of them where none is called so.

    Args:
        wanted: The first word of the command line.
    """
    if wanted == _VERSION:
        return
    names = [module.name for module in iter_modules(__path__)]
    for name in [wanted] if wanted in names and wanted not in _NEED_ALL else names:
        import_module(f"{__name__}.{name}")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"onnxsep {onnxsep.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option(_VERSION, help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    """A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out."""


def main() -> None:
    """Run the command line; every error that is ours, or the user's, ends in one message and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end in an error
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:  # closed by the caller (>&-)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end of the process
    with interrupts.handled(), on_the_command_line():
        try:
            load_commands(*first_word())
            app()
        except OnnxsepError as error:
            _fail(str(error), error.exit_status)
        except Exception as error:  # a bug of ours; the user still gets one line
            _fail(f"internal error, please report it with the output of --debug: {type(error).__name__}: {error}", 1)


def _fail(message: str, status: int) -> None:
    if debugging():
        traceback.print_exc()
    say(f"onnxsep: error: {message}")
    from onnxsep.running.workers import any_left

    if any_left():  # a run of a model that is out of time
        interrupts.end(status)
    sys.exit(status)
