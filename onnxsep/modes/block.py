"""What a block mode is: how several nodes, which match a pattern, become other layers.

The engine finds the pattern and does the rest: names, constants, nested graphs, functions, metadata, counting, reports,
verification.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from onnxsep.algebra.linalg import Array
from onnxsep.graph.matching import Pattern, Refusal
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import Layer
from onnxsep.modes.settings import Adjustable


@dataclass(frozen=True)
class Operator:
    """A node as a mode sees it.

    Attributes:
        op_type: its type.
        attributes: in alphabetical order, lists as tuples.
        outputs: how many of its outputs have a name.
        dims: shape of its first output, as far as the model tells it: integers, names, None; None: not at all.
    """

    op_type: str
    attributes: tuple[tuple[str, Any], ...] = ()
    outputs: int = 1
    dims: tuple[int | str | None, ...] | None = None

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute, or the default where the node has none."""
        return dict(self.attributes).get(name, default)


@dataclass(frozen=True)
class Block:
    """What a mode sees of a match: geometry and attributes, no names and no values.

    Attributes:
        conv: the geometry of the anchor.
        nodes: by role, in graph order.
        shapes: of the constants, by role.
        opset: the version of ONNX's operators that holds.
        dims: shape of the tensor that comes from outside, as for ``Operator``.
        convs: the geometry of each Conv among the nodes, by role.
    """

    conv: Conv
    nodes: Mapping[str, Operator]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int
    dims: tuple[int | str | None, ...] | None = None
    convs: Mapping[str, Conv] = field(default_factory=dict)


LEAST_SQUARES = "least-squares"
"""What ``BlockMode.fits`` says where ``onnxsep.calibration.blocks`` solves for the last Convs; any other word: the mode
fits by itself."""


class BlockMode(Adjustable, ABC):
    """How a pattern of nodes becomes several layers.

    The engine calls ``accepts`` for every match of the pattern that holds a convolution with constant weights as its
    anchor; then ``layers``, and ``weights`` for the values of all their tensors.
    """

    name: ClassVar[str]
    """What the user writes after ``--mode``."""
    summary: ClassVar[str]
    """One line for ``--help`` and for the list of modes."""
    pattern: Pattern
    """What it looks for: one tensor comes from outside, one goes out. Settings may change it (``with_settings``)."""
    anchor: ClassVar[str]
    """The role in the pattern of the convolution that gives the match its name, and its type to new weights."""
    exact: ClassVar[bool]
    """Whether what it makes computes the same as what was there, whatever the weights."""
    linear_layers: ClassVar[bool] = False
    """Whether Gemm and MatMul nodes are anchors too: a Conv without spatial dimensions, kernel_shape ()."""
    finished: ClassVar[bool] = True
    """Whether what it makes is left alone by Conv modes later on, as what they make themselves is, unless
    ``--recurse`` is given. Not so where a Conv only takes the place of a Conv."""

    appends: ClassVar[bool] = False
    """Whether what was found stays, and the layers come behind it: ``INPUT`` is then what it computes."""
    saves: ClassVar[bool] = False
    """Whether it is there to save, so that what has no fewer parameters, or more MACs, needs ``--force``."""
    fits: ClassVar[str] = ""
    """How its weights are fitted to calibration data, in a word for reports ("ridge"); "": they are not."""
    untrained: ClassVar[str] = ""
    """What is told where nothing was fitted: how the new weights start, and what they need."""

    tries: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Settings beside its defaults that a plan chooses among, where it is a candidate there."""

    def accepts(self, block: Block) -> str | None:
        """None if the mode can replace what was found; else the reason why not, in words for the user."""
        return None

    def why_not(self, refusal: Refusal | None) -> str:
        """Why the pattern is not there at a convolution: ``refusal`` is what comes close, if anything does."""
        return refusal.reason if refusal is not None else f"no {self.pattern.name} here"

    @abstractmethod
    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The replacement: the first layers read ``INPUT``, the last one computes the output."""

    @abstractmethod
    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The values of all tensors of ``layers(block)``: layer by layer, in the order and shapes of ``Layer.tensors``.

        Args:
            block: what was found.
            values: the constants by role, float64 and finite, in their stored shapes.

        Raises:
            FactorizationError: with these values it cannot be done; the block is then left alone.
        """

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """Tensors of ``layers`` that stay the source's own: (layer, name in it) -> role of the constant.

        ``weights`` gives values for the others alone.
        """
        return {}

    def observe(self, block: Block, inputs: Array) -> Array:
        """What a fit has to know of the block's inputs [samples, ...]: rows [samples, features].

        Only where ``fits``, as the next two.
        """
        raise NotImplementedError(f"mode {self.name} fits nothing")

    def fit(self, block: Block, rows: Array, targets: Array) -> Sequence[Array]:
        """As ``weights``, fitted to data: rows of ``observe`` and the outputs [samples, ...] of the old block."""
        raise NotImplementedError(f"mode {self.name} fits nothing")

    def predict(self, block: Block, tensors: Sequence[Array], rows: Array) -> Array:
        """What the layers give with these tensors, for rows of ``observe``."""
        raise NotImplementedError(f"mode {self.name} fits nothing")
