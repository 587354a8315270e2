"""The report of a pipeline as a document."""

from collections.abc import Callable

from onnxsep.compression.goals import in_words
from onnxsep.compression.report import CompressReport, StepReport
from onnxsep.errors import spelled
from onnxsep.evaluation import EvaluationReport, cells
from onnxsep.evaluation.report import EvaluatedModel
from onnxsep.reporting.blocks import header, notes, summary, title, warned, written
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Row, Series, Table

Show = Callable[[EvaluatedModel], str]
_SPARE = {"not 0": 5, "MACs": 4, "parameters": 3, "points": 2, "agreement": 1}  # columns, the first to go first


def compress_document(report: CompressReport) -> Document:
    """The steps, one table of what each left of the model, how to read it, notes, and the file that was written."""
    blocks: list[Block] = [header(report.source, f"recipe {report.recipe}"), *_ways(report), *map(_step, report.steps)]
    if report.resumed_after:
        blocks.append(Line(resumed_words(report)))
    blocks += [_table(report.evaluation), *_series(report.evaluation), *map(Line, _legend(report))]
    blocks += [*warned(report.warnings), *notes(_notes(report)), *written(report)]
    return Document(title(report.command, report.source), tuple(blocks))


def _ways(report: CompressReport) -> tuple[Table, ...]:
    """What a search has tried."""
    if not report.ways:
        return ()
    rows = []
    for way in report.ways:
        came = "reached" if way.reached else (in_words(way.missed) or way.why)
        rows.append(Row((Cell(way.name), Cell(f"{way.seconds:.0f}"), Cell(came))))
    return (Table((Column("way"), Column("seconds", "right"), Column("what came of it")), tuple(rows)),)


def _step(step: StepReport) -> Line:
    given = f": {step.given}" if step.given else ""
    when = "done before the interruption" if step.resumed else f"{step.seconds:.1f} s"
    return Line(f"step {step.number} {step.command}{given} ({when})")


def _table(found: EvaluationReport) -> Table:
    shown = [(name, show) for name, show in _columns(found) if any(map(show, found.models))]
    rows = (Row((Cell(row.name), *(Cell(show(row)) for _, show in shown))) for row in found.models)
    figures = (Column(name, "right", spare=_SPARE.get(name, 0)) for name, _ in shown)
    return Table((Column("after step"), *figures), tuple(rows))


def _series(found: EvaluationReport) -> tuple[Series, Series]:
    names = tuple(row.name for row in found.models)
    right = tuple(None if row.top1 is None else row.top1.share.value for row in found.models)
    return (
        Series("file, bytes", tuple(row.file_bytes for row in found.models), names),
        Series("top-1 accuracy", right, names),
    )


def resumed_words(report: CompressReport) -> str:
    """After which step a run went on."""
    last = report.steps[report.resumed_after - 1]
    return f"resumed after step {last.number} ({last.command})"


def _columns(found: EvaluationReport) -> list[tuple[str, Show]]:
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
        "unseen": f"measured on {found.samples:,} samples of {found.data} that no step has seen",
        "data": f"measured on {found.samples:,} samples of {found.data}, which the steps have seen: give"
        f" {spelled('test')} samples that they have not",
        "random": f"measured on {found.samples:,} random inputs, as there is neither {spelled('test')} nor"
        f" {spelled('data')}: noise tells little",
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


def compress_summary(report: CompressReport) -> str:
    """The steps, and the figures that matter of the last result and the original."""
    models = report.evaluation.models
    figures = [f"{name}: {cells.in_short(model)}" for name, model in (("original", models[0]), ("result", models[-1]))]
    steps = ", ".join(step.command for step in report.steps)
    return summary(report.source, f"recipe {report.recipe} ({steps})", *figures)
