"""The report of a pruning as text."""

from rich.console import Console

from onnxsep.pruning.report import FileSizes, PrunedLayer, PruneReport
from onnxsep.reporting.text import (
    Notes,
    header_line,
    macs_change,
    make_table,
    print_end,
    print_table,
    ratio_text,
    site_name,
)


def print_prune(console: Console, report: PruneReport) -> None:
    """The table of all layers, sums, sizes, notes and the verification line."""
    channels = report.method == "channels"
    console.print(header_line(report.source, _asked(report)))
    notes = Notes(console)
    figures = (">weight after", ">weights") if channels else (">weights", ">zeros", ">share")
    table = make_table(console, "layer", "weight", "result", *figures, *notes.columns)
    for layer in report.layers:
        why = "; ".join((layer.reason, *layer.notes)).strip("; ")
        pruned = layer.status == "pruned"
        table.add_row(
            site_name(layer.name, layer.where),
            _shape(layer.weight_shape) if layer.op_type == "Conv" else f"{layer.op_type} {_shape(layer.weight_shape)}",
            ("[green]pruned[/green]" if pruned else "left alone") + notes.mark(why),
            *(_channel_cells(layer) if channels else _zero_cells(layer)),
            *notes.cells(why),
            style="" if pruned else "dim",
        )
    print_table(console, table)
    notes.print()
    _print_totals(console, report)
    if report.sizes:
        console.print(_sizes(report.sizes))
    print_end(console, report)


def _asked(report: PruneReport) -> str:
    options = report.options
    what = {"magnitude": "smallest weights to zero", "pattern": "N:M", "channels": "whole channels"}[report.method]
    given = [
        f"{name} {options[name]}" for name in ("sparsity", "step", "steps", "pattern") if options[name] is not None
    ]
    scope = "" if report.method == "pattern" else f", scope {options['scope']}"
    return f"{what}, {', '.join(given)}{scope}" + (f", norm {options['norm']}" if report.method == "channels" else "")


def _print_totals(console: Console, report: PruneReport) -> None:
    totals = report.totals
    if len(report.surviving) > 1:
        after = " -> ".join(f"{count:,}" for count in report.surviving)
        console.print(f"weights that stay, step by step: {after}")
    line = f"{totals.pruned} of {totals.layers} layers pruned; "
    if report.method == "channels":
        line += f"their weights {ratio_text(totals.weights_before, totals.weights_after)}; "
        line += f"parameters {ratio_text(totals.parameters_before, totals.parameters_after)}; "
        line += macs_change(totals.macs_before, totals.macs_after, totals.macs_unknown)
    else:
        line += f"zeros {totals.zeros_before:,} -> {totals.zeros_after:,} of their {totals.weights_before:,} weights"
        line += f" ({(totals.zeros_after or 0) / max(totals.weights_before, 1):.4f})"
    console.print(line)


def _sizes(sizes: FileSizes) -> str:
    return (
        f"file {ratio_text(sizes.bytes_before, sizes.bytes_after)} bytes; "
        f"after zip {ratio_text(sizes.zipped_before, sizes.zipped_after)} bytes"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))


def _channel_cells(layer: PrunedLayer) -> tuple[str, str]:
    if layer.new_shape is None:
        return "", "" if layer.weights is None else f"{layer.weights:,}"
    size = 1
    for dim in layer.new_shape:
        size *= dim
    return _shape(layer.new_shape), f"{layer.weights:,} -> {size:,}"


def _zero_cells(layer: PrunedLayer) -> tuple[str, str, str]:
    weights = "" if layer.weights is None else f"{layer.weights:,}"
    if layer.zeros_after is None or not layer.weights:
        return weights, "", ""
    zeros = f"{layer.zeros_before:,} -> {layer.zeros_after:,}" if layer.zeros_before else f"{layer.zeros_after:,}"
    return weights, zeros, f"{layer.zeros_after / layer.weights:.4f}"
