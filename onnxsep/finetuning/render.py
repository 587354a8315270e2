"""The report of a fine-tuning as text."""

from rich.console import Console

from onnxsep.finetuning.report import FinetuneReport
from onnxsep.reporting.text import header_line, make_table, print_table, safe
from onnxsep.training.run_records import Figures

_STOPPED = {
    "early": "stopped early: nothing had become better",
    "interrupted": "interrupted: the result holds the best weights so far",
    "diverged": "stopped: the loss was not finite; the result holds the last good weights",
}


def print_finetune(console: Console, report: FinetuneReport) -> None:
    """The table of the epochs, what was kept, and notes."""
    console.print(header_line(report.source, _asked(report)))
    share = "agreement" if report.accuracy_of == "teacher" else "accuracy"
    columns = ("epoch", ">loss", f">{share}", ">held-out loss", f">held-out {share}", ">seconds")
    table = make_table(console, *columns)
    table.add_row("start", "", "", *_cells(report.before), "")
    for done in report.epochs:
        kept = " (kept)" if done.epoch == report.best_epoch else ""
        cells = (*_cells(done.training), *_cells(done.validation))
        table.add_row(f"{done.epoch}{kept}", *cells, f"{done.seconds:.1f}")
    print_table(console, table)
    zeros = f", {report.zeros_kept:,} zeros kept" if report.zeros_kept else ""
    console.print(
        f"{report.weights:,} weights trained on {report.training_samples:,} samples, {report.held_out_samples:,} held"
        f" out{zeros}"
    )
    if report.stopped in _STOPPED:
        console.print(_STOPPED[report.stopped])
    for note in report.notes:
        console.print(f"note: {safe(note)}")
    if report.output is not None:
        console.print(f"wrote {safe(report.output)}, {report.output_bytes or 0:,} bytes, in {report.seconds:.0f} s")


def _asked(report: FinetuneReport) -> str:
    used = report.options
    loss = [f"teacher's {used['loss']}"] if used["loss"] else []
    loss += [f"labels ({used['label_weight']:g})"] if used["label_weight"] else []
    return f"{' + '.join(loss)}, {used['optimizer']} {used['schedule']} {used['rate']:g}"


def _cells(figures: Figures | None) -> tuple[str, str]:
    if figures is None:
        return "", ""
    return f"{figures.loss:.4g}", "" if figures.accuracy is None else f"{figures.accuracy:.2%}"
