"""Small models, one for each thing that a rewrite must handle; their rewritten structures are the reference graphs.

All shapes are asymmetric, so that swapped axes show. Weights come from a seed; only their types are in the references.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FOLDER = Path(__file__).parent
_FLOAT = onnx.TensorProto.FLOAT


class Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, name: str, shape: Sequence[int]) -> str:
        values = self._rng.standard_normal(tuple(shape)) / np.sqrt(np.prod(shape[1:]))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, source: str, name: str, shape: Sequence[int], *, bias: bool = True, weight: str = "", **attributes: Any
    ) -> str:
        inputs = [source, weight or self.weight(f"{name}.weight", shape)]
        if bias:
            inputs.append(self.weight(f"{name}.bias", (shape[0],)))
        self.nodes.append(helper.make_node("Conv", inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def model(self, shape: Sequence[int | str], output: str, *, ir_version: int = 8, **extra: Any) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("x", _FLOAT, list(shape))]
        if ir_version < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.weights]
        outputs = [helper.make_tensor_value_info(output, _FLOAT, [None] * len(shape))]
        graph = helper.make_graph(self.nodes, "case", inputs, outputs, self.weights)
        extra.setdefault("opset_imports", [helper.make_opsetid("", 17)])
        return helper.make_model(graph, ir_version=ir_version, **extra)


def plain() -> onnx.ModelProto:
    """A first Conv, one with every attribute, a 1 x 1 Conv, a free batch dimension."""
    b = Builder()
    x = b.node("Relu", [b.conv("x", "stem", (6, 3, 3, 3), pads=[1] * 4)], "relu")
    x = b.conv(x, "body", (8, 6, 3, 5), strides=[2, 1], pads=[1, 2, 0, 3], dilations=[1, 2])
    return b.model(["batch", 3, 11, 17], b.conv(x, "head", (4, 8, 1, 1), bias=False))


def residual() -> onnx.ModelProto:
    """Two Convs of a block share one weight; the sum is the output of the graph."""
    b = Builder()
    x = b.conv("x", "stem", (8, 3, 1, 1))
    y = b.conv(x, "one", (8, 8, 3, 3), pads=[1] * 4)
    z = b.conv(y, "two", (8, 8, 3, 3), pads=[2] * 4, dilations=[2, 2], weight="one.weight")
    return b.model([1, 3, 9, 7], b.node("Add", [x, z], "add"))


def same_padding() -> onnx.ModelProto:
    """auto_pad, a grouped Conv, no kernel_shape."""
    b = Builder()
    x = b.conv("x", "stem", (8, 4, 1, 1))
    x = b.conv(x, "lower", (12, 8, 5, 4), strides=[2, 3], auto_pad="SAME_LOWER")
    return b.model([2, 4, 13, 19], b.conv(x, "grouped", (12, 4, 3, 3), group=3, auto_pad="VALID"))


def one_dimension() -> onnx.ModelProto:
    """Conv over time."""
    b = Builder()
    x = b.conv("x", "stem", (7, 2, 1))
    return b.model([1, 2, 31], b.conv(x, "body", (9, 7, 5), strides=[2], pads=[3, 1]))


def three_dimensions() -> onnx.ModelProto:
    """Conv over a volume: spatial has three factors and two ranks."""
    b = Builder()
    x = b.conv("x", "stem", (5, 1, 1, 1, 1))
    x = b.conv(x, "body", (7, 5, 3, 3, 3), pads=[1, 1, 1, 1, 1, 1], dilations=[1, 1, 1])
    return b.model([1, 1, 8, 9, 10], b.conv(x, "flat", (6, 7, 1, 3, 5), strides=[2, 1, 1]))


def old_inputs() -> onnx.ModelProto:
    """IR 3: every initialiser is also a graph input."""
    b = Builder()
    x = b.conv("x", "stem", (6, 3, 1, 1))
    return b.model(
        [1, 3, 10, 8],
        b.conv(x, "body", (6, 6, 3, 3), pads=[1] * 4),
        ir_version=3,
        opset_imports=[helper.make_opsetid("", 8)],
    )


def branches() -> onnx.ModelProto:
    """Convs inside If: one weight from the outer graph, one in a Constant node."""
    b = Builder()
    x = b.conv("x", "stem", (6, 3, 1, 1))
    outer = b.weight("outer.weight", (8, 6, 3, 3))
    then = Builder()
    then.conv(x, "then_conv", (8, 6, 3, 3), weight=outer, bias=False, pads=[1] * 4)
    other = Builder()
    value = numpy_helper.from_array(np.ones((8, 6, 3, 3), np.float32) / 54, "value")
    other.nodes.append(helper.make_node("Constant", [], ["inner.weight"], name="inner", value=value))
    other.conv(x, "else_conv", (8, 6, 3, 3), weight="inner.weight", bias=False, pads=[1] * 4)

    def graph(builder: Builder, output: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(output, _FLOAT, [None] * 4)
        return helper.make_graph(builder.nodes, output, [], [result])

    condition = numpy_helper.from_array(np.array(True), "condition")
    b.weights.append(condition)
    y = b.node(
        "If",
        ["condition"],
        "if",
        then_branch=graph(then, "then_conv_out"),
        else_branch=graph(other, "else_conv_out"),
    )
    return b.model([1, 3, 9, 12], y)


def function() -> onnx.ModelProto:
    """A model-local function that is called twice, its weight in a Constant node of its body."""
    b = Builder()
    value = numpy_helper.from_array(
        np.random.default_rng(1).standard_normal((6, 6, 3, 3)).astype(np.float32) / 7, "value"
    )
    body = [
        helper.make_node("Constant", [], ["w"], name="weight", value=value),
        helper.make_node("Conv", ["a", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
    ]
    local = helper.make_function("local", "block", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    x = b.conv("x", "stem", (6, 3, 1, 1))
    x = b.node("block", [x], "first_block", domain="local")
    y = b.node("block", [x], "second_block", domain="local")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return b.model([1, 3, 10, 7], y, opset_imports=opsets, functions=[local])


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        plain,
        residual,
        same_padding,
        one_dimension,
        three_dimensions,
        old_inputs,
        branches,
        function,
    )
}
