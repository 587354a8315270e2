"""A model with a fixed batch: all samples calibrate, and the counts are those of the samples that are used."""

from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.data import open_data
from onnxsep.model.io import load

RNG = np.random.default_rng(0)


def network(batch: int | str) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    weights = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32) / 5, name)
        for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="two", pads=[1] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [batch, 3, 6, 6])],
        [value("y", TensorProto.FLOAT, [batch, 8, 6, 6])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_is_left_over_fills_a_batch() -> None:
    data = open_data(RNG.standard_normal((13, 3, 6, 6)).astype(np.float32), load(network(8)))
    assert list(data.batches()) == [list(range(8))]
    assert list(data.batches(fill=True)) == [list(range(8)), [8, 9, 10, 11, 12, 0, 1, 2]]
    assert list(data.batches([3, 4, 5], fill=True)) == [[3, 4, 5, 3, 4, 5, 3, 4]]
    free = open_data(RNG.standard_normal((13, 3, 6, 6)).astype(np.float32), load(network("N")))
    assert list(free.batches(batch=8, fill=True)) == [list(range(8)), list(range(8, 13))]


def largest_input(model: onnx.ModelProto) -> float:
    """The upper end of the range that the input is quantised to, or more than that."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (scale,) = (node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    return 255 * float(tensors[scale])


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_the_last_samples_count(method: Literal["minmax", "percentile"]) -> None:
    """The 13th sample is a hundred times as large as the others, so that the input's scale says whether it was used."""
    x = RNG.standard_normal((13, 3, 6, 6)).astype(np.float32)
    x[12] *= 100
    found = onnxsep.quantize(network(8), data=x, method=method, bias_correction=False)
    assert found.report.calibration_samples == 13
    assert found.report.measured_samples == 8
    assert largest_input(found.proto) > 0.5 * float(np.abs(x[12]).max()) > 10 * float(np.abs(x[:12]).max())


def test_the_fit_says_what_it_used() -> None:
    x = RNG.standard_normal((13, 3, 6, 6)).astype(np.float32)
    report = onnxsep.rewrite(network(8), mode="depthwise", data=x).report
    assert report.calibration is not None
    assert report.calibration.samples == 8
    assert any("8 samples at a time: the last 5 of 13" in note for note in report.calibration.notes)
