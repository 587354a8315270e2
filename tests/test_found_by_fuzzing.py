"""What `make fuzz` has found: each is one clear outcome now."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[1, 1])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 8, 8])
        for name, channels in (("x", 3), ("y", 4))
    ]
    graph = helper.make_graph([conv], "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_version_that_no_operator_has(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.opset_import[0].version = -2
    onnx.save(model, tmp_path / "m.onnx")
    done = run("inspect", tmp_path / "m.onnx")
    assert done.returncode == 1
    assert "its operators are of version -2" in done.stderr


def test_an_attribute_of_another_type_in_a_version_to_come(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Nobody knows what its operators take, so the Conv alone is left alone."""
    model.opset_import[0].version = 999
    (strides,) = model.graph.node[0].attribute
    strides.CopyFrom(onnx.AttributeProto(name="strides", type=onnx.AttributeProto.TYPE_PROTO, tp=onnx.TypeProto()))
    onnx.save(model, tmp_path / "m.onnx")
    done = run("inspect", tmp_path / "m.onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert "its attribute 'strides' is of a type that no Conv has" in done.stdout


def test_an_element_type_that_onnx_does_not_know(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "sound.onnx")
    model.graph.initializer.append(onnx.TensorProto(name="unused", data_type=-(2**31)))
    onnx.save(model, tmp_path / "m.onnx")
    done = run("check", tmp_path / "m.onnx", tmp_path / "sound.onnx")
    assert done.returncode in (1, 3)
    assert "internal error" not in done.stderr
    model.graph.initializer[-1].data_type = TensorProto.FLOAT
    model.graph.initializer[-1].dims.append(0)
    onnx.save(model, tmp_path / "sound.onnx")
    done = run("check", tmp_path / "m.onnx", tmp_path / "sound.onnx")
    assert done.returncode in (1, 3)
    assert "internal error" not in done.stderr
