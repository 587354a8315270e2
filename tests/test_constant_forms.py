"""Constants that a node holds as numbers (value_floats and the like) are constants as those that are tensors."""

from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.model.io import load
from onnxsep.running.feeds import make_feeds
from onnxsep.running.runtime import Runner, RuntimeOptions

ONE = RuntimeOptions(threads=1)
RNG = np.random.default_rng(3)
WEIGHTS = {
    name: (RNG.standard_normal(shape) / 5).astype(np.float32)
    for name, shape in {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "wd": (4, 8)}.items()
}
BIAS = RNG.standard_normal(8).astype(np.float32)
X = RNG.standard_normal((16, 3, 6, 6)).astype(np.float32)


def network(form: str) -> onnx.ModelProto:
    """Two Convs with the bias ``b`` and a scaling by 2; their Constants hold tensors, or numbers."""
    held: dict[str, Any] = {"value": numpy_helper.from_array(BIAS)} if form == "tensor" else {"value_floats": BIAS}
    two = {"value": numpy_helper.from_array(np.float32(2))} if form == "tensor" else {"value_float": 2.0}
    nodes = [
        helper.make_node("Constant", [], ["b1"], name="bias1", **held),
        helper.make_node("Constant", [], ["b2"], name="bias2", **held),
        helper.make_node("Constant", [], ["two"], name="two", **two),
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Mul", ["r1", "two"], ["m1"]),
        helper.make_node("Conv", ["m1", "w2", "b2"], ["c2"], name="two_conv", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "wd"], ["y"], name="head", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [value("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(model: onnx.ModelProto) -> np.ndarray:
    return np.asarray(Runner(load(model), ONE)({"x": X})["y"])


def test_channels_are_taken_out_with_such_a_bias() -> None:
    one, two = (onnxsep.prune(network(form), sparsity=0.5, channels=True) for form in ("tensor", "numbers"))
    assert two.report.totals == one.report.totals
    assert two.report.totals.weights_after < two.report.totals.weights_before
    np.testing.assert_array_equal(outputs(two.proto), outputs(one.proto))


@pytest.mark.parametrize("mode", ["depthwise", "spatial", "channel"])
def test_rewriting_and_fitting(mode: str) -> None:
    options: dict[str, Any] = {"mode": mode, "force": True, "include_first": True, "data": X, "runtime": ONE}
    one, two = (onnxsep.rewrite(network(form), **options) for form in ("tensor", "numbers"))
    assert [row.status for row in two.report.convs] == ["replaced"] * 2
    np.testing.assert_allclose(outputs(two.proto), outputs(one.proto), rtol=1e-5, atol=1e-6)


@needs_torch
def test_such_a_bias_is_trained() -> None:
    student = network("numbers")
    for node in student.graph.node:
        if node.name == "bias2":
            node.attribute[0].CopyFrom(helper.make_attribute("value_floats", BIAS + 0.5))
    result = onnxsep.finetune(student, data=X, teacher=network("tensor"), epochs=20, rate=0.02, batch=8).model.proto
    wanted = outputs(network("tensor"))
    before, after = (float(np.linalg.norm(outputs(model) - wanted)) for model in (student, result))
    assert after < 0.5 * before


def test_counting() -> None:
    """A vector is a weight and a scalar a setting, in either form."""
    one, two = (onnxsep.inspect(network(form)).totals for form in ("tensor", "numbers"))
    assert two == one
    assert one.parameters == 2 * 8 + sum(array.size for array in WEIGHTS.values())


def test_an_input_that_is_compared_with_such_a_constant() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Constant", [], ["rate"], value_int=16000),
        helper.make_node("Equal", ["sr", "rate"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("sr", TensorProto.INT64, [])], [value("y", TensorProto.BOOL, [])])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert int(make_feeds(model).arrays["sr"]) == 16000
