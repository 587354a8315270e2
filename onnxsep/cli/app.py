"""The application that the commands of this package enter."""

from typing import Any

import typer
from typer.core import TyperGroup

from onnxsep.cli.interrupts import saying
from onnxsep.reporting.printable import printable


class _Group(TyperGroup):
    """All commands; an interrupt ends any of them in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the context names."""
        with saying(lambda: ""):
            return super().invoke(ctx)


app = typer.Typer(
    name="onnxsep",
    cls=_Group,
    help="A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say(message: str) -> None:
    """Print one line to standard error; it may quote a model's text."""
    typer.echo(printable(message), err=True)
