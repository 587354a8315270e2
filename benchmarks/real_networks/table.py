"""The table of a network, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from real_networks.networks import Network
from real_networks.rows import Row, Work


def table(name: str, network: Network, rows: Sequence[Row], work: Work) -> list[str]:
    """Its lines: a heading, and a line for each row that there is something to say of."""
    original = work.loss(rows[0])
    if original is None:
        return [f"{name}: not measured"]
    first, times = original["models"][0], work.times()
    scores = original["models"][0]["against_reference"]["agreement"] is not None
    losses = (*(("same class",) if scores else ()), *(("top-1",) if network.classes else ()))
    heads = ("", "replaced", "size", "latency", "CPU s", "GB", "error", *losses)
    lines = [
        f"**{name}**: {first['file_bytes']:,} bytes, {first['parameters']:,} parameters, {first['macs'] / 1e6:,.0f}"
        f" million MACs; {network.fit} samples to fit to and calibrate with, {original['samples']} others measured.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for row in rows:
        cells = _cells(row, work, first["file_bytes"], times)
        if cells is not None:
            lines.append(f"| {' | '.join([row.label, *cells, *[''] * (len(heads) - 1 - len(cells))])} |")
    return [*lines, ""]


def _cells(row: Row, work: Work, whole: int, times: Mapping[str, Mapping[str, Any]]) -> list[str] | None:
    made, loss = work.made(row), work.loss(row)
    if made is None and row.words:
        return None
    spent = [f"{made['seconds']:.0f}", f"{made['bytes'] / 1e9:.1f}"] if made else ["", ""]
    replaced = str(made["replaced"][0]) if made and made["replaced"] else ""
    if loss is None:
        failed = f"status {made['status']}" if made and made["status"] else "not measured"
        why = "nothing to replace" if made and made["replaced"] == [0] else failed
        return [replaced, why, "", *spent]
    model = loss["models"][0]
    ratio = (times.get(f"{row.stem}.onnx") or {}).get("against_first")
    latency = f"{ratio['value']:.2f} +- {ratio['standard_error'] or 0:.2f}" if ratio else ""
    return [replaced, f"{model['file_bytes'] / whole:.3f}", latency, *spent, *_losses(model)]


def _losses(model: Mapping[str, Any]) -> list[str]:
    found = model["against_reference"]
    shares = [found["agreement"], (model["top1"] or {}).get("share")]
    errors = ", ".join(_number(output["relative"]) for output in found["outputs"])
    return [errors, *(_share(share) for share in shares if share is not None)]


def _share(share: Mapping[str, Any]) -> str:
    return f"{100 * share['value']:.1f} +- {100 * share['standard_error']:.1f} %"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
