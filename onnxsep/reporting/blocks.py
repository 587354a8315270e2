"""Parts of a document that the reports of several commands share."""

import math
from collections.abc import Iterable
from typing import Protocol

from onnxsep.errors import spelled
from onnxsep.reporting.document import Block, Cell, Line, Note, Span, Words
from onnxsep.reporting.records import (
    ActivationMemory,
    MeasuredOn,
    MissedLimit,
    ModelInfo,
    VerificationReport,
    part_text,
)


class Written(Protocol):
    """What reports of a command that writes a model have in common (``records.WrittenFiles``)."""

    output: str | None
    output_bytes: int | None
    output_data: tuple[str, ...] | None
    output_data_bytes: int | None
    seconds: float


class Ending(Written, Protocol):
    """What reports of a model that was changed and compared have in common."""

    notes: tuple[str, ...]
    verification: VerificationReport
    missed: tuple[MissedLimit, ...]
    dry_run: bool


def title(command: str, source: ModelInfo) -> str:
    """What the report of a command is about."""
    return f"onnxsep {command}: {_name(source)}"


def header(source: ModelInfo, what: str) -> Line:
    """The model and what is done with it."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in source.opsets.items())
    producer = source.producer or "unknown producer"
    return Line(f"{_name(source)}: {producer}, IR {source.ir_version}, opset {opsets}, {_size(source)}; {what}")


def summary(source: ModelInfo, what: str, *figures: str) -> str:
    """What was done with a model, and what came of it, in a line."""
    return "; ".join((f"{_name(source)}, {what}", *filter(None, figures)))


def compared(outcome: VerificationReport) -> str:
    """What a verification found, in a few words."""
    if not outcome.ran:
        return "not verified"
    return f"relative error {_known(outcome.relative):.3g}"


def site(name: str, where: str) -> tuple[str | Span, ...]:
    """A node's name, and the nested graph or function that holds it."""
    return (name, " ", Span(f"({where})", "dim")) if where else (name,)


def number(value: float | None, form: str) -> Cell:
    """A number in a table, empty where there is none."""
    return Cell() if value is None else Cell(format(value, form), value)


def notes(texts: Iterable[str]) -> tuple[Note, ...]:
    """A note for each text."""
    return tuple(Note(text) for text in texts)


def warned(texts: Iterable[str]) -> tuple[Line, ...]:
    """A line for each warning."""
    return tuple(Line((Span("warning:", "warning"), f" {text}")) for text in texts)


def ending(report: Ending, layers: Iterable[Block] = ()) -> tuple[Block, ...]:
    """What the report of a changed model ends in: notes, its tensors, the verification, the file that was written."""
    last = (Line("dry run: nothing was written"),) if report.dry_run else written(report)
    limits = missed_notes(report.missed)
    return (*notes(report.notes), *layers, *_verification(report.verification), *limits, *last)


def written(report: Written) -> tuple[Line, ...]:
    """The files that were written, if any were."""
    if not report.output:
        return ()
    beside = report.output_data_bytes or 0
    words = f"wrote {report.output} ({(report.output_bytes or 0) - beside:,} bytes)"
    if files := report.output_data:
        what = f"data file {files[0]}" if len(files) == 1 else f"{len(files)} data files"
        words += f" and its {what} ({beside:,} bytes)"
    return (Line(f"{words} in {report.seconds:.1f} s"),)


def macs_change(before: int, after: int, unknown: int) -> str:
    """MACs before and after, and how many nodes are not in these sums because their sizes are not known."""
    if unknown and not before:
        return f"MACs unknown: the sizes are free ({spelled('input_shapes', hint='NAME:DIMS')} gives them)"
    return f"MACs {ratio_text(before, after)}" + (f" ({unknown} nodes of unknown size not counted)" if unknown else "")


def activations_lines(before: ActivationMemory | None, after: Iterable[tuple[str, ActivationMemory]]) -> list[Line]:
    """Peak activation memory of a model, and of what becomes of it; nothing where a report does not say it.

    Args:
        before: of the model.
        after: of its forms, and what each is called.
    """
    if before is None:
        return []
    if before.best_order is None or before.file_order is None:
        return [Line(f"peak activation memory unknown: {before.unknown} tensors of unknown size")]
    best, in_file = f"{before.best_order:,}", f"{before.file_order:,}"
    for name, one in after:
        if one.best_order is not None and one.file_order is not None:
            arrow = f"; {name}" if name else " -> "
            best += f"{arrow}{one.best_order:,}{_share(one.best_order, before.best_order)}"
            in_file += f"{arrow}{one.file_order:,}{_share(one.file_order, before.file_order)}"
    words = f"peak activation memory, bytes: {best}"
    return [Line(words if best == in_file else f"{words} (in the file's order {in_file})")]


def _share(after: int, before: int) -> str:
    return f" ({after / before:.3f})" if before else ""


def ratio_text(before: int, after: int) -> str:
    """Two counts and their ratio."""
    return f"{before:,} -> {after:,}{_share(after, before)}"


def measured_line(found: MeasuredOn | None) -> list[Line]:
    """What a comparison was measured on; nothing where the report does not say."""
    return [] if found is None else [Line(measured_text(found), indent=1)]


def measured_text(found: MeasuredOn) -> str:
    """What a comparison was measured on, and what noise is worth."""
    count = "" if found.samples is None else f"{found.samples:,} sample{'' if found.samples == 1 else 's'}"
    words = {
        "unseen": f"measured on {count} of {found.source} that no fit has seen",
        "seen": f"measured on {count} of {found.source} that the fit has seen too: there are too few to leave any out",
        "data": f"measured on {count} of {found.source}",
        "inputs": f"measured on the inputs of {found.source}" + (f" ({count})" if count else ""),
        "random": f"measured on noise, which mostly shows larger errors than real inputs ({spelled('data')},"
        f" {spelled('inputs')})",
    }
    return words[found.kind]


def missed_notes(found: Iterable[MissedLimit]) -> tuple[Note, ...]:
    """A line for each limit that was missed, by how much, and what would be written."""
    return notes(map(missed_text, found))


def missed_text(one: MissedLimit) -> str:
    """What was measured, and by how much that misses the limit."""
    form, unit = _UNITS.get(one.limit, (".3g", ""))
    where = f"{one.model}: " if one.model else ""
    by = abs(one.measured - one.allowed)
    words = (
        f"{where}{spelled(one.limit, one.allowed)} is missed by {by:{form}}: {_WHAT[one.limit]} is"
        f" {one.measured:{form}}{unit}"
    )
    if one.nearest is None:
        return words
    return f"{words}; nearest: the same command with {spelled(one.limit, one.nearest)}"


_WHAT = {
    "max_error": "the relative error",
    "max_drop": "the loss of top-1 accuracy",
    "min_accuracy": "the top-1 accuracy",
    "max_latency_ratio": "the latency, as a share of the first model's,",
    "max_size_ratio": "the file, as a share of the first model's,",
}
_UNITS = {"max_drop": (".2f", " points"), "min_accuracy": (".2f", " %")}


def rounded_up(value: float) -> float:
    """The next number of two digits that is not below a value."""
    if not 0 < value < math.inf:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(round(value / step, 9)) * step:.2g}")


def _name(source: ModelInfo) -> str:
    return source.path or "model in memory"


def _size(source: ModelInfo) -> str:
    return f"{source.size_bytes:,} bytes"


def _verification(outcome: VerificationReport) -> list[Line]:
    if not outcome.ran:
        return [Line((Span("not verified", "warning"), f": {outcome.reason}"))]
    what = "outputs of original and result" if outcome.kind == "full" else "each replaced Conv and the original one"
    figures = [f"{name} {_known(getattr(outcome, f'{name}{rest}')):.3g}" for name, rest in _FIGURES]
    words: Words = (
        Span("compared", "good"),
        f" in ONNX Runtime on the same inputs: {what} differ by {', '.join(figures)}",
    )
    lines = [Line(words), *measured_line(outcome.measured_on)]
    for one in outcome.outputs if len(outcome.outputs) > 1 or any(one.parts for one in outcome.outputs) else ():
        lines.append(Line(f"{one.name}: max {one.max_abs:.3g}, relative {one.relative:.3g}", indent=1))
        lines += [Line(part_text(part), indent=2) for part in one.parts]
    return lines + [Line(note, indent=1) for note in outcome.notes]


_FIGURES = (("max", "_abs"), ("mean", "_abs"), ("relative", ""))


def _known(value: float | None) -> float:
    """A figure; JSON has no infinity, so that a saved report holds none in its place."""
    return math.nan if value is None else value
