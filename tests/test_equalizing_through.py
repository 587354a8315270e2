"""Equalisation goes through whatever keeps a positive factor of each channel, and through nothing else."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxsep.model.io import Model
from onnxsep.quantization.equalizing import equalize
from onnxsep.running.runtime import Runner, RuntimeOptions

PLAIN = RuntimeOptions(threads=1, optimize=False)
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
CHANNELS = 4

Nodes = list[tuple[str, list[str], dict[str, Any]]]
"""Operators in a row: kind, further inputs, attributes."""


def network(between: Nodes, second: str, features: int, constants: dict[str, Any], opset: int = 17) -> onnx.ModelProto:
    """A Conv, what is between, and a second layer; the channels of the two are far from alike."""
    random = np.random.default_rng(0)
    unlike = np.array([100, 1, 0.03, 5]).reshape(-1, 1, 1, 1)
    shape = (5, CHANNELS, 1, 1) if second == "Conv" else (features, 5) if second == "MatMul" else (5, features)
    weights = {
        "w": random.standard_normal((CHANNELS, 3, 3, 3)) * unlike,
        "b": random.standard_normal(CHANNELS) * unlike.ravel(),
        "v": random.standard_normal(shape),
    }
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["t0"], "first", pads=[1] * 4)]
    for number, (kind, more, attributes) in enumerate(between):
        nodes.append(helper.make_node(kind, [f"t{number}", *more], [f"t{number + 1}"], f"n{number}", **attributes))
    attributes = {"transB": 1} if second == "Gemm" else {}
    nodes.append(helper.make_node(second, [f"t{len(between)}", "v"], ["y"], "second", **attributes))
    held = {name: value.astype(np.float32) for name, value in weights.items()}
    held |= {name: np.asarray(value) for name, value in constants.items()}
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
SLOPES = np.linspace(-0.5, 0.5, CHANNELS, dtype=np.float32).reshape(-1, 1, 1)
THROUGH: dict[str, tuple[Nodes, str, int, dict[str, Any]]] = {
    "leaky": ([("LeakyRelu", [], {"alpha": 0.1})], "Conv", 0, {}),
    "slopes of channels": ([("PRelu", ["k"], {})], "Conv", 0, {"k": SLOPES}),
    "max pool": ([("Relu", [], {}), ("MaxPool", [], POOL)], "Conv", 0, {}),
    "average pool": ([("AveragePool", [], {**POOL, "pads": [1] * 4, "count_include_pad": 1})], "Conv", 0, {}),
    "identities": ([("Dropout", [], {}), ("Identity", [], {})], "Conv", 0, {}),
    "zeros around": ([("Pad", ["k"], {})], "Conv", 0, {"k": np.array([0, 0, 1, 2, 0, 0, 1, 2])}),
    "edges around": ([("Pad", ["k"], {"mode": "edge"})], "Conv", 0, {"k": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "larger": (
        [("Resize", ["", "k"], {"mode": "linear"})],
        "Conv",
        0,
        {"k": np.array([1, 1, 2, 2], np.float32)},
    ),
    "clip from 0": ([("Clip", ["k"], {})], "Conv", 0, {"k": np.float32(0)}),
    "global pool": ([("GlobalAveragePool", [], {}), ("Flatten", [], {})], "Gemm", CHANNELS, {}),
    "mean": ([("Relu", [], {}), ("ReduceMean", [], {"axes": [-1, -2], "keepdims": 0})], "Gemm", CHANNELS, {}),
    "positions": ([("MaxPool", [], POOL), ("Flatten", [], {})], "Gemm", CHANNELS * 16, {}),
    "positions, reshaped": ([("Reshape", ["k"], {})], "MatMul", CHANNELS * 64, {"k": np.array([0, -1])}),
    "known positions": ([("Reshape", ["k"], {})], "Gemm", CHANNELS * 64, {"k": np.array([-1, CHANNELS * 64])}),
    "squeezed": ([("GlobalMaxPool", [], {}), ("Squeeze", ["k"], {})], "MatMul", CHANNELS, {"k": np.array([2, 3])}),
}
STOPS: dict[str, tuple[Nodes, str, int, dict[str, Any]]] = {
    "relu6": ([("Clip", ["k", "l"], {})], "Conv", 0, {"k": np.float32(0), "l": np.float32(6)}),
    "sigmoid": ([("Sigmoid", [], {})], "Conv", 0, {}),
    "ones around": ([("Pad", ["k", "l"], {})], "Conv", 0, {"k": np.array([0, 0, 1, 1] * 2), "l": np.float32(1)}),
    "mean of channels": ([("ReduceMean", [], {"axes": [1]}), ("Tile", ["k"], {})], "Conv", 0, {"k": [1, 4, 1, 1]}),
    "last axis": ([("Relu", [], {})], "MatMul", 8, {}),
    "turned": ([("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Flatten", [], {})], "Gemm", CHANNELS * 64, {}),
    "offset": ([("Add", ["k"], {})], "Conv", 0, {"k": np.float32(1)}),
    "batch and rows": ([("Reshape", ["k"], {})], "Gemm", CHANNELS * 8, {"k": np.array([-1, CHANNELS * 8])}),
}


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    return np.asarray(Runner(Model(proto), PLAIN)({"x": IMAGES})["y"])


@pytest.mark.parametrize("name", THROUGH)
def test_channels_become_alike_and_results_stay(name: str) -> None:
    proto = network(*THROUGH[name])
    expected = outputs(proto)
    assert equalize(proto) == 1
    np.testing.assert_allclose(outputs(proto), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    first = np.abs(weights["w"]).reshape(CHANNELS, -1).max(axis=1)
    second = weights["v"].T if "MatMul" in THROUGH[name] else weights["v"]
    np.testing.assert_allclose(np.abs(second.reshape(5, CHANNELS, -1)).max(axis=(0, 2)), first, rtol=1e-3)


@pytest.mark.parametrize("name", STOPS)
def test_nothing_else_is_passed(name: str) -> None:
    assert equalize(network(*STOPS[name])) == 0


@pytest.mark.parametrize("who", ["output", "reader", "nested graph"])
def test_what_is_read_elsewhere_too_is_left(who: str) -> None:
    proto = network([("LeakyRelu", [], {})], "Conv", 0, {})
    if who == "output":
        proto.graph.output.add(name="t1").type.tensor_type.elem_type = TensorProto.FLOAT
    elif who == "reader":
        proto.graph.node.add(op_type="Abs", input=["t1"], output=["z"])
    else:
        out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        body = helper.make_graph([helper.make_node("Abs", ["t1"], ["z"])], "branch", [], [out])
        proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        branches: dict[str, Any] = {"then_branch": body, "else_branch": body}
        proto.graph.node.append(helper.make_node("If", ["yes"], ["z1"], **branches))
    assert equalize(proto) == 0


def test_maps_at_an_old_opset() -> None:
    """Pads, axes and bounds are attributes there."""
    between: Nodes = [
        ("Clip", [], {"min": 0.0}),
        ("Pad", [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 0.0}),
        ("Upsample", ["k"], {"mode": "nearest"}),
    ]
    proto = network(between, "Conv", 0, {"k": np.array([1, 1, 2, 2], np.float32)}, opset=9)
    expected = outputs(proto)
    assert equalize(proto) == 1
    np.testing.assert_allclose(outputs(proto), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
