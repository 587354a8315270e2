"""The report of a quantisation as a document."""

from collections import Counter

from onnxsep.checking.render import layers_of_result
from onnxsep.evaluation import cells
from onnxsep.quantization.report import AccuracyDrop, BiasCorrection, OutputError, QuantizeReport, Speed
from onnxsep.reporting.blocks import header, missed_notes, notes, ratio_text, summary, title, warned, written
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Note, Row, Table
from onnxsep.reporting.records import part_text


def quantize_document(report: QuantizeReport) -> Document:
    """Counts by operator, every node that was left with its reason, errors of the outputs, sizes and notes."""
    blocks: list[Block] = [header(report.source, _asked(report)), _counts(report)]
    blocks += [
        Line(f"in float: {node.op_type} {node.name}: {node.reason}") for node in report.nodes if node.status == "left"
    ]
    if report.bias_correction is not None:
        blocks.append(_biases(report.bias_correction))
    for tensor in report.integers:
        real = f"{tensor.scale:.6g} * (integer - {tensor.zero_point})"
        blocks.append(Line(f"{tensor.kind} {tensor.name}: {tensor.type}, real = {real}"))
    where = f"{report.measured_samples} {'held-out samples' if report.held_out else 'samples of the calibration'}"
    for output in report.outputs:
        blocks += _output(output, where)
    blocks += layers_of_result(report.layers)
    if report.accuracy is not None:
        blocks.append(_accuracy(report.accuracy))
    blocks.append(Line(f"calibrated with {report.calibration_samples} samples of {report.data}"))
    blocks.append(Line(f"file {ratio_text(report.bytes_before, report.bytes_after)} bytes"))
    if report.speed is not None:
        blocks.append(_speed(report.speed))
    blocks += [*warned(report.warnings), *notes(report.notes), *missed_notes(report.missed), *written(report)]
    return Document(title(report.command, report.source), tuple(blocks))


def _asked(report: QuantizeReport) -> str:
    options = report.options
    weights = "per-channel" if options["per_channel"] else "per-tensor"
    return f"{options['format']}, {options['activations']} activations, {weights} weights, {options['method']}"


def _counts(report: QuantizeReport) -> Table:
    counts = Counter((node.op_type, node.status) for node in report.nodes)
    rows = []
    for op_type in dict.fromkeys(node.op_type for node in report.nodes):
        figures = [counts[op_type, status] for status in ("quantized", "folded", "left")]
        rows.append(Row((Cell(op_type), *(Cell(str(figure) if figure else "", figure) for figure in figures))))
    figures_of = (Column(name, "right") for name in ("quantised", "folded", "in float"))
    return Table((Column("operator"), *figures_of), tuple(rows))


def _biases(found: BiasCorrection) -> Line:
    line = f"biases corrected: {found.corrected}"
    line += f", of which new: {', '.join(found.added)}" if found.added else ""
    return Line(line + (f"; cannot be: {', '.join(found.left)}" if found.left else ""))


def _output(output: OutputError, where: str) -> list[Block]:
    line = f"output {output.name}: relative error {output.relative:.3g}, max {output.max_abs:.3g}"
    if output.agreement is not None:
        line += f", same class {output.agreement:.4f}"
    parts = [Line(part_text(part), indent=1) for part in output.parts]
    return [Line(f"{line} on {where}"), *parts, *(Note(loss) for loss in output.lost)]


def _speed(found: Speed) -> Line:
    times = [cells.milliseconds(one.median_ms, one.standard_error_ms) for one in (found.source, found.result)]
    ratio = found.result.against_first
    share = "" if ratio is None else f" ({cells.uncertain(ratio.value, ratio.standard_error)})"
    return Line(f"latency {times[0]} -> {times[1]} ms{share}, batch {found.batch}, measured in passing")


def _accuracy(found: AccuracyDrop) -> Line:
    line = f"top-1 on {found.samples} samples: source {found.source:.2f} %, result {found.result:.2f} %"
    if found.spared:
        line += f" (all layers quantised {found.all_quantized:.2f} %); in float: {', '.join(found.spared)}"
    return Line(line)


def quantize_summary(report: QuantizeReport) -> str:
    """How many nodes were quantised, what that saves, and the error."""
    done = sum(node.status != "left" for node in report.nodes)
    figures = [f"{done} of {len(report.nodes)} nodes quantised"]
    figures.append(f"file {ratio_text(report.bytes_before, report.bytes_after)} bytes")
    figures.append(f"relative error {report.relative:.3g}")
    if report.accuracy is not None:
        figures.append(f"top-1 {report.accuracy.source:.2f} % -> {report.accuracy.result:.2f} %")
    return summary(report.source, _asked(report), *figures)
