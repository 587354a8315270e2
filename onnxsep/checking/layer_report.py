"""The differences of the tensors that two models have in common, as records."""

from onnxsep.reporting.records import PartReport, Record


class LayerDifference(Record):
    """The difference of one tensor that two models have in common."""

    name: str
    """In the reference."""
    other: str
    """In the model."""
    op_type: str
    """The reference's operator that computes it; "input" for a graph input that the model rounds."""
    relative: float
    """||a - b|| / ||a||, a the reference's; of a graph output that of the worst part."""
    snr_db: float | None
    """-20 log10 of that; None where both are equal."""
    max_abs: float
    before: float
    """The largest relative error among what it is computed from."""
    jump: bool = False
    """Whether the error rises here by much over that, or a part loses its variation."""
    scaled: tuple[float, float] | None = None
    """Smallest and largest factor of a channel, where the model holds channels scaled (equalised) and layers behind
    undo it; the error is then what is left beside these factors."""
    joined: bool = False
    """Whether it is an output or a Concat, whose parts are things of unlike kinds; elsewhere a part may be no more than
    a filter with small weights."""
    parts: tuple[PartReport, ...] = ()
    """Where its parts have unlike ranges."""


class LayersReport(Record):
    """The tensors of two models, one by one: where does the error arise?"""

    rows: tuple[LayerDifference, ...]
    """In the order of the reference."""
    convs: int
    """Convs and ConvTransposes of the reference."""
    convs_compared: int
    """Those whose output, or what is made of it before it is stored, is compared."""
    linear: int
    """Gemms and MatMuls."""
    linear_compared: int
    tensors: int
    """Activations of the reference's main graph."""
    tensors_compared: int
    nested: int
    """Tensors within nested graphs, which are skipped."""
    not_compared: tuple[str, ...] = ()
    """Names of the Convs, Gemms and MatMuls that have no counterpart."""
    samples: int
    first_jump: str | None = None
    """The first tensor at which the error rises by much."""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        jump = "no jump" if self.first_jump is None else f"first jump at {self.first_jump!r}"
        return f"<LayersReport: {self.tensors_compared} of {self.tensors} tensors on {self.samples} samples; {jump}>"
