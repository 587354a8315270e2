"""What is matched: a convolution that a mode may replace, or the reason why it is left alone."""

from dataclasses import dataclass
from typing import Literal

from onnxsep.graph.places import Constant, Place
from onnxsep.layers.conv import Conv

OpType = Literal["Conv", "Gemm", "MatMul"]
"""What a mode may replace; the last two only where it asks for them (``Mode.linear_layers``)."""


@dataclass(frozen=True)
class ConvSite:
    """A Conv, Gemm or MatMul with constant weights that a mode may replace, and where it stands."""

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
    transposed: bool = False  # the stored weight is [in, out]: MatMul, and Gemm without transB


@dataclass(frozen=True)
class Rejected:
    """A convolution that is left alone, and why."""

    name: str
    op_type: str
    where: str
    reason: str
    place: Place
    site: ConvSite | None = None  # the Conv's geometry, where it is known
