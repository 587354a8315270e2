"""The report of a pipeline as text."""

from collections.abc import Callable

from rich.console import Console

from onnxsep.compression.report import CompressReport
from onnxsep.evaluation import EvaluationReport, cells
from onnxsep.evaluation.report import EvaluatedModel
from onnxsep.reporting.text import header_line, make_table, print_table, safe

Cell = Callable[[EvaluatedModel], str]


def print_compress(console: Console, report: CompressReport) -> None:
    """The steps, one table of what each left of the model, how to read it, notes, and the file that was written."""
    console.print(header_line(report.source, f"recipe {safe(report.recipe)}"))
    for step in report.steps:
        given = f": {safe(step.given)}" if step.given else ""
        when = "done before the interruption" if step.resumed else f"{step.seconds:.1f} s"
        console.print(f"step {step.number} {step.command}{given} ({when})")
    if report.resumed_after:
        console.print(resumed_words(report))
    columns = [(title, cell) for title, cell in _columns(report.evaluation) if any(map(cell, report.evaluation.models))]
    table = make_table(console, "after step", *(f">{safe(title)}" for title, _ in columns))
    for row in report.evaluation.models:
        table.add_row(safe(row.name), *(safe(cell(row)) for _, cell in columns))
    print_table(console, table)
    for line in _legend(report):
        console.print(safe(line))
    for note in _notes(report):
        console.print(f"note: {safe(note)}")
    if report.output:
        console.print(f"wrote {safe(report.output)} ({report.output_bytes:,} bytes) in {report.seconds:.1f} s")


def resumed_words(report: CompressReport) -> str:
    """After which step a run went on."""
    last = report.steps[report.resumed_after - 1]
    return f"resumed after step {last.number} ({last.command})"


def _columns(found: EvaluationReport) -> list[tuple[str, Cell]]:
    """Title and cell of each column; one without any text is left out."""
    return [
        ("top-1 accuracy", lambda row: cells.percent(cells.accuracy_share(row.top1))),
        ("points", lambda row: cells.difference(row.top1)),
        (f"metric {found.metric}", cells.metric),
        ("agreement", lambda row: cells.percent(cells.agreed(row))),
        ("error of outputs", _error),
        ("file, bytes", lambda row: cells.whole(row, "file_bytes")),
        ("parameters", lambda row: cells.whole(row, "parameters")),
        ("not 0", lambda row: cells.whole(row, "nonzero_parameters")),
        ("MACs", cells.macs),
        ("latency, ms", cells.latency),
    ]


def _error(row: EvaluatedModel) -> str:
    """The largest of all outputs."""
    known = [one.relative for one in cells.errors(row) if one.relative is not None]
    return f"{max(known):.3g}" if known else ""


def _legend(report: CompressReport) -> list[str]:
    found = report.evaluation
    where = {
        "test": f"measured on {found.data}, {found.samples:,} samples",
        "data": f"measured on {found.samples:,} samples of {found.data}, which the steps have seen: give --test samples"
        " that they have not",
        "random": f"measured on {found.samples:,} random inputs, as there is neither --test nor --data",
    }
    lines = [where[report.measured_on] + "; in brackets: as a share of the original; +-: standard error"]
    if found.reference is not None:
        lines.append("agreement with, and error |a - b| / |a| against, the original")
    lines += cells.latency_legend(found)
    return lines


def _notes(report: CompressReport) -> list[str]:
    """Those of the steps, once each, and those of the run."""
    notes = [
        f"step {step.number} ({step.command}): {note}"
        for step in report.steps
        for note in getattr(step.report, "notes", ())
    ]
    said = dict.fromkeys(note.partition(": ")[2] for note in notes)
    first = {text: next(note for note in notes if note.partition(": ")[2] == text) for text in said}
    return [*first.values(), *report.evaluation.notes, *report.notes]
