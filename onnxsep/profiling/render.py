"""The report of a profile kit as a document."""

from onnxsep.errors import spelled
from onnxsep.profiling.report import ProfiledLayer, ProfileReport
from onnxsep.reporting.blocks import header, notes, site, summary, title
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Row, Table


def profile_document(report: ProfileReport) -> Document:
    """The layers, what there is to time, and what to do with the kit."""
    columns = (Column("layer"), Column("result"), Column("piece", spare=2), Column("forms", "right", spare=1))
    blocks: list[Block] = [
        header(report.source, "pieces to be timed on another device"),
        Table(columns, tuple(map(_layer, report.layers)), notes="why"),
        Line(_sums(report)),
        *notes(report.notes),
    ]
    if report.output is not None:
        blocks += [
            Line(f"wrote {report.output} ({report.output_bytes or 0:,} bytes) in {report.seconds:.1f} s"),
            Line(
                "on the device, with onnxruntime and numpy: python measure.py; what it writes is for"
                f" {spelled('latency_from', 'latency.json')}"
            ),
        ]
    return Document(title(report.command, report.source), tuple(blocks))


def _layer(layer: ProfiledLayer) -> Row:
    timed = bool(layer.forms)
    cells = (
        Cell(site(layer.name, layer.where)),
        Cell("timed", style="good") if timed else Cell("left out", note=layer.reason),
        Cell(layer.piece),
        Cell(f"{layer.forms}" if timed else ""),
    )
    return Row(cells, style="" if timed else "dim")


def _sums(report: ProfileReport) -> str:
    timed = sum(bool(layer.forms) for layer in report.layers)
    return (
        f"{timed} of {len(report.layers)} layers in {report.pieces} pieces that differ, with {report.forms:,} forms in"
        " their places"
    )


def profile_summary(report: ProfileReport) -> str:
    """What there is to time."""
    return summary(report.source, "profile", _sums(report))
