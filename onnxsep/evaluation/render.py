"""The table of an evaluation: a column for each model, a line for each figure."""

from collections.abc import Callable

from rich.console import Console

from onnxsep.evaluation.report import (
    Accuracy,
    EvaluatedModel,
    EvaluationReport,
    Latency,
    Memory,
    OutputError,
    Paired,
    Share,
)
from onnxsep.render import make_table, print_table, safe

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
        (f"metric {report.metric}", lambda model: f"{model.metric.value:.6g}" if model.metric else ""),
        ("  against the first", _metric_difference),
        ("agreement", _agreement),
        ("  samples that agree", lambda model: _count(_agreed(model))),
        *(
            (f"error of output {name!r}", _error_cell(name))
            for name in dict.fromkeys(output.name for model in report.models for output in _errors(model))
        ),
        ("file, bytes", lambda model: _with(f"{model.file_bytes:,}", _ratio(model, "file_bytes"))),
        ("parameters", lambda model: _with(f"{model.parameters:,}", _ratio(model, "parameters"))),
        ("  of these not 0", lambda model: _with(f"{model.nonzero_parameters:,}", _ratio(model, "nonzero_parameters"))),
        ("MACs", _macs),
        ("latency, ms", lambda model: _latency(model.latency, _ratio(model, "latency"))),
        ("  quartiles", _quartiles),
        ("peak memory, MB", lambda model: _memory(model.memory, _ratio(model, "peak_memory"))),
        ("  above an empty process", lambda model: _above(model.memory)),
    ]


def _legend(report: EvaluationReport) -> list[str]:
    lines = []
    if len(report.models) > 1:
        lines.append("in brackets: as a share of the first model; +-: standard error")
    if report.reference is not None:
        lines.append(f"agreement with, and error |a - b| / |a| against, {report.reference}")
    if report.models[0].latency is not None:
        threads = f"{report.threads} threads" if report.threads > 1 else "1 thread"
        if report.threads == 0:
            threads = f"threads as the runtime chooses ({report.cores} cores)"
        lines.append(
            f"latency: median of {report.models[0].latency.runs} warm runs, batch {report.latency_batch}, {threads},"
            f" {report.provider}, the models in turn"
        )
    return lines


def _share_lines(label: str, accuracy: Callable[[EvaluatedModel], Accuracy | None]) -> list[tuple[str, Cell]]:
    def value(model: EvaluatedModel) -> str:
        found = accuracy(model)
        return "" if found is None else _percent(found.share)

    def count(model: EvaluatedModel) -> str:
        found = accuracy(model)
        return _count(None if found is None else found.share)

    def difference(model: EvaluatedModel) -> str:
        found = accuracy(model)
        return "" if found is None or found.against_first is None else _paired(found.against_first)

    def outcomes(model: EvaluatedModel) -> str:
        found = accuracy(model)
        if found is None or found.against_first is None:
            return ""
        return f"{found.against_first.won:,} won, {found.against_first.lost:,} lost"

    return [
        (f"{label} accuracy", value),
        ("  right", count),
        ("  against the first, points", difference),
        ("  samples won, lost", outcomes),
    ]


def _percent(found: Share) -> str:
    return f"{found.value:.2%} +- {found.standard_error:.2%}"


def _count(found: Share | None) -> str:
    return "" if found is None else f"{found.count:,} of {found.total:,}"


def _paired(found: Paired) -> str:
    return f"{100 * found.difference:+.2f} +- {100 * found.standard_error:.2f}"


def _metric_difference(model: EvaluatedModel) -> str:
    return "" if model.metric is None or model.metric.difference is None else f"{model.metric.difference:+.6g}"


def _agreed(model: EvaluatedModel) -> Share | None:
    return model.against_reference.agreement if model.against_reference else None


def _agreement(model: EvaluatedModel) -> str:
    found = _agreed(model)
    return "" if found is None else _percent(found)


def _errors(model: EvaluatedModel) -> tuple[OutputError, ...]:
    return model.against_reference.outputs if model.against_reference else ()


def _error_cell(name: str) -> Cell:
    def cell(model: EvaluatedModel) -> str:
        found = next((output for output in _errors(model) if output.name == name), None)
        if found is None:
            return ""
        return "?" if found.relative is None else f"{found.relative:.3g}"

    return cell


def _macs(model: EvaluatedModel) -> str:
    if model.macs_unknown:
        return f"{model.macs:,} and {model.macs_unknown} nodes of unknown size"
    return _with(f"{model.macs:,}", _ratio(model, "macs"))


def _latency(found: Latency | None, ratio: float | None) -> str:
    return "" if found is None else _with(_milliseconds(found.median_ms), ratio)


def _quartiles(model: EvaluatedModel) -> str:
    if model.latency is None:
        return ""
    return f"{_milliseconds(model.latency.lower_quartile_ms)} to {_milliseconds(model.latency.upper_quartile_ms)}"


def _milliseconds(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def _memory(found: Memory | None, ratio: float | None) -> str:
    if found is None:
        return ""
    return "not measured" if found.peak_bytes is None else _with(f"{found.peak_bytes / 1e6:,.1f}", ratio)


def _above(found: Memory | None) -> str:
    if found is None or found.peak_bytes is None or found.before_bytes is None:
        return ""
    return f"{(found.peak_bytes - found.before_bytes) / 1e6:,.1f}"


def _ratio(model: EvaluatedModel, figure: str) -> float | None:
    ratio: float | None = getattr(model.ratios, figure, None)
    return ratio


def _with(text: str, ratio: float | None) -> str:
    """A figure and its share of the first model's."""
    return text if ratio is None else f"{text} ({ratio:.3f})"
