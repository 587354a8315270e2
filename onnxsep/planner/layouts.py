"""Which tensors ONNX Runtime keeps in blocks of channels (NCHWc) on a CPU.

A Conv is faster on such tensors, and where one meets a node that does not know them, the runtime copies it to the plain
layout, and back again. A layer on its own would be timed with copies that it does not cost in its model, or without
those that it does. The rules are those of the runtime's ``nchwc_transformer.cc``; where they are not met exactly (a
processor with other blocks, another provider) a layer is timed among a few more or fewer copies, and the form that
takes its place among the same.
"""

from collections.abc import Set as AbstractSet

import onnx

from onnxsep.graph.index import Index
from onnxsep.graph.scopes import is_standard
from onnxsep.graph.shapes import KnownShapes

_BLOCK = 8  # channels, at least
_ALIGNED = 4  # input channels come in multiples of it
_ELEMENTWISE = {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "BatchNormalization"}
_GONE = {"Identity", "Dropout"}  # the runtime takes them out
_POOLS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
_SUMS = {"Add", "Sum", "Mul"}
_IMAGE = 4  # dimensions of a batch of images


def blocked_tensors(index: Index, shapes: KnownShapes) -> AbstractSet[str]:
    """The tensors of the main graph that are held in blocks of channels.

    Args:
        index: of the model; its nodes stand in topological order.
        shapes: of its tensors.
    """
    found: set[str] = set()
    inputs = {value.name for value in index.model.graph.input}
    for node in index.nodes[0]:
        if is_standard(node) and node.output and _is_blocked(node, index, shapes, found, inputs):
            found.add(node.output[0])
    return found


def _is_blocked(
    node: onnx.NodeProto, index: Index, shapes: KnownShapes, found: AbstractSet[str], inputs: AbstractSet[str]
) -> bool:
    kind, given = node.op_type, [name for name in node.input if name]
    if kind == "Conv":
        return _is_blocked_conv(node, index, shapes, inputs)
    if kind in _GONE | _ELEMENTWISE:
        return given[0] in found
    if kind == "Clip":  # on its own the runtime does not know it in blocks, fused with a Conv it does
        maker = index.maker(given[0])
        return given[0] in found and maker is not None and maker.op_type in ("Conv", "BatchNormalization")
    if kind in _SUMS:
        alike = len({shapes.of(0, name) for name in given}) == 1
        return alike and all(name in found for name in given)
    if kind == "Concat":
        return all(name in found and _channels(name, shapes) % _BLOCK == 0 for name in given)
    return kind in _POOLS and len(node.output) == 1 and _channels(given[0], shapes) % _BLOCK == 0


def _is_blocked_conv(node: onnx.NodeProto, index: Index, shapes: KnownShapes, inputs: AbstractSet[str]) -> bool:
    weight = shapes.of(0, node.input[1]) or ()
    tensor = index.tensor(node.input[1])
    sizes = [size for size in weight if isinstance(size, int)]
    is_float = tensor is None or tensor.data_type == onnx.TensorProto.FLOAT
    if len(weight) != _IMAGE or len(sizes) != _IMAGE or node.input[1] in inputs or not is_float:
        return False
    if not index.is_constant(node.input[1]):
        return False
    place = index.place(node.output[0])
    group = 1 if place is None else index.attribute(place, "group", 1)
    out_channels, in_channels = sizes[:2]
    if group == 1:
        return in_channels < _BLOCK or in_channels % _ALIGNED == 0
    depthwise = in_channels == 1 and out_channels == group
    return depthwise or (in_channels % _BLOCK == 0 and out_channels // group % _BLOCK == 0)


def _channels(name: str, shapes: KnownShapes) -> int:
    """Channels of a batch of images; 1 where they are not known, or it is something else."""
    shape = shapes.of(0, name) or ()
    return shape[1] if len(shape) == _IMAGE and isinstance(shape[1], int) else 1
