"""Quantised operators of ONNX Runtime's own, as the standard ones whose outputs have the same sizes."""

from collections.abc import Sequence

import onnx

from onnxsep.graph.scopes import scopes

_RUNTIME_DOMAIN = "com.microsoft"
# ONNX's shape inference does not know them: the standard operator whose output has the same shape, and the inputs that
# decide it (the others are scales and zero points).
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


def standardise(light: onnx.ModelProto) -> None:
    """Change these nodes of a skeleton, which is only counted, in place into standard ones of the same sizes."""
    for scope in scopes(light):
        for node in scope.body.node:
            channels_last = any(entry.name == "channels_last" and entry.i for entry in node.attribute)
            if node.domain != _RUNTIME_DOMAIN or channels_last:
                continue
            if node.op_type == "QLinearConcat":  # scale and zero point of the result, then three inputs for each part
                _become(node, "Concat", range(2, len(node.input), 3))
            elif node.op_type in _SAME_SHAPE:
                _become(node, *_SAME_SHAPE[node.op_type])


def _become(node: onnx.NodeProto, op_type: str, inputs: Sequence[int]) -> None:
    kept = [node.input[place] for place in inputs if place < len(node.input)]
    node.op_type, node.domain = op_type, ""
    del node.input[:]
    node.input.extend(kept)
