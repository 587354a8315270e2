"""The report of a pruning as a document."""

from math import prod

from onnxsep.pruning.report import FileSizes, PrunedLayer, PruneReport
from onnxsep.reporting.blocks import compared, ending, header, macs_change, ratio_text, site, summary, title
from onnxsep.reporting.document import Block, Cell, Column, Document, Line, Row, Series, Table


def prune_document(report: PruneReport) -> Document:
    """The table of all layers, sums, sizes, notes and the verification."""
    blocks: list[Block] = [header(report.source, _asked(report)), _layers(report), *_totals(report)]
    if report.sizes:
        blocks.append(_sizes(report.sizes))
    blocks += ending(report)
    return Document(title(report.command, report.source), tuple(blocks))


def _layers(report: PruneReport) -> Table:
    channels = report.method == "channels"
    figures = (("weight after", 1), ("weights", 0)) if channels else (("weights", 1), ("zeros", 0), ("share", 0))
    columns = (
        *(Column("layer"), Column("weight", spare=2), Column("result")),
        *(Column(name, "right", spare=spare) for name, spare in figures),
    )
    return Table(columns, tuple(_layer(layer, channels) for layer in report.layers), notes="why, notes")


def _layer(layer: PrunedLayer, channels: bool) -> Row:
    why = "; ".join((layer.reason, *layer.notes)).strip("; ")
    pruned = layer.status == "pruned"
    shape = _shape(layer.weight_shape)
    cells = (
        Cell(site(layer.name, layer.where)),
        Cell(shape if layer.op_type == "Conv" else f"{layer.op_type} {shape}"),
        Cell("pruned", style="good", note=why) if pruned else Cell("left alone", note=why),
        *(_channel_cells(layer) if channels else _zero_cells(layer)),
    )
    return Row(cells, style="" if pruned else "dim")


def _asked(report: PruneReport) -> str:
    options = report.options
    what = {"magnitude": "smallest weights to zero", "pattern": "N:M", "channels": "whole channels"}[report.method]
    given = [
        f"{name} {options[name]}" for name in ("sparsity", "step", "steps", "pattern") if options[name] is not None
    ]
    scope = "" if report.method == "pattern" else f", scope {options['scope']}"
    return f"{what}, {', '.join(given)}{scope}" + (f", norm {options['norm']}" if report.method == "channels" else "")


def _totals(report: PruneReport) -> list[Block]:
    blocks = list[Block]()
    if len(report.surviving) > 1:
        after = " -> ".join(f"{count:,}" for count in report.surviving)
        blocks.append(Line(f"weights that stay, step by step: {after}"))
        blocks.append(Series("weights that stay", report.surviving))
    return [*blocks, Line(_sums(report))]


def _sums(report: PruneReport) -> str:
    totals = report.totals
    line = f"{totals.pruned} of {totals.layers} layers pruned; "
    if report.method == "channels":
        line += f"their weights {ratio_text(totals.weights_before, totals.weights_after)}; "
        line += f"parameters {ratio_text(totals.parameters_before, totals.parameters_after)}; "
        line += macs_change(totals.macs_before, totals.macs_after, totals.macs_unknown)
    else:
        zeros = totals.zeros_after or 0
        line += f"zeros {totals.zeros_before or 0:,} -> {zeros:,} of their {totals.weights_before:,} weights"
        line += f" ({zeros / max(totals.weights_before, 1):.4f})"
    return line


def _sizes(sizes: FileSizes) -> Line:
    return Line(
        f"file {ratio_text(sizes.bytes_before, sizes.bytes_after)} bytes; "
        f"after zip {ratio_text(sizes.zipped_before, sizes.zipped_after)} bytes"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))


def _channel_cells(layer: PrunedLayer) -> tuple[Cell, Cell]:
    if layer.new_shape is None:
        return Cell(), _count(layer.weights)
    size = prod(layer.new_shape)
    return Cell(_shape(layer.new_shape)), Cell(f"{layer.weights or 0:,} -> {size:,}", size)


def _zero_cells(layer: PrunedLayer) -> tuple[Cell, Cell, Cell]:
    weights = _count(layer.weights)
    if layer.zeros_after is None or not layer.weights:
        return weights, Cell(), Cell()
    before = f"{layer.zeros_before:,} -> " if layer.zeros_before else ""
    share = layer.zeros_after / layer.weights
    return weights, Cell(f"{before}{layer.zeros_after:,}", layer.zeros_after), Cell(f"{share:.4f}", share)


def _count(weights: int | None) -> Cell:
    return Cell() if weights is None else Cell(f"{weights:,}", weights)


def prune_summary(report: PruneReport) -> str:
    """How much went, and the error."""
    last = "dry run" if report.dry_run else compared(report.verification)
    return summary(report.source, _asked(report), _sums(report), last)
