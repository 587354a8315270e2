"""What is matched: nodes that a mode may replace together, or the reason why they are left alone.

A convolution is the smallest match (``ConvSite``). A larger one (``BlockMatch``) grows from a convolution, its anchor,
which gives it its name, its geometry and its type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onnxsep.graph.places import Constant, Place
from onnxsep.layers.conv import Conv
from onnxsep.modes.block import Block

OpType = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
"""What a mode may replace; all but the first only where it asks for them (``Mode.transposed``, ``linear_layers``)."""


class Normalization(NamedTuple):
    """What a BatchNormalization multiplies its input by: scale / sqrt(variance + epsilon)."""

    scale: Constant
    variance: Constant
    epsilon: float


class InputMoments(NamedTuple):
    """Mean and deviation of what a BatchNormalization gives: its shift and scale."""

    mean: Constant
    deviation: Constant


@dataclass(frozen=True)
class ConvSite:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weights that a mode may replace, and where it stands."""

    name: str  # the node's name, or its output's where it has none
    conv: Conv
    dtype: str  # of the weight: float32, float16, bfloat16, float64
    input_size: tuple[int, ...] | None  # spatial sizes of the input; None where the model does not tell
    batch: int | None  # first dimension of the input (Gemm, MatMul: all but the last multiplied); None: not told
    weight: Constant
    place: Place
    where: str  # the graph or function that holds the node, in words: "" for the main graph
    first: bool = False  # reached from a graph input without passing another Conv
    bias: Constant | None = None  # the bias, where it is a constant
    made_by: str = ""  # the mode of onnxsep that made this node, or ""
    stored: bool = True  # the weight is held by the file, not computed by an expression of constants
    pinned: tuple[str, ...] = ()  # what else uses the weight, so that it stays even when all its Convs are replaced
    op_type: OpType = "Conv"
    transposed: bool = False  # the stored weight is [in, out]: MatMul, ConvTranspose, and Gemm without transB
    one_size: bool = False  # its geometry holds for inputs of ``input_size`` alone
    rectified: bool = False  # what it reads is never negative, as behind a Relu
    smooth: bool = False  # what it reads is made of the image by first Convs alone
    input_moments: InputMoments | None = None  # the BatchNormalization that makes what it reads
    normalization: Normalization | None = None  # the BatchNormalization that alone reads its output

    @property
    def anchor(self) -> "ConvSite":
        """Itself."""
        return self

    @property
    def nodes(self) -> tuple[Place, ...]:
        """Its one node."""
        return (self.place,)

    @property
    def parameters(self) -> int:
        """Elements of the weight and the bias."""
        return self.conv.parameters

    @property
    def in_channels(self) -> int:
        """Channels of what it reads."""
        return self.conv.in_channels

    @property
    def macs(self) -> int | None:
        """For the batch of the model (1 where it is free); None where the input's size is not known."""
        return None if self.input_size is None else (self.batch or 1) * self.conv.macs(self.input_size)


@dataclass(frozen=True)
class BlockMatch:
    """Several nodes of one scope, with one input and one output, that a block mode may replace.

    Attributes:
        anchor: the convolution that it grew from.
        roles: where each of its nodes stands, in graph order, by the role that it plays.
        constants: its constant tensors, by role.
        block: what the mode sees of it.
        parameters: elements of all its constants that are weights.
        input: name of the tensor that comes from outside.
        macs: of all its nodes, for the batch of the model (1 where it is free); None where sizes are not known.
        company: its other nodes, in words.
        again: whether the mode itself has made its anchor, in an earlier run.
        mixed: whether its constants are floats of several types.
    """

    anchor: ConvSite
    roles: Mapping[str, Place]
    constants: Mapping[str, Constant]
    block: Block
    parameters: int
    input: str
    macs: int | None
    company: str
    again: bool = False
    mixed: bool = False

    @property
    def nodes(self) -> tuple[Place, ...]:
        """All of its nodes, in graph order."""
        return tuple(self.roles.values())

    @property
    def place(self) -> Place:
        """The last of its nodes, where the new ones stand.

        All that they read is computed before it, and all that reads their output stands behind it.
        """
        return max(self.roles.values())

    @property
    def name(self) -> str:
        """That of its anchor."""
        return self.anchor.name

    @property
    def op_type(self) -> OpType:
        """That of its anchor."""
        return self.anchor.op_type

    @property
    def conv(self) -> Conv:
        """The geometry of its anchor."""
        return self.anchor.conv

    @property
    def dtype(self) -> str:
        """That of its anchor's weight."""
        return self.anchor.dtype

    @property
    def where(self) -> str:
        """The graph or function that holds its nodes, in words."""
        return self.anchor.where

    @property
    def in_channels(self) -> int:
        """Channels of what it reads: those of its anchor, where the model does not tell."""
        dims = self.block.dims or ()
        found = dims[1] if len(dims) > 1 else None
        return found if isinstance(found, int) else self.anchor.conv.in_channels

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """Spatial sizes of what it reads."""
        sizes = (self.block.dims or ())[2:]
        known = tuple(size for size in sizes if isinstance(size, int))
        fits = len(sizes) == (self.anchor.conv.dims or len(sizes))  # a broken model may say another number of axes
        return known if self.block.dims and len(known) == len(sizes) and fits else self.anchor.input_size

    @property
    def output_size(self) -> tuple[int, ...] | None:
        """Spatial sizes of what it computes."""
        dims = list(self.block.nodes.values())[-1].dims
        known = tuple(size for size in (dims or ())[2:] if isinstance(size, int))
        return known if dims is not None and len(known) == len(dims) - 2 else None

    @property
    def batch(self) -> int | None:
        """The batch of what it reads."""
        return self.anchor.batch


Match = ConvSite | BlockMatch
"""What a mode may replace."""


@dataclass(frozen=True)
class Rejected:
    """A convolution that is left alone, and why."""

    name: str
    op_type: str
    where: str
    reason: str
    place: Place
    site: ConvSite | None = None  # the Conv's geometry, where it is known
