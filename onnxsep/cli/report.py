"""onnxsep report."""

from pathlib import Path
from typing import Annotated

import typer

from onnxsep.cli.app import GroupedCommand, app
from onnxsep.cli.options import Debug, Json, Quiet, Shown, shower
from onnxsep.model.files import write_text
from onnxsep.model.paths import Read, Reads, check_paths


@app.command(cls=GroupedCommand, epilog="onnxsep report run.json --html run.html")
def report(
    file: Annotated[Path, typer.Argument(help="A file that --report or --json has written.", metavar="FILE.json")],
    md: Annotated[
        Path | None, typer.Option("--md", help="Write the report to this file as Markdown.", metavar="OUT.md")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report to this file as a page.", metavar="OUT.html")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a saved report of any command, also of an older onnxsep."""
    from onnxsep.reporting.commands import document_of
    from onnxsep.reporting.markdown import MARKDOWN, markdown
    from onnxsep.reporting.page import PAGE, page
    from onnxsep.reporting.saved import read_report

    check_paths(Reads((Read("the report", file.absolute(), file),)), {MARKDOWN: md, PAGE: html})
    found = read_report(file)
    if md is not None:
        write_text(md, markdown(document_of(found)))
    if html is not None:
        write_text(html, page(found))
    shower(Shown(quiet=quiet, json=as_json))(found)
