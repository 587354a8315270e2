"""MACs of a model on the data that it is evaluated on."""

from collections.abc import Mapping, Sequence

import onnx

from onnxsep.graph.counting import Operations, count_macs
from onnxsep.graph.scopes import scopes
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model

_RUNTIME_DOMAIN = "com.microsoft"
# Quantised operators of ONNX Runtime's own, which ONNX's shape inference does not know: the standard operator whose
# output has the same shape, and the inputs that decide it (the others are scales and zero points).
_SAME_SHAPE = {
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
}


def count_work(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Operations:
    """MACs for inputs of these shapes, by name; also behind quantised operators of ONNX Runtime."""
    light = skeleton(model)
    for scope in scopes(light):
        for node in scope.body.node:
            channels_last = any(entry.name == "channels_last" and entry.i for entry in node.attribute)
            if node.domain == _RUNTIME_DOMAIN and not channels_last:
                _standardise(node)
    return count_macs(infer_shapes(light, shapes))


def _standardise(node: onnx.NodeProto) -> None:
    """Change a node of the light copy, which is only counted, into a standard one with an output of the same shape."""
    if node.op_type == "QLinearConcat":  # scale and zero point of the result, then three inputs for each part
        _become(node, "Concat", range(2, len(node.input), 3))
    elif node.op_type in _SAME_SHAPE:
        _become(node, *_SAME_SHAPE[node.op_type])


def _become(node: onnx.NodeProto, op_type: str, inputs: Sequence[int]) -> None:
    kept = [node.input[place] for place in inputs if place < len(node.input)]
    node.op_type, node.domain = op_type, ""
    del node.input[:]
    node.input.extend(kept)
