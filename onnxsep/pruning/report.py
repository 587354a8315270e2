"""What ``prune`` did: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from onnxsep.reporting.records import MissedLimit, ModelInfo, Record, Report, VerificationReport, WrittenFiles


class PrunedLayer(Record):
    """What became of one Conv (or Gemm, MatMul)."""

    name: str
    op_type: str
    where: str
    """The nested graph or function that holds it; empty for the main graph."""
    status: Literal["pruned", "left"]
    reason: str = ""
    """Why it was left alone."""
    notes: tuple[str, ...] = ()
    weight_shape: tuple[int, ...] | None = None
    """[out_channels, in_channels / group, *kernel_shape] of the source; None where it is not known."""
    new_shape: tuple[int, ...] | None = None
    """The same of the result, where channels were removed."""
    weights: int | None = None
    """Elements of the weight in the source."""
    zeros_before: int | None = None
    zeros_after: int | None = None
    """Elements that are zero, of the weight as it is then; None where whole channels are removed."""


class FileSizes(Record):
    """Bytes of the model with its external data, and after zip (deflate, level 6)."""

    bytes_before: int
    bytes_after: int
    zipped_before: int
    zipped_after: int


class PruneTotals(Record):
    """Sums over the layers that may be pruned, each weight tensor once; and over the model."""

    layers: int
    pruned: int
    weights_before: int
    weights_after: int
    """Stored elements: fewer than before only where channels are removed."""
    zeros_before: int | None
    zeros_after: int | None
    """None where whole channels are removed."""
    parameters_before: int
    parameters_after: int
    """Every weight element of the model (``onnxsep.graph.parameters``, convention ``stored``), zero or not."""
    macs_before: int
    macs_after: int
    macs_unknown: int
    """Nodes whose sizes are not known, so that they are not in the sums."""


class PruneReport(WrittenFiles, Report):
    """One run of ``onnxsep prune``."""

    row_field = "layers"
    command: Literal["prune"] = "prune"
    source: ModelInfo
    method: Literal["magnitude", "pattern", "channels"]
    options: dict[str, Any]
    """What was asked for: the model, and every option; defaults that depend on others are resolved."""
    surviving: tuple[int, ...] = ()
    """Weights that are not zero (channels: that were asked to stay) after each step; empty for N:M."""
    layers: tuple[PrunedLayer, ...]
    totals: PruneTotals
    sizes: FileSizes | None = None
    """None in a dry run, and above 1 GB."""
    notes: tuple[str, ...] = ()
    verification: VerificationReport
    missed: tuple[MissedLimit, ...] = ()
    """The limits that it missed; nothing was written then."""
    dry_run: bool = False
    seconds: float
