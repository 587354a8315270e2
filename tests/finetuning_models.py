"""Small networks, data and runs for the tests of fine-tuning."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxsep
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
ONE = RuntimeOptions(threads=1)
needs_torch = pytest.mark.skipif(
    find_spec("torch") is None,
    reason="torch is not installed (pip install onnxsep[finetune])",
)


def initializers(model: Model) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.proto.graph.initializer}


def small_model(*, norm: bool = True, end: str = "", batch: int | str = "n") -> Model:
    """Conv, BatchNormalization, Relu, pool, Gemm: images [3, 16, 16] to scores for 4 classes."""
    random = np.random.default_rng(5)

    def values(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((0.4 * random.standard_normal(shape)).astype(np.float32), name)

    nodes = [helper.make_node("Conv", ["x", "stem", "bias"], ["a"], pads=[1, 1, 1, 1])]
    weights = [values("stem", 6, 3, 3, 3), values("bias", 6), values("head", 6, 4)]
    if norm:
        nodes.append(helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]))
        weights += [values("scale", 6), values("shift", 6), values("mean", 6)]
        weights.append(numpy_helper.from_array(random.uniform(0.5, 2, 6).astype(np.float32), "variance"))
    nodes += [
        helper.make_node("Relu", ["b" if norm else "a"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "head"], ["h"]),
        helper.make_node(end or "Identity", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 4])],
        weights,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


def small_data(count: int = 64) -> dict[str, np.ndarray]:
    """Images whose class shifts their channels, so that they can be told apart."""
    random = np.random.default_rng(7)
    classes = random.integers(0, 4, count)
    shift = random.standard_normal((4, 3, 1, 1))[classes]
    return {"x": (random.standard_normal((count, 3, 16, 16)) + 2 * shift).astype(np.float32), "y": classes}


def write_data(path: Path, count: int) -> None:
    """The data as a file."""
    data = small_data(count)
    np.savez(path, x=data["x"], y=data["y"])


def quick(model: Model, data: Any = None, **options: Any) -> onnxsep.FinetuneResult:
    given: dict[str, Any] = {"epochs": 3, "batch": 16, "augment": "none", "runtime": ONE, **options}
    return onnxsep.finetune(model, data=small_data() if data is None else data, **given)


def chain(convs: int, *, bias: bool = True, scores: bool = True) -> Model:
    """Conv and Relu, so many times, without norms; then scores for 4 classes, or the last Conv's images."""
    random = np.random.default_rng(8)
    nodes, weights, last, channels = [], [], "x", 3
    for place in range(convs):
        shape = (6, channels, 3, 3)
        weight = random.standard_normal(shape) * (2 / (9 * channels)) ** 0.5
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{place}"))
        inputs = [last, f"w{place}"]
        if bias:
            weights.append(numpy_helper.from_array((0.1 * random.standard_normal(6)).astype(np.float32), f"b{place}"))
            inputs.append(f"b{place}")
        nodes.append(helper.make_node("Conv", inputs, [f"c{place}"], pads=[1, 1, 1, 1]))
        last, channels = f"c{place}", 6
        if scores or place + 1 < convs:
            nodes.append(helper.make_node("Relu", [last], [f"r{place}"]))
            last = f"r{place}"
    shape_out: list[int | str] = ["n", 6, 16, 16]
    if scores:
        head = (0.4 * random.standard_normal((6, 4))).astype(np.float32)
        weights.append(numpy_helper.from_array(head, "head"))
        nodes += [
            helper.make_node("GlobalAveragePool", [last], ["d"]),
            helper.make_node("Flatten", ["d"], ["e"]),
            helper.make_node("MatMul", ["e", "head"], ["y"]),
        ]
        last, shape_out = "y", ["n", 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, shape_out)],
        weights,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))
