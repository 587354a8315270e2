"""Reports of layers as text."""

from rich.console import Console

from onnxsep.checking.layer_report import LayersReport
from onnxsep.checking.layer_table import layer_lines
from onnxsep.reporting.text import safe


def print_layers(console: Console, report: LayersReport | None) -> None:
    """The tensors of source and result, where they were compared."""
    for number, line in enumerate(() if report is None else layer_lines(report)):
        console.print(safe(f"layers: {line}" if number == 0 else f"  {line}"), soft_wrap=True)
