"""The report of a check, and the tensors of two models, as documents."""

from collections.abc import Iterable

from onnxsep.checking.layer_report import LayerDifference, LayersReport
from onnxsep.checking.result import CheckResult, Difference, PartResult
from onnxsep.errors import worded
from onnxsep.reporting.blocks import measured_line
from onnxsep.reporting.document import Block, Cell, Column, Document, Heading, Line, Note, Row, Series, Table
from onnxsep.reporting.records import part_text

TEXT_LIMIT = 20  # differences of a part that are shown
_LINES_LIMIT = 8  # lines of one missing or new piece that are shown
_COLUMNS = (
    *(Column("relative", "right"), Column("SNR, dB", "right", spare=3), Column("inputs'", "right", spare=2)),
    *(Column("operator", spare=1), Column("tensor")),
)


def check_document(result: CheckResult, limit: int | None = TEXT_LIMIT) -> Document:
    """A heading for each part, its differences, at most ``limit`` of a part (None: all), and a verdict."""
    against = f"{result.model} against {result.reference}"
    blocks: list[Block] = [Line(against)]
    for part in result.parts:
        blocks += [Heading(f"{part.name}: {summary(part)}"), *(Note(note, indent=1) for note in part.notes)]
        blocks += measured_line(part.measured_on)
        blocks += [] if part.layers is None else layer_blocks(part.layers)
        for difference in part.differences[:limit]:
            blocks.append(Line(headline(difference), indent=1))
            blocks += [Line(detail, indent=2) for detail in details(difference)]
        if limit is not None and len(part.differences) > limit:
            more = len(part.differences) - limit
            how = worded("; --format json lists them all")
            blocks.append(Line(f"... and {more} more{how}", indent=1))
    blocks.append(Line(verdict(result)))
    return Document(f"onnxsep {result.command}: {against}", tuple(blocks))


def layers_of_result(report: LayersReport | None) -> Iterable[Block]:
    """The tensors of source and result, where they were compared."""
    if report is not None:
        yield Heading(f"layers: {layer_summary(report)}")
        yield from layer_blocks(report)


def layer_blocks(report: LayersReport, indent: int = 1) -> list[Block]:
    """A line for each tensor, the first jump, and notes."""
    named = tuple(row.name for row in report.rows)
    blocks: list[Block] = [
        Table(_COLUMNS, tuple(map(_row, report.rows)), framed=False, indent=indent),
        Series("relative error of each tensor", tuple(row.relative for row in report.rows), named),
        Line(jump_line(report), indent),
    ]
    if report.not_compared:
        blocks.append(Line(f"without a counterpart: {', '.join(report.not_compared)}", indent))
    return blocks + [Note(note, indent) for note in report.notes]


def layer_summary(report: LayersReport) -> str:
    """How many of how many tensors were compared."""
    text = f"compared on {report.samples:,} sample{'' if report.samples == 1 else 's'}: "
    text += f"{report.convs_compared} of {report.convs} Convs"
    if report.linear:
        text += f", {report.linear_compared} of {report.linear} Gemms and MatMuls"
    text += f", {report.tensors_compared} of {report.tensors} tensors"
    return text + (f"; {report.nested} tensors of nested graphs are skipped" if report.nested else "")


def jump_line(report: LayersReport) -> str:
    """Where the error rises first."""
    row = next((row for row in report.rows if row.jump), None)
    if row is None:
        return "no jump: nowhere does the error rise by much over that of the inputs"
    lost = next((f"; {part_text(part)}" for part in row.parts if part.lost and row.joined), "")
    return (
        f"first jump (>): {row.op_type} {row.name!r}: relative error {row.relative:.3g}, of its inputs "
        f"{row.before:.3g}{lost}"
    )


def _row(row: LayerDifference) -> Row:
    name = row.name if row.name == row.other else f"{row.name} ({row.other})"
    if row.scaled is not None:
        name += f"; channels are scaled by {row.scaled[0]:.3g} to {row.scaled[1]:.3g}, which later layers undo"
    cells = (
        Cell(f"{row.relative:.3g}", row.relative),
        Cell("" if row.snr_db is None else f"{row.snr_db:.1f}", row.snr_db),
        Cell(f"{row.before:.3g}", row.before),
        Cell(row.op_type),
        Cell(name),
    )
    return Row(cells, mark=">" if row.jump else "", details=tuple(map(part_text, row.parts)) if row.joined else ())


def summary(part: PartResult) -> str:
    """What came of a part, in a few words."""
    if part.status == "differs":
        count = len(part.differences)
        return f"differs ({count} difference{'s' if count > 1 else ''})"
    return f"{part.status}: {part.reason}" if part.reason else part.status


def verdict(result: CheckResult) -> str:
    """What came of the check, in one sentence."""
    by_status = {
        status: ", ".join(part.name for part in result.parts if part.status == status)
        for status in ("same", "differs", "skipped", "updated", "measured")
    }
    if by_status["updated"]:
        return f"reference {result.reference} {result.parts[0].reason}"
    skipped = f" (not compared: {by_status['skipped']})" if by_status["skipped"] else ""
    if by_status["differs"]:
        return f"the model differs from the reference in {by_status['differs']}{skipped}"
    if not by_status["same"]:
        if by_status["measured"]:
            return f"measured, and not judged: {by_status['measured']}{skipped}"
        return f"nothing could be compared{skipped}"
    return f"the model is the same as the reference in {by_status['same']}{skipped}"


def headline(difference: Difference) -> str:
    """Where something differs, and what."""
    line = "" if difference.reference_line is None else f"line {difference.reference_line}, "
    return f"{line}{difference.where}: {difference.message}"


def details(difference: Difference, limit: int | None = _LINES_LIMIT) -> list[str]:
    """Lines of the reference after ``-``, of the model after ``+``."""
    lines = []
    for sign, text in (("-", difference.expected), ("+", difference.actual)):
        shown = [] if text is None else text.split("\n")
        lines += [f"{sign} {line}" for line in shown[:limit]]
        if limit is not None and len(shown) > limit:
            lines.append(f"{sign} ... and {len(shown) - limit} more lines")
    return lines


def check_summary(result: CheckResult) -> str:
    """What was compared with what, and what came of it."""
    return f"{result.model} against {result.reference}: {verdict(result)}"
