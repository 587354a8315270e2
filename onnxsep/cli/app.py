"""The application that the commands of this package enter."""

import typer

from onnxsep.text import printable

app = typer.Typer(
    name="onnxsep",
    help="A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say(message: str) -> None:
    """Print one line to standard error; it may quote a model's text."""
    typer.echo(printable(message), err=True)
