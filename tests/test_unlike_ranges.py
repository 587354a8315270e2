"""What joins unlike ranges keeps all its parts when it is quantised, and the layers around it are in int8."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from versions import RUNTIME, WRONG_WEIGHTS, needs_new_runtime

from onnxsep.model.io import Model
from onnxsep.quantization import QuantizeResult, quantize
from onnxsep.running.runtime import Runner, RuntimeOptions

ONE = RuntimeOptions(threads=1)
IMAGES = np.random.default_rng(7).standard_normal((40, 3, 16, 16)).astype(np.float32)
PIXELS = 640.0
FORMATS = ("qdq", "qoperator")


class Graph:
    """Nodes and weights in order; every method gives the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def node(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"n{len(self.nodes)}", **attributes))
        return name

    def weight(self, *shape: int) -> np.ndarray:
        return np.asarray(self._random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])))

    def conv(self, source: str, inputs: int, outputs: int, size: int = 3, out: str = "", **attributes: Any) -> str:
        weight = self.constant(self.weight(outputs, inputs, size, size))
        bias = self.constant(self._random.standard_normal(outputs) * 0.1)
        return self.node("Conv", source, weight, bias, out=out, pads=[size // 2] * 4, **attributes)

    def trunk(self) -> str:
        found = self.conv("x", 3, 16, strides=[2, 2])
        return self.node("Mul", found, self.node("Sigmoid", found))

    def boxes_and_scores(self) -> tuple[str, str]:
        """[n, 4, 64] in pixels, and [n, 8, 64] in 0..1."""
        found = self.trunk()
        boxes, scores = (
            self.node("Sigmoid", self.node("Reshape", self.conv(found, 16, channels, 1), self.ints(0, channels, -1)))
            for channels in (4, 8)
        )
        return self.node("Mul", boxes, self.constant(PIXELS)), scores

    def head(self) -> tuple[str, str]:
        """Weight and bias of a layer whose first four channels are 300 times as large as the other eight."""
        weight, bias = self.weight(12, 16, 1, 1), self._random.standard_normal(12)
        weight[:4] *= 300
        bias[:4] *= 300
        return self.constant(weight), self.constant(bias)

    def model(self, shape: tuple[int, ...] = (3, 16, 16), outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "made for a test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Parts = Callable[[np.ndarray], list[np.ndarray]]


def rows(values: np.ndarray) -> list[np.ndarray]:
    return [values[:, :4], values[:, 4:]]


def last(values: np.ndarray) -> list[np.ndarray]:
    return [values[..., :4], values[..., 4:]]


def whole(values: np.ndarray) -> list[np.ndarray]:
    return [values]


def joined(graph: Graph) -> Parts:
    graph.node("Concat", *graph.boxes_and_scores(), out="y", axis=1)
    return rows


def joined_and_turned(graph: Graph) -> Parts:
    both = graph.node("Concat", *graph.boxes_and_scores(), axis=1)
    graph.node("Transpose", both, out="y", perm=[0, 2, 1])
    return last


def joined_twice_and_flattened(graph: Graph) -> Parts:
    boxes, scores = graph.boxes_and_scores()
    both = graph.node("Concat", boxes, graph.node("Concat", scores, scores, axis=1), axis=1)
    graph.node("Reshape", both, graph.ints(0, -1), out="y")
    return lambda values: [values[:, :256], values[:, 256:]]


def joined_and_cut(graph: Graph) -> Parts:
    both = graph.node("Concat", *graph.boxes_and_scores(), axis=1)
    part = graph.node("Slice", both, graph.ints(4), graph.ints(12), graph.ints(1))
    graph.node("Relu", graph.node("Add", part, graph.constant(-0.3)), out="y")
    return whole


def joined_and_gathered(graph: Graph) -> Parts:
    graph.node("Gather", graph.node("Concat", *graph.boxes_and_scores(), axis=1), graph.ints(5, 7), out="y", axis=1)
    return whole


def padded_and_added(graph: Graph) -> Parts:
    boxes, scores = graph.boxes_and_scores()
    boxes = graph.node("Pad", boxes, graph.ints(0, 0, 0, 0, 8, 0))
    graph.node("Add", boxes, graph.node("Pad", scores, graph.ints(0, 4, 0, 0, 0, 0)), out="y")
    return rows


def two_forms_of_one_tensor(graph: Graph) -> Parts:
    found = graph.conv(graph.trunk(), 16, 4, 1)
    large = graph.node("Mul", found, graph.constant(PIXELS))
    graph.node("Concat", large, graph.node("Sigmoid", found), out="y", axis=1)
    return rows


def strides_of_channels(graph: Graph) -> Parts:
    found = graph.node("Sigmoid", graph.conv(graph.trunk(), 16, 12, 1))
    graph.node("Mul", found, graph.constant(np.reshape([PIXELS] * 4 + [1] * 8, (1, 12, 1, 1))), out="y")
    return rows


def one_conv_for_all(graph: Graph) -> Parts:
    graph.node("Conv", graph.trunk(), *graph.head(), out="y")
    return rows


def one_conv_that_is_split_by_a_reshape(graph: Graph) -> Parts:
    found = graph.node("Conv", graph.trunk(), *graph.head())
    found = graph.node("Reshape", found, graph.ints(0, 3, 4, -1))
    graph.node("Transpose", found, out="y", perm=[0, 3, 1, 2])
    return lambda values: [values[:, :, 0], values[:, :, 1:]]


def one_matmul_for_all(graph: Graph) -> Parts:
    weight = graph.weight(16, 12)
    weight[:, :4] *= 300
    found = graph.node("Flatten", graph.node("GlobalAveragePool", graph.trunk()))
    graph.node("Add", graph.node("MatMul", found, graph.constant(weight)), graph.constant(np.ones(12)), out="y")
    return rows


def one_transposed_conv_for_all(graph: Graph) -> Parts:
    weight = graph.weight(16, 12, 2, 2)
    weight[:, :4] *= 300
    graph.node("ConvTranspose", graph.trunk(), graph.constant(weight), out="y", strides=[2, 2])
    return rows


def joined_before_a_conv(graph: Graph) -> Parts:
    """As features in the middle of a network, with weights that make up for their ranges."""
    found = graph.trunk()
    large = graph.node("Mul", graph.node("Relu", graph.conv(found, 16, 8)), graph.constant(500.0))
    both = graph.node("Concat", graph.node("Relu", graph.conv(found, 16, 8)), large, axis=1)
    weight = graph.weight(8, 16, 3, 3)
    weight[:, 8:] /= 500
    pooled = graph.node("MaxPool", both, kernel_shape=[2, 2])
    graph.node("Conv", pooled, graph.constant(weight), out="y")
    return whole


ORDINARY: list[Callable[[Graph], Parts]] = [
    joined,
    joined_and_turned,
    joined_twice_and_flattened,
    joined_and_cut,
    joined_and_gathered,
    padded_and_added,
    two_forms_of_one_tensor,
    strides_of_channels,
    one_conv_for_all,
    one_conv_that_is_split_by_a_reshape,
    one_matmul_for_all,
    one_transposed_conv_for_all,
    joined_before_a_conv,
]


def errors_of_parts(source: onnx.ModelProto, result: QuantizeResult, images: np.ndarray, parts: Parts) -> list[float]:
    expected, actual = (
        parts(Runner(model, ONE)({"x": images[:8]})["y"].astype(np.float64)) for model in (Model(source), result.model)
    )
    pairs = zip(expected, actual, strict=True)
    return [float(np.linalg.norm(mine - his) / np.linalg.norm(mine)) for mine, his in pairs]


def left(result: QuantizeResult) -> dict[str, str]:
    return {node.op_type: node.reason for node in result.report.nodes if node.status == "left"}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("case", ORDINARY)
def test_small_parts_survive_beside_large_ones(case: Callable[[Graph], Parts], format_: Any) -> None:
    if case is one_transposed_conv_for_all and format_ == "qoperator" and RUNTIME == (1, 21):
        pytest.skip(WRONG_WEIGHTS)
    graph = Graph()
    parts = case(graph)
    source = graph.model()
    result = quantize(source, data=IMAGES, format=format_, bias_correction=False, equalize=False, runtime=ONE)
    assert max(errors_of_parts(source, result, IMAGES, parts)) < 0.06
    in_float = left(result)
    if "ConvTranspose" in in_float:  # which has no integer operator
        assert format_ == "qoperator"
        return
    assert any("unlike ranges" in reason for reason in in_float.values())
    assert not {"Conv", "Gemm", "MatMul"} & set(in_float)


@pytest.mark.parametrize("last_axis", [False, True])
@pytest.mark.parametrize("format_", FORMATS)
def test_input_that_joins_unlike_ranges_feeds_an_int8_conv(last_axis: bool, format_: Any) -> None:
    graph = Graph()
    scale = np.array([1, 1, 1000], np.float32)
    weight = graph.weight(16, 3, 3, 3)
    weight[:, 2] /= 1000
    first = graph.node("Transpose", "x", perm=[0, 3, 1, 2]) if last_axis else "x"
    found = graph.node("Relu", graph.node("Conv", first, graph.constant(weight), pads=[1] * 4))
    graph.conv(found, 16, 4, out="y")
    images = IMAGES * scale.reshape(1, 3, 1, 1)
    images = images.transpose(0, 2, 3, 1) if last_axis else images
    source = graph.model(images.shape[1:])
    result = quantize(source, data=images, format=format_, bias_correction=False, equalize=False, runtime=ONE)
    # Without scales of their own the two small channels have half a level each, and the error is .06.
    assert errors_of_parts(source, result, images, whole)[0] < 0.03
    assert set(left(result)) <= {"Mul", "Transpose"}


def test_join_that_is_read_by_a_layer_too_is_rounded_for_that_layer_only() -> None:
    graph = Graph()
    both = graph.node("Concat", *graph.boxes_and_scores(), out="y", axis=1)
    maps = graph.node("Reshape", both, graph.ints(0, 12, 8, 8))
    graph.conv(maps, 12, 4, 1, out="z")
    source = graph.model(outputs=("y", "z"))
    result = quantize(source, data=IMAGES, runtime=ONE)
    assert max(errors_of_parts(source, result, IMAGES, rows)) < 0.03
    assert "Conv" not in left(result)


def test_choice_between_unlike_tensors_stays_in_float() -> None:
    graph = Graph()
    boxes, scores = graph.boxes_and_scores()
    large = graph.node("Less", graph.node("ReduceMean", boxes, axes=[1]), graph.constant(PIXELS / 2))
    four = graph.node("Slice", scores, graph.ints(0), graph.ints(4), graph.ints(1))
    graph.node("Relu", graph.node("Where", large, boxes, four), out="y")
    source = graph.model()
    result = quantize(source, data=IMAGES, runtime=ONE)
    expected = Runner(Model(source), ONE)({"x": IMAGES[:8]})["y"]
    actual = Runner(result.model, ONE)({"x": IMAGES[:8]})["y"]
    same = (expected > 1) == (actual > 1)  # the choice itself depends on rounded values
    small = same & (expected <= 1)
    assert same.mean() > 0.9
    assert small.any()
    assert np.linalg.norm((expected - actual)[small]) < 0.05 * np.linalg.norm(expected[small])


@needs_new_runtime
@pytest.mark.parametrize("format_", FORMATS)
def test_softmax_over_many_values_keeps_its_levels(format_: Any) -> None:
    graph = Graph()
    found = graph.node("Reshape", graph.conv(graph.trunk(), 16, 16, 1), graph.ints(0, 16, 64))
    attention = graph.node("Softmax", graph.node("Mul", found, graph.constant(0.1)), axis=-1)
    graph.node("Identity", attention, out="y")
    source = graph.model()
    result = quantize(source, data=IMAGES, format=format_, runtime=ONE)
    # One step of the range 0..1 is a quarter of the mean, 1/64.
    assert errors_of_parts(source, result, IMAGES, whole)[0] < 0.02
    assert "0..1" in left(result)["Softmax"]


@needs_new_runtime
def test_ordinary_parts_stay_in_int8() -> None:
    """Branches of like ranges that are joined, and classes of which one varies less than the others."""
    graph = Graph()
    found = graph.trunk()
    both = graph.node("Concat", *(graph.node("Relu", graph.conv(found, 16, 8)) for _ in range(2)), axis=1)
    flat = graph.node("Flatten", graph.node("GlobalAveragePool", both))
    weight = graph.weight(10, 16)
    weight[3] /= 3
    graph.node("Gemm", flat, graph.constant(weight), out="y", transB=1)
    assert not left(quantize(graph.model(), data=IMAGES, runtime=ONE))


def test_integer_inputs_keep_one_scale() -> None:
    graph = Graph()
    graph.conv("x", 3, 4, out="y")
    images = IMAGES * np.array([1, 1, 1000], np.float32).reshape(1, 3, 1, 1)
    result = quantize(graph.model(), data=images, int8_io=True, runtime=ONE)
    assert result.report.integers[0].name == "x"
