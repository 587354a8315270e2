"""The table of an evaluation: a column for each model, a line for each figure."""

from collections.abc import Callable

from rich.console import Console

from onnxsep.evaluation import cells
from onnxsep.evaluation.report import Accuracy, EvaluatedModel, EvaluationReport, Memory
from onnxsep.reporting.text import make_table, print_table, safe

Cell = Callable[[EvaluatedModel], str]


def print_evaluation(console: Console, report: EvaluationReport) -> None:
    """Print what was measured on what, the table, how to read it, and the notes."""
    console.print(_header(report))
    table = make_table(console, "", *(f">{safe(model.name)}" for model in report.models))
    for label, cell in _lines(report):
        cells = [cell(model) for model in report.models]
        if any(cells):
            table.add_row(safe(label), *(safe(text) for text in cells))
    print_table(console, table)
    for line in _legend(report):
        console.print(safe(line))
    for note in report.notes:
        console.print(f"note: {safe(note)}")


def _header(report: EvaluationReport) -> str:
    what = f"{report.samples:,} samples"
    if report.classes is not None:
        what += f", {report.classes:,} classes (output {report.output!r})"
    return safe(f"{report.data}: {what}")


def _lines(report: EvaluationReport) -> list[tuple[str, Cell]]:
    """Label and cells of each line; a line without cells is left out."""
    return [
        *_share_lines("top-1", lambda model: model.top1),
        *_share_lines("top-5", lambda model: model.top5),
        (f"metric {report.metric}", cells.metric),
        ("  against the first", _metric_difference),
        ("agreement", lambda model: cells.percent(cells.agreed(model))),
        ("  samples that agree", lambda model: cells.count(cells.agreed(model))),
        *(
            (f"error of output {name!r}", _error_cell(name))
            for name in dict.fromkeys(output.name for model in report.models for output in cells.errors(model))
        ),
        *(
            (f"  of {name!r}, axis {axis}, indices {indices}", _part_cell(name, axis, indices))
            for name, axis, indices in dict.fromkeys(
                (output.name, part.axis, part.indices)
                for model in report.models
                for output in cells.errors(model)
                for part in output.parts
            )
        ),
        ("file, bytes", lambda model: cells.whole(model, "file_bytes")),
        ("parameters", lambda model: cells.whole(model, "parameters")),
        ("  of these not 0", lambda model: cells.whole(model, "nonzero_parameters")),
        ("MACs", cells.macs),
        ("latency, ms", cells.latency),
        ("  quartiles", _quartiles),
        ("peak memory, MB", lambda model: _memory(model.memory, cells.ratio(model, "peak_memory"))),
        ("  above an empty process", lambda model: _above(model.memory)),
    ]


def _legend(report: EvaluationReport) -> list[str]:
    lines = []
    if len(report.models) > 1:
        lines.append("in brackets: as a share of the first model; +-: standard error")
    if report.reference is not None:
        lines.append(f"agreement with, and error |a - b| / |a| against, {report.reference}")
    lines += cells.latency_legend(report)
    return lines


def _share_lines(label: str, accuracy: Callable[[EvaluatedModel], Accuracy | None]) -> list[tuple[str, Cell]]:
    def outcomes(model: EvaluatedModel) -> str:
        found = accuracy(model)
        if found is None or found.against_first is None:
            return ""
        return f"{found.against_first.won:,} won, {found.against_first.lost:,} lost"

    return [
        (f"{label} accuracy", lambda model: cells.percent(cells.accuracy_share(accuracy(model)))),
        ("  right", lambda model: cells.count(cells.accuracy_share(accuracy(model)))),
        ("  against the first, points", lambda model: cells.difference(accuracy(model))),
        ("  samples won, lost", outcomes),
    ]


def _metric_difference(model: EvaluatedModel) -> str:
    return "" if model.metric is None or model.metric.difference is None else f"{model.metric.difference:+.6g}"


def _error_cell(name: str) -> Cell:
    def cell(model: EvaluatedModel) -> str:
        found = next((output for output in cells.errors(model) if output.name == name), None)
        if found is None:
            return ""
        return "?" if found.relative is None else f"{found.relative:.3g}"

    return cell


def _part_cell(name: str, axis: int, indices: str) -> Cell:
    def cell(model: EvaluatedModel) -> str:
        for output in cells.errors(model):
            for part in output.parts:
                if (output.name, part.axis, part.indices) == (name, axis, indices):
                    return f"{part.relative:.3g}" + (" (variation lost)" if part.lost else "")
        return ""

    return cell


def _quartiles(model: EvaluatedModel) -> str:
    if model.latency is None:
        return ""
    found = model.latency
    return f"{cells.milliseconds(found.lower_quartile_ms)} to {cells.milliseconds(found.upper_quartile_ms)}"


def _memory(found: Memory | None, ratio: float | None) -> str:
    if found is None:
        return ""
    return "not measured" if found.peak_bytes is None else cells.with_ratio(f"{found.peak_bytes / 1e6:,.1f}", ratio)


def _above(found: Memory | None) -> str:
    if found is None or found.peak_bytes is None or found.before_bytes is None:
        return ""
    return f"{(found.peak_bytes - found.before_bytes) / 1e6:,.1f}"
