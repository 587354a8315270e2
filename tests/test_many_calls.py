"""Functions that call each other twice: a small file that is a large graph; each command ends in seconds."""

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import onnxsep
from onnxsep.model.functions import too_many_calls
from onnxsep.model.io import load
from onnxsep.running.runtime import Runner

_STANDARD, _OWN = helper.make_opsetid("", 17), helper.make_opsetid("own", 1)


def doubling(depth: int) -> onnx.ModelProto:
    """Adds 1 to x 2**(depth - 1) times."""
    one = onnx.numpy_helper.from_array(np.array([1], np.float32))
    nodes = [helper.make_node("Constant", [], ["one"], value=one), helper.make_node("Add", ["a", "one"], ["b"])]
    made = [helper.make_function("own", "f0", ["a"], ["b"], nodes, [_STANDARD])]
    for number in range(1, depth):
        calls = [helper.make_node(f"f{number - 1}", [one], [other], domain="own") for one, other in ("at", "tb")]
        made.append(helper.make_function("own", f"f{number}", ["a"], ["b"], calls, [_STANDARD, _OWN]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="own")], "g", [values[0]], [values[1]]
    )
    return helper.make_model(graph, opset_imports=[_STANDARD, _OWN], functions=made, ir_version=9)


def test_12_deep_is_run_and_compared(tmp_path: Path) -> None:
    onnx.save(doubling(12), tmp_path / "m.onnx")
    start = time.process_time()
    result = Runner(load(tmp_path / "m.onnx"))({"x": np.zeros(1, np.float32)})
    assert result["y"].tolist() == [2**11]
    assert onnxsep.check(tmp_path / "m.onnx", tmp_path / "m.onnx").same
    assert time.process_time() - start < 30  # over a minute where the runtime expands the calls


def test_25_deep_is_read_but_not_run() -> None:
    reason = too_many_calls(doubling(25))
    assert reason is not None
    assert "expand to" in reason
