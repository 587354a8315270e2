"""The tensors of two models as lines of text."""

from onnxsep.checking.layer_report import LayerDifference, LayersReport
from onnxsep.reporting.records import part_text

_HEAD = ("relative", "SNR, dB", "inputs'", "operator", "tensor")


def layer_lines(report: LayersReport) -> list[str]:
    """What was compared, a line for each tensor, the first jump, and notes."""
    table = [_HEAD, *(_cells(row) for row in report.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    lines = [layer_summary(report)]
    for number, cells in enumerate(table):
        row = report.rows[number - 1] if number else None
        aligned = [
            cell.rjust(width) if place < 3 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        mark = ">" if row is not None and row.jump else " "
        lines.append(f"{mark} {'  '.join([*aligned, cells[-1]])}")
        lines += [f"      {part_text(part)}" for part in row.parts] if row is not None and row.joined else []
    lines.append(jump_line(report))
    if report.not_compared:
        lines.append(f"without a counterpart: {', '.join(report.not_compared)}")
    return lines + [f"note: {note}" for note in report.notes]


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


def _cells(row: LayerDifference) -> tuple[str, ...]:
    name = row.name if row.name == row.other else f"{row.name} ({row.other})"
    if row.scaled is not None:
        name += f"; channels are scaled by {row.scaled[0]:.3g} to {row.scaled[1]:.3g}, which later layers undo"
    snr = "" if row.snr_db is None else f"{row.snr_db:.1f}"
    return f"{row.relative:.3g}", snr, f"{row.before:.3g}", row.op_type, name
