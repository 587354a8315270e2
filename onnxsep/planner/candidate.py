"""A form that one layer may get, and what it costs."""

from dataclasses import dataclass

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import site_macs
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Mode


@dataclass(frozen=True)
class Candidate:
    """A layer in one form: a mode at a rank, or left as it is.

    Attributes:
        match: The layer.
        mode: None for the layer as it is.
        rank: Of the mode.
        parameters: Weights and biases.
        macs: For the batch of the model, or one sample where it is free; None where sizes are not known.
    """

    match: ConvSite
    mode: Mode | None
    rank: Rank
    parameters: int
    macs: int | None

    @classmethod
    def as_it_is(cls, match: ConvSite) -> "Candidate":
        """The layer left alone."""
        return cls(match, None, (), match.conv.parameters, site_macs(match))

    @classmethod
    def of(cls, row: ConvReplacement) -> "Candidate":
        """The form that a plan has chosen."""
        return cls(row.site, row.mode, row.rank, row.parameters, row.macs)

    def instead_of(self, other: "Candidate") -> str:
        """What changes in costs, in words."""
        words = f"{other.parameters:,} -> {self.parameters:,} parameters"
        if self.macs is None or other.macs is None:
            return words
        return f"{words}, {other.macs:,} -> {self.macs:,} MACs"
