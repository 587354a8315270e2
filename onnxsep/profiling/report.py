"""What ``profile`` wrote: the data behind its table, and what ``--json`` and ``--report`` write."""

from typing import Any, Literal

from onnxsep.reporting.records import ModelInfo, Record, Report


class ProfiledLayer(Record):
    """One layer."""

    name: str
    op_type: str
    where: str
    """The nested graph or function that holds it; empty for the main graph."""
    reason: str = ""
    """Why it is not in the kit."""
    piece: str = ""
    """The file of its piece; layers that take the same time share one."""
    nodes: int = 0
    """Of the piece: the layer, what the runtime fuses with it, and neighbours."""
    forms: int = 0
    """Forms that it may get."""


class ProfileReport(Report):
    """One run of ``onnxsep profile``."""

    row_field = "layers"
    command: Literal["profile"] = "profile"
    source: ModelInfo
    options: dict[str, Any]
    """What was asked for: the model, and every option."""
    layers: tuple[ProfiledLayer, ...]
    pieces: int
    """Pieces that differ."""
    forms: int
    """Forms of pieces that differ."""
    notes: tuple[str, ...] = ()
    output: str | None = None
    """The folder of the kit."""
    output_bytes: int | None = None
    seconds: float
