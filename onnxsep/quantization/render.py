"""The report of a quantisation as text."""

from collections import Counter

from rich.console import Console

from onnxsep.checking.layer_text import print_layers
from onnxsep.quantization.report import AccuracyDrop, QuantizeReport
from onnxsep.reporting.records import part_text
from onnxsep.reporting.text import header_line, make_table, print_table, ratio_text, safe


def print_quantize(console: Console, report: QuantizeReport) -> None:
    """Counts by operator, every node that was left with its reason, errors of the outputs, sizes and notes."""
    options = report.options
    asked = f"{options['format']}, {options['activations']} activations, "
    asked += f"{'per-channel' if options['per_channel'] else 'per-tensor'} weights, {options['method']}"
    console.print(header_line(report.source, asked))
    counts = Counter((node.op_type, node.status) for node in report.nodes)
    table = make_table(console, "operator", ">quantised", ">folded", ">in float")
    for op_type in dict.fromkeys(node.op_type for node in report.nodes):
        figures = [counts[op_type, status] for status in ("quantized", "folded", "left")]
        table.add_row(safe(op_type), *(str(figure) if figure else "" for figure in figures))
    print_table(console, table)
    for node in report.nodes:
        if node.status == "left":
            console.print(f"in float: {safe(node.op_type)} {safe(node.name)}: {safe(node.reason)}")
    where = "held-out samples" if report.held_out else "samples of the calibration"
    if (found := report.bias_correction) is not None:
        line = f"biases corrected: {found.corrected}"
        line += f", of which new: {safe(', '.join(found.added))}" if found.added else ""
        console.print(line + (f"; cannot be: {safe(', '.join(found.left))}" if found.left else ""))
    for tensor in report.integers:
        real = f"{tensor.scale:.6g} * (integer - {tensor.zero_point})"
        console.print(f"{tensor.kind} {safe(tensor.name)}: {tensor.type}, real = {real}")
    for output in report.outputs:
        line = f"output {safe(output.name)}: relative error {output.relative:.3g}, max {output.max_abs:.3g}"
        if output.agreement is not None:
            line += f", same class {output.agreement:.4f}"
        console.print(f"{line} on {report.measured_samples} {where}")
        for part in output.parts:
            console.print(f"  {safe(part_text(part))}")
        for loss in output.lost:
            console.print(f"note: {safe(loss)}")
    print_layers(console, report.layers)
    if report.accuracy is not None:
        _print_accuracy(console, report.accuracy)
    console.print(f"calibrated with {report.calibration_samples} samples of {safe(report.data)}")
    console.print(f"file {ratio_text(report.bytes_before, report.bytes_after)} bytes")
    for note in report.notes:
        console.print(f"note: {safe(note)}")
    if report.output:
        console.print(f"wrote {safe(report.output)} ({report.output_bytes:,} bytes) in {report.seconds:.1f} s")


def _print_accuracy(console: Console, found: AccuracyDrop) -> None:
    line = f"top-1 on {found.samples} samples: source {found.source:.2f} %, result {found.result:.2f} %"
    if found.spared:
        line += f" (all layers quantised {found.all_quantized:.2f} %); in float: {safe(', '.join(found.spared))}"
    console.print(line)
