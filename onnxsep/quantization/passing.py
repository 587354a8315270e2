"""Pairs of layers with nothing between them but what keeps a positive factor of each channel.

f(s x) = s f(x) for s > 0 holds for LeakyRelu, PRelu with whatever slopes, pools, means and sums over positions, and for
interpolation; none of them mixes channels. It does not hold for a Clip with an upper bound, such as ReLU6.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.graph.index import Index
from onnxsep.graph.scopes import is_standard
from onnxsep.quantization.part_labels import attribute

_LAYERS = ("Conv", "Gemm", "MatMul")
_ELEMENTWISE = frozenset({"Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "PRelu", "Relu"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"})
_REDUCTIONS = frozenset({"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})

Pair = tuple[onnx.NodeProto, onnx.NodeProto]


def inputs_first(node: onnx.NodeProto) -> bool:
    """Whether the weight is stored as [in_channels, out_channels], and not the other way round as that of a Conv."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))


def find_pairs(proto: onnx.ModelProto) -> list[Pair]:
    """Convs, Gemms and MatMuls of the main graph that follow one another in this way.

    What is between has one reader, and is no output; the weights and biases of both are float32 initialisers and theirs
    alone.
    """
    return _Search(proto).run()


class _Search:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._index = Index(proto)
        entries = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        self._shapes = {entry.name: _dims(entry) for entry in entries}

    def run(self) -> list[Pair]:
        return [
            (first, second)
            for first in self._graph.node
            if self._usable(first) and (second := self._next_layer(first)) is not None
        ]

    def _usable(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _LAYERS or not is_standard(node):
            return False
        if not all(self._is_own(name) for name in node.input[1:] if name):
            return False
        weight = self._tensors[node.input[1]]
        if node.op_type == "Conv":
            return True
        channels = weight.dims[-1] if inputs_first(node) else weight.dims[0]
        bias = self._tensors[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        return (
            len(weight.dims) == 2
            and not attribute(node, "transA", 0)
            and (bias is None or list(bias.dims) == [channels])
        )

    def _is_own(self, name: str) -> bool:
        tensor = self._tensors.get(name)
        return tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(self._index.uses(name)) == 1

    def _next_layer(self, first: onnx.NodeProto) -> onnx.NodeProto | None:
        weight = self._tensors[first.input[1]].dims
        channels = weight[-1] if inputs_first(first) else weight[0]
        rank = len(weight) if first.op_type == "Conv" else 0  # 0: channels are the last axis
        name, node = first.output[0], first
        while len(uses := self._index.uses(name)) == 1 and uses[0].place is not None and uses[0].scope == 0:
            node = self._index.node(uses[0].place)
            if node.input[0] != name or not is_standard(node):
                return None
            if node.op_type in _LAYERS:
                return node if self._fits(node, rank, channels) else None
            found = self._behind(node, rank, channels)
            if found is None:
                return None
            rank, name = found, node.output[0]
        return None

    def _fits(self, second: onnx.NodeProto, rank: int, channels: int) -> bool:
        if not self._usable(second):
            return False
        weight = self._tensors[second.input[1]].dims
        if second.op_type == "Conv":
            return rank == len(weight) and channels == weight[1] * attribute(second, "group", 1)
        inputs = weight[0] if inputs_first(second) else weight[1]
        return rank == 0 and inputs % channels == 0

    def _behind(self, node: onnx.NodeProto, rank: int, channels: int) -> int | None:
        """The rank of a node's output, if it keeps a factor of each channel: [batch, channels, ...]; 0: flat."""
        kind = node.op_type
        if kind in _ELEMENTWISE or (kind == "Clip" and self._is_relu(node)):
            return rank
        if kind == "Mul":
            return rank if self._is_positive(node) else None
        if not rank:
            return None  # what moves positions could move channels
        kept = (
            kind in _POOLS
            or (kind == "Pad" and self._pads_positions(node, rank))
            or (kind in ("Resize", "Upsample") and self._resizes_positions(node))
        )
        if kept:
            return rank
        if kind in _REDUCTIONS:
            return self._reduced(node, rank)
        return 0 if self._flattens(node, rank, channels) else None

    def _constant(self, node: onnx.NodeProto, place: int) -> np.ndarray | None:
        name = node.input[place] if len(node.input) > place else ""
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def _is_relu(self, node: onnx.NodeProto) -> bool:
        low = next((found.f for found in node.attribute if found.name == "min"), None)
        if low is not None or any(found.name == "max" for found in node.attribute):  # opset 6
            return low == 0 and not any(found.name == "max" and found.f < 3e38 for found in node.attribute)
        bound = self._constant(node, 1)
        return bound is not None and bound.size == 1 and bound.item() == 0 and not any(node.input[2:])

    def _is_positive(self, node: onnx.NodeProto) -> bool:
        factor = self._constant(node, 1)
        return factor is not None and factor.size == 1 and factor.ndim <= 1 and factor.item() > 0

    def _ints(self, node: onnx.NodeProto, name: str, place: int) -> list[int] | None:
        """A list of integers, an attribute in old opsets and an input in new ones; None where it is not known."""
        given = next((list(found.ints) for found in node.attribute if found.name == name), None)
        if given is None and (values := self._constant(node, place)) is not None:
            given = [int(value) for value in values.ravel()]
        return given

    def _pads_positions(self, node: onnx.NodeProto, rank: int) -> bool:
        mode = next((found.s for found in node.attribute if found.name == "mode"), b"constant")
        value = next((found.f for found in node.attribute if found.name == "value"), 0.0)
        if len(node.input) > 2 and node.input[2]:
            given = self._constant(node, 2)
            value = float(given.item()) if given is not None and given.size == 1 else np.nan
        pads = self._ints(node, "pads", 1)
        if pads is None or (mode == b"constant" and value != 0):
            return False
        axes = list(range(rank))
        if len(node.input) > 3 and node.input[3]:
            given = self._constant(node, 3)
            if given is None:
                return False
            axes = [int(axis) % rank for axis in given.ravel()]
        begin, end = pads[: len(axes)], pads[len(axes) :]
        return len(pads) == 2 * len(axes) and not any(
            axis < 2 and (low or high) for axis, low, high in zip(axes, begin, end, strict=True)
        )

    def _resizes_positions(self, node: onnx.NodeProto) -> bool:
        texts = {found.name: found.s for found in node.attribute if found.s}
        outside = next((found.f for found in node.attribute if found.name == "extrapolation_value"), 0.0)
        if texts.get("coordinate_transformation_mode") == b"tf_crop_and_resize" and outside:
            return False
        before, after = self._shapes.get(node.input[0], ()), self._shapes.get(node.output[0], ())
        return len(before) == len(after) > 2 and before[1] == after[1] != 0

    def _reduced(self, node: onnx.NodeProto, rank: int) -> int | None:
        axes = self._ints(node, "axes", 1)
        if not axes or any(axis % rank < 2 for axis in axes):
            return None
        if attribute(node, "keepdims", 1):
            return rank
        left = rank - len(set(axes))
        return left if left > 2 else 0

    def _flattens(self, node: onnx.NodeProto, rank: int, channels: int) -> bool:
        """[batch, channels, ...] becomes [batch, features], the positions of each channel in a row."""
        kind = node.op_type
        if kind == "Flatten":
            return attribute(node, "axis", 1) in (1, 1 - rank)
        if kind == "Squeeze":
            axes = self._ints(node, "axes", 1)
            return axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))
        if kind != "Reshape":
            return False
        shape = self._ints(node, "shape", 1)
        if shape is None or len(shape) != 2:
            return False
        if shape[0] == 0 and shape[1] == -1 and not attribute(node, "allowzero", 0):
            return True
        before = self._shapes.get(node.input[0], ())
        features = int(np.prod(before[1:])) if len(before) == rank else 0
        return features > 0 and (shape[1] == features or (shape[1] == -1 and shape[0] == before[0] > 0))


def _dims(entry: onnx.ValueInfoProto) -> Sequence[int]:
    return [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
