"""The report of an evaluation as a document: a column for each model, a line for each figure."""

from collections.abc import Callable

from onnxsep.evaluation import cells
from onnxsep.evaluation.report import Accuracy, EvaluatedModel, EvaluationReport, Memory
from onnxsep.reporting.blocks import missed_notes, notes
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Row, Table

_IN_SHORT = 3  # models in a summary
Show = Callable[[EvaluatedModel], str]


def evaluate_document(report: EvaluationReport) -> Document:
    """What was measured on what, the table, how to read it, and the notes."""
    blocks: list[Block] = [Line(_header(report)), _table(report)]
    blocks += [*map(Line, _legend(report)), *notes(report.notes), *missed_notes(report.missed)]
    return Document(f"onnxsep {report.command}: {', '.join(model.name for model in report.models)}", tuple(blocks))


def _table(report: EvaluationReport) -> Table:
    rows = []
    for label, show in _lines(report):
        texts = [show(model) for model in report.models]
        if any(texts):
            rows.append(Row((Cell(label), *map(Cell, texts))))
    return Table((Column(""), *(Column(model.name, "right") for model in report.models)), tuple(rows), alike=True)


def _header(report: EvaluationReport) -> str:
    what = f"{report.samples:,} samples"
    if report.classes is not None:
        what += f", {report.classes:,} classes (output {report.output!r})"
    return f"{report.data}: {what}"


def _lines(report: EvaluationReport) -> list[tuple[str, Show]]:
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
        ("peak activations, bytes", cells.activations),
        ("  in the file's order", cells.activations_in_file_order),
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


def _share_lines(label: str, accuracy: Callable[[EvaluatedModel], Accuracy | None]) -> list[tuple[str, Show]]:
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


def _error_cell(name: str) -> Show:
    def cell(model: EvaluatedModel) -> str:
        found = next((output for output in cells.errors(model) if output.name == name), None)
        if found is None:
            return ""
        return "?" if found.relative is None else f"{found.relative:.3g}"

    return cell


def _part_cell(name: str, axis: int, indices: str) -> Show:
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


def evaluate_summary(report: EvaluationReport) -> str:
    """The first models, and the figures that matter of each."""
    models = [f"{model.name}: {cells.in_short(model)}" for model in report.models[:_IN_SHORT]]
    more = len(report.models) - _IN_SHORT
    return "; ".join((_header(report), *models, *([f"and {more} more"] if more > 0 else [])))
