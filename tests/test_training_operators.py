"""Every operator that onnxsep computes with torch gives what ONNX Runtime gives, in old and new versions."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxsep.errors import UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner
from onnxsep.training import to_torch

pytestmark = pytest.mark.skipif(
    find_spec("torch") is None,
    reason="torch is not installed (pip install onnxsep[finetune])",
)

F = onnx.TensorProto.FLOAT


def single(op: str, opset: int, shape: list[int], constants: dict[int, Any], attributes: dict[str, Any]) -> Model:
    """A model of one node: the input is its first one, constants are at the given positions, others are left out."""
    inputs = ["x", *("" for _ in range(max(constants, default=0)))]
    initializers = []
    for position, value in constants.items():
        inputs[position] = f"c{position}"
        initializers.append(numpy_helper.from_array(np.asarray(value), inputs[position]))
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], name="the_node", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info("y", F, None)],
        initializers,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, int, list[int], dict[int, Any], dict[str, Any]]] = [
    ("Conv", 11, [2, 4, 9, 7], {1: weight(6, 4, 3, 2), 2: weight(6)}, {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", 11, [2, 4, 9, 8], {1: weight(6, 2, 3, 2)}, {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("Conv", 11, [2, 4, 9, 8], {1: weight(4, 1, 4, 2)}, {"group": 4, "auto_pad": "SAME_LOWER"}),
    ("Conv", 1, [2, 4, 9, 8], {1: weight(4, 4, 3, 2)}, {"auto_pad": "VALID"}),
    ("Conv", 22, [2, 4, 9], {1: weight(6, 4, 3), 2: weight(6)}, {"dilations": [2], "pads": [2, 2]}),
    ("Conv", 13, [1, 2, 5, 6, 7], {1: weight(3, 2, 3, 2, 1)}, {"pads": [1, 0, 0, 1, 1, 0]}),
    ("ConvTranspose", 11, [2, 4, 5, 6], {1: weight(4, 3, 3, 2)}, {"strides": [2, 2], "output_padding": [1, 0]}),
    ("ConvTranspose", 11, [2, 4, 5, 6], {1: weight(4, 3, 3, 2), 2: weight(3)}, {"pads": [1, 0, 0, 1]}),
    ("MaxPool", 7, [2, 3, 9, 8], {}, {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("MaxPool", 12, [2, 3, 9, 8], {}, {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "strides": [2, 1]}),
    ("MaxPool", 12, [2, 3, 10, 8], {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 12, [2, 3, 9, 8], {}, {"kernel_shape": [3, 2], "pads": [2, 1, 2, 1], "dilations": [1, 1]}),
    ("AveragePool", 7, [2, 3, 9, 8], {}, {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("AveragePool", 11, [2, 3, 9, 8], {}, {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
    ("AveragePool", 19, [2, 3, 9, 8], {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("GlobalAveragePool", 22, [2, 3, 5, 4], {}, {}),
    ("GlobalMaxPool", 1, [2, 3, 5, 4], {}, {}),
    ("Gemm", 13, [3, 5], {1: weight(4, 5), 2: weight(4)}, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", 7, [5, 3], {1: weight(5, 4), 2: weight(1)}, {"transA": 1}),
    ("MatMul", 13, [2, 3, 5], {1: weight(5, 4)}, {}),
    ("BatchNormalization", 7, [2, 3, 4, 4], {1: weight(3), 2: weight(3), 3: weight(3), 4: weight(3) ** 2}, {}),
    (
        "BatchNormalization",
        15,
        [2, 3, 4],
        {1: weight(3), 2: weight(3), 3: weight(3), 4: weight(3) ** 2},
        {"epsilon": 0.1},
    ),
    ("InstanceNormalization", 6, [2, 3, 4, 5], {1: weight(3), 2: weight(3)}, {"epsilon": 0.01}),
    ("LayerNormalization", 17, [2, 3, 4], {1: weight(3, 4), 2: weight(3, 4)}, {"axis": 1}),
    ("PRelu", 16, [2, 3, 4, 4], {1: weight(3, 1, 1)}, {}),
    ("Dropout", 7, [2, 3], {}, {"ratio": 0.7}),
    ("Dropout", 13, [2, 3], {1: np.float32(0.7)}, {}),
    ("Pad", 2, [2, 3, 5, 4], {}, {"pads": [0, 1, 2, 0, 0, 0, 1, 3], "value": 1.5}),
    ("Pad", 11, [2, 3, 5, 4], {1: ints(0, 0, 2, -1, 0, 0, 1, 3), 2: np.float32(0.5)}, {}),
    ("Pad", 18, [2, 3, 5, 4], {1: ints(2, 1, 0, 2), 3: ints(-1, 1)}, {"mode": "reflect"}),
    ("Pad", 19, [2, 3, 5, 4], {1: ints(0, 1, 2, 0, 0, 0, 1, 3)}, {"mode": "wrap"}),
    ("Pad", 21, [2, 3, 5, 4], {1: ints(1, 1, 2, 0, 0, 0, 1, 3)}, {"mode": "edge"}),
    ("Slice", 1, [4, 6, 5], {}, {"starts": [1, -3], "ends": [3, 9], "axes": [0, 2]}),
    ("Slice", 13, [4, 6, 5], {1: ints(-1, 1), 2: ints(-100, 5), 3: ints(1, 2), 4: ints(-2, 3)}, {}),
    ("Slice", 13, [4, 6, 5], {1: ints(3), 2: ints(3)}, {}),
    ("Clip", 6, [3, 4], {}, {"min": -0.5}),
    ("Clip", 13, [3, 4], {2: np.float32(0.25)}, {}),
    ("ReduceMean", 11, [2, 3, 4, 5], {}, {"axes": [-1, 1], "keepdims": 0}),
    ("ReduceMean", 18, [2, 3, 4, 5], {1: ints(2, 3)}, {"keepdims": 0}),
    ("ReduceMean", 18, [2, 3, 4], {}, {}),
    ("ReduceSum", 13, [2, 3, 4], {1: ints(-1)}, {}),
    ("ReduceSum", 13, [2, 3, 4], {}, {"noop_with_empty_axes": 1}),
    ("ReduceMax", 18, [2, 3, 4], {1: ints(0, 2)}, {"keepdims": 0}),
    ("ReduceMin", 12, [2, 3, 4], {}, {"axes": [1]}),
    ("Reshape", 21, [2, 3, 4], {1: ints(0, -1)}, {}),
    ("Flatten", 21, [2, 3, 4], {}, {}),
    ("Transpose", 21, [2, 3, 4], {}, {"perm": [2, 0, 1]}),
    ("Unsqueeze", 21, [2, 3], {1: ints(1)}, {}),
    ("Relu", 14, [2, 3], {}, {}),
    ("LeakyRelu", 16, [2, 3], {}, {"alpha": 0.2}),
    ("HardSigmoid", 6, [2, 3], {}, {"alpha": 0.3}),
    ("Softmax", 11, [2, 3, 4], {}, {"axis": 1}),
    ("Softmax", 13, [2, 3, 4], {}, {}),
    ("Sigmoid", 13, [2, 3], {}, {}),
    ("Add", 7, [2, 3, 4], {1: weight(3, 1)}, {}),
    ("Sum", 6, [2, 3], {1: weight(2, 3), 2: weight(2, 3)}, {}),
    ("Mul", 14, [2, 3, 4], {1: weight(3, 1)}, {}),
    ("Concat", 13, [2, 3], {1: weight(2, 4)}, {"axis": 1}),
    ("Cast", 19, [2, 3], {}, {"to": F}),
    ("Resize", 19, [1, 2, 3, 4], {2: np.array([1, 1, 2, 2], np.float32)}, {"mode": "linear"}),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{case[1]}-{index}" for index, case in enumerate(CASES)])
def test_operator(case: tuple[str, int, list[int], dict[int, Any], dict[str, Any]]) -> None:
    model = single(*case)
    x = np.random.default_rng(7).standard_normal(case[2]).astype(np.float32)
    expected = Runner(model)({"x": x})["y"]
    graph = to_torch(model)
    found = graph.module(graph.tensors({"x": x}))["y"].detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "opset", "attributes", "reason"),
    [
        ("Conv", 13, {"auto_pad": "VALID", "made_up": 1}, "made_up"),
        ("QuantizeLinear", 13, {}, "quantised"),
        ("Loop", 13, {}, "body"),
        ("MaxPool", 12, {}, "kernel_shape"),
        ("Relu", 13, {"made_up": 1}, "made_up"),
        ("Conv", 13, {"auto_pad": "SAME"}, "auto_pad"),
        ("BatchNormalization", 7, {"spatial": 0}, "spatial"),
    ],
)
def test_error_names_operator_version_and_node(op: str, opset: int, attributes: dict[str, Any], reason: str) -> None:
    model = single(op, opset, [2, 3, 4, 4], {1: weight(3, 3, 2, 2)} if op == "Conv" else {}, attributes)
    version = onnx.defs.get_schema(op, opset).since_version
    with pytest.raises(UnsupportedModelError, match=f"{op}-{version} 'the_node'.*{reason}"):
        to_torch(model)


def test_custom_operator_is_named() -> None:
    model = single("Conv", 13, [2, 3, 4, 4], {1: weight(3, 3, 2, 2)}, {})
    model.proto.graph.node[0].domain = "my.domain"
    with pytest.raises(UnsupportedModelError, match=r"my\.domain\.Conv 'the_node'"):
        to_torch(model)


def test_failure_while_running_names_the_node() -> None:
    graph = to_torch(single("Conv", 13, [2, 3, 4, 4], {1: weight(3, 3, 2, 2)}, {}))
    with pytest.raises(UnsupportedModelError, match="Conv 'the_node'"):
        graph.module(graph.tensors({"x": np.zeros((1, 5, 4, 4), np.float32)}))
