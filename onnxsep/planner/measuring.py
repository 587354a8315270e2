"""Candidates of layers as they are measured: fitted to data, then put into the network alone, each in its turn.

In the first round each is fitted and measured with all other layers as they are. Effects do not add up, so a second
round stands around a plan: a layer is fitted to what the layers before it, already replaced, deliver, and
measured with all other layers replaced as the plan says.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxsep.calibration.dense import Dense as DenseLayer
from onnxsep.calibration.own_nodes import OwnNodes
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import site_macs
from onnxsep.engine.replacements import BlockReplacement, Replacement
from onnxsep.graph.places import Place
from onnxsep.running.runtime import RuntimeOptions

Dense = Mapping[Place, DenseLayer | OwnNodes]
"""What stands for replaced layers, by their places: a layer with other values, or the nodes of a block."""


@dataclass(frozen=True)
class Measured:
    """A layer in one form, and what was measured of it.

    Attributes:
        site: The layer.
        row: What takes its place; None where it is left alone.
        parameters: Weights and biases.
        macs: For the batch of the model, or one sample where it is free; None where sizes are not known.
        bytes: What the file that is shipped has more than the source's, nodes and names included.
        held_out: Relative error of its own output behind its activation, on positions that the fit has not seen.
        effect: On the network's output, as what adds up (``output_distance.Effect.additive``), less that of the layer
            left alone: nothing in the first round, and around a plan that of all the others.
        latency: Nanoseconds that the model takes more; 0 where times do not matter.
        ram: Bytes of activations that are alive while it runs; 0 where they do not matter.
        instead: The form that ``held_out`` and ``effect`` were measured of, where it is not this one.
        deciding: What decides between forms, likewise less that of the layer left alone
            (``output_distance.Effect.deciding``); None: ``effect``.
        covers: The other layers that a block takes the place of: none of them has a form of its own then. Its costs are
            those of all these layers together.
    """

    site: ConvSite
    row: Replacement | None
    parameters: int
    macs: int | None
    bytes: int
    held_out: float
    effect: float
    latency: int = 0
    ram: int = 0
    instead: str = ""
    deciding: float | None = None
    covers: tuple[Place, ...] = ()

    @property
    def loss(self) -> float:
        """What a choice is to make small."""
        return self.effect if self.deciding is None else self.deciding

    @classmethod
    def as_it_is(cls, site: ConvSite) -> "Measured":
        """The layer left alone."""
        return cls(site, None, site.conv.parameters, site_macs(site), 0, 0.0, 0.0)

    def is_like(self, other: "Measured") -> bool:
        """Whether it is the same form of the same layer."""
        return self.site.place == other.site.place and self.words == other.words

    @property
    def words(self) -> str:
        """Its form."""
        if self.row is None:
            return "left alone"
        if isinstance(self.row, BlockReplacement):
            return " ".join([self.row.mode.name, *(f"{name}={value}" for name, value in self.row.mode.given.items())])
        return f"{self.row.mode.name} {'x'.join(map(str, self.row.rank))}"

    @property
    def is_block(self) -> bool:
        """Whether it takes several nodes at a time."""
        return isinstance(self.row, BlockReplacement)


@dataclass(frozen=True)
class Samples:
    """What candidates are fitted to and measured on.

    Attributes:
        fitted: Gives the feeds of the fits.
        options: How they are sampled.
        runtime: How pieces of the network are run.
    """

    fitted: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
    options: CalibrationOptions
    runtime: RuntimeOptions
