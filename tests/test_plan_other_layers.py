"""Plans for layers that are no Convs: ConvTranspose, Gemm and MatMul are fitted, measured, timed and carried out."""

from typing import Any

import latency_models
import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, images
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.planner import latency, timings

X = images(24, (3, 4, 4))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((latency, "PIECES"), (latency, "SHARES"), (timings, "THOROUGH")):
        monkeypatch.setattr(place, name, latency_models.QUICK)


def network() -> onnx.ModelProto:
    """A Conv, a ConvTranspose of stride 2, global pooling, a MatMul and a Gemm."""
    random, stored = np.random.default_rng(0), []

    def tensor(name: str, *shape: int) -> str:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        stored.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    nodes = [
        helper.make_node("Conv", ["x", tensor("w1", 16, 3, 3, 3)], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ConvTranspose", ["b", tensor("w2", 16, 16, 4, 4)], ["c"], "up", strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", tensor("w3", 16, 48)], ["g"], "product"),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", tensor("w4", 48, 16), tensor("b4", 16)], ["y"], "dense"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MODEL = network()
OPTIONS: dict[str, Any] = {"data": X, "runtime": ONE_THREAD, "positions": 8}
LAYERS = {"up": "ConvTranspose", "product": "MatMul", "dense": "Gemm"}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_each_kind_is_planned_for_and_rewritten(name: str) -> None:
    modes = ["spatial"] if name == "up" else ["pointwise"]
    found = onnxsep.plan(MODEL, target="params=0.95", modes=modes, only=name, rounds=0, **OPTIONS)
    (layer,) = [one for one in found.report.layers if one.mode]
    assert (layer.name, layer.op_type, layer.mode) == (name, LAYERS[name], modes[0])
    assert layer.candidates > 2
    target = found.report.targets[0]
    done = onnxsep.rewrite(MODEL, plan=found.plan, **OPTIONS)
    totals = done.report.totals
    assert (totals.parameters_before, totals.parameters_after) == (target.before, target.after)
    assert done.report.verification.ran
    assert {one.name: (one.mode, one.rank) for one in done.report.convs if one.mode} == {name: (layer.mode, layer.rank)}


def test_layers_of_all_kinds_are_candidates_together() -> None:
    found = onnxsep.plan(MODEL, target="params=0.9", modes=["spatial", "pointwise"], rounds=0, **OPTIONS)
    assert {one.name for one in found.report.layers if one.candidates} == set(LAYERS)


def test_layers_of_all_kinds_are_timed() -> None:
    kit = onnxsep.profile(MODEL, modes=["spatial", "pointwise"])
    assert {one.name: one.forms > 0 for one in kit.report.layers} == {"first": False, **dict.fromkeys(LAYERS, True)}
    found = onnxsep.plan(MODEL, target=["latency=1000s", "params=0.95"], modes=["spatial"], rounds=0, **OPTIONS)
    (layer,) = [one for one in found.report.layers if one.mode]
    assert layer.name == "up"
    assert layer.time_ratio is not None
    assert found.report.latency is not None
    assert found.report.latency.promised > 0
