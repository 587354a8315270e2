"""Counting MACs and FLOPs of a whole model, from shapes alone."""

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import onnx

from onnxsep.graph.geometry import conv_geometry
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, constant_value, is_standard, scopes
from onnxsep.graph.shapes import KnownShapes, Shape

Key = TypeVar("Key", bound=Hashable)


# Where operators on quantised weights take weight and zero point, and the channels' axis of the weight.
QUANTIZED_OPERANDS = {
    "DequantizeLinear": (0, 2, 1),
    "QLinearConv": (3, 5, 0),
    "ConvInteger": (1, 3, 0),
    "QLinearMatMul": (3, 5, -1),
    "MatMulInteger": (1, 3, -1),
    "QGemm": (3, 5, -1),
}


# What they multiply as.
_FLOAT_FORMS = {
    "QLinearConv": "Conv",
    "ConvInteger": "Conv",
    "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul",
    "QGemm": "Gemm",
}


_MULTIPLY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", *_FLOAT_FORMS})


_POOLS = frozenset({"GlobalAveragePool", "ReduceMean"})


@dataclass(frozen=True)
class Operations:
    """A count of operations, and how many nodes could not be counted because their sizes are not known."""

    total: int
    unknown: int


def count_macs(light: onnx.ModelProto, idle: Collection[int] = ()) -> Operations:
    """Multiply-accumulates of every Conv, ConvTranspose, Gemm and MatMul, padding counted like data.

    A free first dimension (the batch) counts as 1. Every function body counts once, every branch of an If too.

    Args:
        light: a skeleton with inferred shapes.
        idle: scopes that do not run, of which what is not known is left out.
    """
    return _sum(count or 0 if place[0] in idle else count for place, count in node_macs(light).items())


def node_macs(light: onnx.ModelProto) -> dict[Place, int | None]:
    """The same for each node of these types, by its place: None where its sizes are not known."""
    return _count(light, _MULTIPLY, lambda node, shape, _: _node_macs(node, shape))


def compare_macs(before: Mapping[Key, int | None], after: Mapping[Key, int | None]) -> tuple[int, int, int]:
    """Two counts of the same nodes: only those count in either that are known in both.

    Args:
        before: MACs of each node, by whatever names it in both; None where they are not known.
        after: the same; a node that is not there any more has none.

    Returns:
        The sums, before and after, and how many nodes are not in them.
    """
    unknown = {key for counts in (before, after) for key, count in counts.items() if count is None}
    first, second = (sum(count or 0 for key, count in one.items() if key not in unknown) for one in (before, after))
    return first, second, len(unknown)


def count_flops_paper004(light: onnx.ModelProto) -> Operations:
    """What paper 004 calls FLOPs: MACs, twice the outputs of each BatchNormalization, the inputs of global pooling."""

    def operations(node: onnx.NodeProto, shape: "_Sizes", integers: "_Integers") -> int | None:
        if node.op_type == "BatchNormalization":
            output = shape(node.output[0])
            return None if output is None else 2 * math.prod(output)
        if node.op_type == "GlobalAveragePool" or _is_global_mean(node, integers):
            pooled = shape(node.input[0])
            return None if pooled is None else math.prod(pooled)
        return _node_macs(node, shape)

    return _sum(_count(light, _MULTIPLY | _POOLS | {"BatchNormalization"}, operations).values())


def _sum(counts: Iterable[int | None]) -> Operations:
    counted = list(counts)
    return Operations(sum(count or 0 for count in counted), counted.count(None))


_Sizes = Callable[[str], Sequence[int] | None]


_Integers = Callable[[str], Sequence[int] | None]


def _count(
    light: onnx.ModelProto,
    op_types: Collection[str],
    operations: Callable[[onnx.NodeProto, _Sizes, _Integers], int | None],
) -> dict[Place, int | None]:
    """``operations`` of every node of these types, given sizes and small integer constants by name."""
    counts: dict[Place, int | None] = {}
    all_scopes = scopes(light)
    shapes = KnownShapes(all_scopes)
    integers = _IntegerConstants(all_scopes)
    for scope in all_scopes:
        size = lambda name, scope=scope: sizes_of_one(shapes.of(scope.index, name))  # noqa: E731
        values = lambda name, scope=scope: integers.of(scope.index, name)  # noqa: E731
        for index, node in enumerate(scope.body.node):
            if node.op_type not in op_types:
                continue
            if is_standard(node) or node.op_type == "QGemm":  # the only one of these in ONNX Runtime's own domain
                counts[scope.index, index] = operations(node, size, values)
    return counts


class _IntegerConstants:
    """One-dimensional integer constants, such as axes, by the scope that reads them and by name."""

    def __init__(self, all_scopes: Sequence[Scope]) -> None:
        self._scopes = all_scopes
        self._found: dict[int, dict[str, Sequence[int]]] = {}

    def of(self, scope: int, name: str) -> Sequence[int] | None:
        owner: int | None = scope
        while owner is not None:
            if owner not in self._found:
                self._found[owner] = dict(_small_integers(self._scopes[owner]))
            if name in self._found[owner]:
                return self._found[owner][name]
            owner = self._scopes[owner].parent
        return None


def sizes_of_one(shape: Shape | None) -> Sequence[int] | None:
    """A shape in integers, a free first dimension counted as 1; None where another dimension is free."""
    if shape is None:
        return None
    sizes = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(shape)]
    return [size for size in sizes if isinstance(size, int)] if all(isinstance(size, int) for size in sizes) else None


def _node_macs(node: onnx.NodeProto, shape: _Sizes) -> int | None:
    """MACs of one node: 0 for operators without weights to multiply, None where sizes are not known."""
    form = _FLOAT_FORMS.get(node.op_type, node.op_type)
    if form not in _MULTIPLY:
        return 0
    weight = QUANTIZED_OPERANDS[node.op_type][0] if node.op_type in _FLOAT_FORMS else 1
    if len(node.input) <= weight or not node.output:
        return None
    left, right, output = shape(node.input[0]), shape(node.input[weight]), shape(node.output[0])
    if left is None or right is None or not _fit(form, left, right):
        return None
    if form == "Conv":
        conv = conv_geometry(node, tuple(right))
        return None if isinstance(conv, str) else left[0] * conv.macs(left[2:])
    if form == "ConvTranspose":  # every input element meets every tap of its group's kernels
        return math.prod(left) * math.prod(right[1:])
    if form == "Gemm":
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return left[-1 if transposed else 0] * math.prod(right)
    if len(right) == 2:  # every row of the left one meets every element of the right one, whatever the output's shape
        inner = left[-1] if len(left) > 1 else right[0]  # a dimension in front may be free, and counted as 1
        return math.prod(left[:-1]) * inner * right[1]
    return None if output is None else math.prod(output) * left[-1]


def _fit(form: str, left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether operands have the numbers of dimensions that an operator takes; a damaged model may say anything."""
    if form == "MatMul":
        return bool(left) and bool(right)
    return len(left) == len(right) == 2 if form == "Gemm" else len(left) == len(right) > 2


def _is_global_mean(node: onnx.NodeProto, integers: _Integers) -> bool:
    """A ReduceMean over the last two axes, which is how exporters write global average pooling."""
    if node.op_type != "ReduceMean":
        return False
    axes: Sequence[int] | None = next((entry.ints for entry in node.attribute if entry.name == "axes"), None)
    if axes is None and len(node.input) > 1:  # an input since opset 18
        axes = integers(node.input[1])
    return axes is not None and sorted(axes) in ([2, 3], [-2, -1])


def _small_integers(scope: Scope) -> Iterator[tuple[str, Sequence[int]]]:
    """Names and values of one-dimensional integer constants, such as axes."""
    tensors = [(tensor.name, tensor) for tensor in getattr(scope.body, "initializer", ())]
    held = ((node.output[0], constant_value(node)) for node in scope.body.node if node.op_type == "Constant")
    tensors += [(name, value) for name, value in held if value is not None]
    for name, tensor in tensors:
        stored = tensor.data_location != onnx.TensorProto.EXTERNAL
        if stored and tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) == 1:
            yield name, onnx.numpy_helper.to_array(tensor).tolist()
