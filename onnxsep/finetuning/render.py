"""The report of a fine-tuning as a document."""

from onnxsep.finetuning.report import FinetuneReport
from onnxsep.reporting.blocks import header, notes, summary, title, written
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Row, Series, Table
from onnxsep.training.run_records import Figures

_STOPPED = {
    "early": "stopped early: nothing had become better",
    "interrupted": "interrupted: the result holds the best weights so far",
    "diverged": "stopped: the loss was not finite; the result holds the last good weights",
}


def finetune_document(report: FinetuneReport) -> Document:
    """The table of the epochs, what was kept, and notes."""
    zeros = f", {report.zeros_kept:,} zeros kept" if report.zeros_kept else ""
    trained = (
        f"{report.weights:,} weights trained on {report.training_samples:,} samples, {report.held_out_samples:,} held"
        f" out{zeros}"
    )
    blocks: list[Block] = [header(report.source, _asked(report)), _epochs(report), *_losses(report), Line(trained)]
    if report.stopped in _STOPPED:
        blocks.append(Line(_STOPPED[report.stopped]))
    blocks += [*notes(report.notes), *written(report)]
    return Document(title(report.command, report.source), tuple(blocks))


def _epochs(report: FinetuneReport) -> Table:
    share = "agreement" if report.accuracy_of == "teacher" else "accuracy"
    figures = (("loss", 1), (share, 2), ("held-out loss", 0), (f"held-out {share}", 0), ("seconds", 3))
    columns = (Column("epoch"), *(Column(name, "right", spare=spare) for name, spare in figures))
    rows = [Row((Cell("start"), Cell(), Cell(), *_cells(report.before), Cell()))]
    for done in report.epochs:
        kept = " (kept)" if done.epoch == report.best_epoch else ""
        cells = (*_cells(done.training), *_cells(done.validation))
        rows.append(Row((Cell(f"{done.epoch}{kept}"), *cells, Cell(f"{done.seconds:.1f}", done.seconds))))
    return Table(columns, tuple(rows))


def _losses(report: FinetuneReport) -> tuple[Series, Series]:
    held_out = (None if done.validation is None else done.validation.loss for done in report.epochs)
    return (
        Series("loss", tuple(done.training.loss for done in report.epochs)),
        Series("held-out loss", tuple(held_out)),
    )


def _asked(report: FinetuneReport) -> str:
    used = report.used or report.options
    loss = [f"teacher's {used['loss']}"] if used["loss"] else []
    loss += [f"labels ({used['label_weight']:g})"] if used["label_weight"] else []
    return f"{' + '.join(loss)}, {used['optimizer']} {used['schedule']} {used['rate']:g}"


def _cells(figures: Figures | None) -> tuple[Cell, Cell]:
    if figures is None:
        return Cell(), Cell()
    right = figures.accuracy
    return Cell(f"{figures.loss:.4g}", figures.loss), Cell() if right is None else Cell(f"{right:.2%}", right)


def finetune_summary(report: FinetuneReport) -> str:
    """How long it trained, and what became better."""
    count = len(report.epochs)
    stopped = f", {report.stopped}" if report.stopped in _STOPPED else ""
    figures = [f"{count} epoch{'' if count == 1 else 's'}, weights of epoch {report.best_epoch} kept{stopped}"]
    after = {done.epoch: done.validation for done in report.epochs}
    kept = after.get(report.best_epoch, report.before)
    if report.before is not None and kept is not None:
        figures.append(f"held-out loss {report.before.loss:.4g} -> {kept.loss:.4g}")
        if report.before.accuracy is not None and kept.accuracy is not None:
            share = "agreement" if report.accuracy_of == "teacher" else "accuracy"
            figures.append(f"{share} {report.before.accuracy:.2%} -> {kept.accuracy:.2%}")
    return summary(report.source, _asked(report), *figures)
