"""The application that the commands of this package enter."""

import typer

app = typer.Typer(
    name="onnxsep",
    help="A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
