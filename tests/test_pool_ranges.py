"""Average pools have scales of their own."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsep.quantization import quantize
from onnxsep.running.runtime import RuntimeOptions

ONE = RuntimeOptions(threads=1)


def network(kind: str, **attributes: Any) -> onnx.ModelProto:
    """Conv -> Relu -> pool -> Conv."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((8, 3, 3, 3)) / 5, "v": random.standard_normal((4, 8, 1, 1)) / 3}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node(kind, ["r"], ["p"], "pool", **attributes),
        helper.make_node("Conv", ["p", "v"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("format_", ["qdq", "qoperator"])
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("AveragePool", {"kernel_shape": [16, 16]}),
        ("AveragePool", {"kernel_shape": [8, 8], "strides": [4, 4], "pads": [2, 2, 2, 2], "count_include_pad": 1}),
        ("GlobalAveragePool", {}),
    ],
)
def test_a_mean_of_many_values_uses_all_levels(
    kind: str, attributes: dict[str, Any], format_: Any, activations: Any
) -> None:
    images = np.random.default_rng(1).standard_normal((40, 3, 16, 16)).astype(np.float32)
    options: dict[str, Any] = {"bias_correction": False, "equalize": False, "runtime": ONE}
    result = quantize(network(kind, **attributes), data=images, format=format_, activations=activations, **options)
    scales = {tensor.name: tensor for tensor in result.proto.graph.initializer}
    nodes = {node.name: node for node in result.proto.graph.node}
    if format_ == "qdq":
        readers = {node.input[0]: node for node in result.proto.graph.node if node.op_type == "QuantizeLinear"}
        before, after = (readers[name].input[1] for name in ("r", nodes["pool"].output[0]))
    else:
        before, after = nodes["pool"].input[1], nodes["pool"].input[3]
    # 64 values or more: their mean is spread by far less than they are.
    assert numpy_helper.to_array(scales[after]) < 0.5 * numpy_helper.to_array(scales[before])
    assert {node.status for node in result.report.nodes} <= {"quantized", "folded"}
    assert result.report.relative < 0.03
