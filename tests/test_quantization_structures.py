"""Graphs whose structure the runtime's quantiser does not see: all that can be int8 is, and little is lost."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from fuzzing.graphs import random_model
from onnx import TensorProto, helper, numpy_helper
from random_examples import some
from versions import needs_new_runtime

from onnxsep.data import open_data
from onnxsep.model.io import Model, load
from onnxsep.quantization import QuantizeResult, quantize
from onnxsep.quantization.agreement import Agreement
from onnxsep.quantization.converting import raise_opset
from onnxsep.quantization.histograms import Histogram, entropy_range, percentile_range
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.trying import culprits
from onnxsep.running.runtime import Runner, RuntimeOptions

ONE = RuntimeOptions(threads=1)
X = np.random.default_rng(7).standard_normal((24, 3, 8, 8)).astype(np.float32)
FORMATS = ("qdq", "qoperator")
INFO = helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT


class Net:
    """Nodes and weights of a small network."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def kernel(self, name: str, *shape: int) -> str:
        scale = (2 / np.prod(shape[1:])) ** 0.5
        return self.const(name, (self.rng.standard_normal(shape) * scale).astype(np.float32))

    def bias(self, name: str, size: int) -> str:
        return self.const(name, (self.rng.standard_normal(size) * 0.1).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], f"node of {output}", **attributes))
        return output

    def conv(self, x: str, inputs: int, channels: int, output: str, **attributes: Any) -> str:
        weight, bias = self.kernel(f"{output}.w", channels, inputs, 3, 3), self.bias(f"{output}.b", channels)
        return self.add("Conv", [x, weight, bias], output, pads=[1] * 4, **attributes)

    def head(self, x: str, channels: int) -> None:
        self.add("GlobalAveragePool", [x], "pooled")
        self.add("Flatten", ["pooled"], "flat")
        self.add("Gemm", ["flat", self.kernel("y.w", 5, channels), self.bias("y.b", 5)], "y", transB=1)

    def model(self, outputs: Sequence[str] = ("y",), opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
        entries = [INFO(name, FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", [INFO("x", FLOAT, ["N", 3, 8, 8])], entries, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = ir_version
        return model


def int8_convs(proto: onnx.ModelProto) -> int:
    makers = {name: node for node in proto.graph.node for name in node.output}
    weights = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    count = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            made = [makers.get(name) for name in node.input[:2]]
            count += all(maker is not None and maker.op_type == "DequantizeLinear" for maker in made) and (
                weights[makers[node.input[1]].input[0]] == TensorProto.INT8
            )
        count += node.op_type == "QLinearConv"
    return count


def relative(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.linalg.norm(expected.astype(np.float64) - actual) / np.linalg.norm(expected))


def checked(source: onnx.ModelProto, limit: float = 0.05, **options: Any) -> QuantizeResult:
    """Quantise; every Conv of the main graph is int8, and the outputs are those of the source."""
    result = quantize(source, data=X, runtime=ONE, **options)
    proto = result.model.proto
    assert int8_convs(proto) == sum(node.op_type == "Conv" for node in source.graph.node)
    assert [entry.name for entry in proto.graph.output] == [entry.name for entry in source.graph.output]
    expected, actual = Runner(load(source), ONE)({"x": X}), Runner(result.model, ONE)({"x": X})
    errors = {name: relative(value, actual[name]) for name, value in expected.items()}
    assert max(errors.values()) < limit, errors
    return result


def left(result: QuantizeResult) -> dict[str, str]:
    return {row.name.removeprefix("node of "): row.reason for row in result.report.nodes if row.status == "left"}


def beginning(net: Net) -> str:
    return net.add("Relu", [net.conv("x", 3, 16, "c0")], "r0")


# ---------------------------------------------------------------- readers that are no nodes of the main graph


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("op_type", ["Relu", "Clip"])
def test_activation_whose_input_another_node_reads(format_: str, op_type: str) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    bounds = [net.const("low", np.float32(0)), net.const("high", np.float32(6))] if op_type == "Clip" else []
    net.conv(net.add(op_type, ["c1", *bounds], "r1"), 16, 16, "c2")
    net.add("Add", ["c2", "c1"], "y")
    result = checked(net.model(), format=format_)
    assert ("r1" in left(result)) == (format_ == "qoperator")


@pytest.mark.parametrize("format_", FORMATS)
def test_conv_and_relu_that_are_outputs(format_: str) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.head(net.add("Relu", [net.conv(net.add("Relu", ["c1"], "r1"), 16, 16, "c2")], "r2"), 16)
    checked(net.model(["y", "c1", "r2"]), format=format_)


def loop(net: Net, state: str, captured: str, output: str, inner: Sequence[onnx.NodeProto] = ()) -> str:
    """Two turns of: state = Conv(state) + captured."""
    weight = numpy_helper.from_array((net.rng.standard_normal((16, 16, 1, 1)) / 8).astype(np.float32), "loop.w")
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["loop.in", "loop.w"], ["loop.c"]),
            *inner,
            helper.make_node("Add", ["loop.c", captured], ["loop.out"]),
            helper.make_node("Identity", ["loop.go"], ["loop.on"]),
        ],
        "body",
        [INFO("loop.i", TensorProto.INT64, []), INFO("loop.go", TensorProto.BOOL, []), INFO("loop.in", FLOAT, None)],
        [INFO("loop.on", TensorProto.BOOL, []), INFO("loop.out", FLOAT, None)],
        [weight],
    )
    return net.add("Loop", [net.const("trips", np.int64(2)), "", state], output, body=body)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("captured", ["r0", "c1", "p1"])
def test_loop_captures_what_quantised_nodes_make(format_: str, captured: str) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("MaxPool", [net.add("Relu", ["c1"], "r1")], "p1", kernel_shape=[3, 3], pads=[1] * 4)
    net.head(net.add("Relu", [net.conv(loop(net, "p1", captured, "l"), 16, 16, "c2")], "r2"), 16)
    checked(net.model(), format=format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_if_in_a_loop_and_a_weight_that_they_capture(format_: str) -> None:
    """The weight of a Conv of the main graph, which becomes int8 there, is read in float two graphs further in."""
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("Relu", ["c1"], "r1")
    conv = helper.make_node("Conv", ["r1", "c1.w", "c1.b"], ["if.c"], pads=[1] * 4)
    yes = helper.make_graph([conv], "yes", [], [INFO("if.c", FLOAT, None)])
    no = helper.make_graph([helper.make_node("Neg", ["r1"], ["if.n"])], "no", [], [INFO("if.n", FLOAT, None)])
    inner = [helper.make_node("If", ["loop.go"], ["if"], then_branch=yes, else_branch=no)]
    net.head(net.conv(loop(net, "r1", "if", "l", inner), 16, 16, "c2"), 16)
    source = net.model()
    result = checked(source, format=format_)
    kept = {tensor.name: tensor for tensor in result.model.proto.graph.initializer}
    weights = {tensor.name: tensor for tensor in source.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(kept["c1.w"]), numpy_helper.to_array(weights["c1.w"]))


@pytest.mark.parametrize("format_", FORMATS)
def test_scan_captures_an_activation(format_: str) -> None:
    net = Net()
    beginning(net)
    net.add("ReduceMax", ["r0"], "g", axes=[3], keepdims=0)
    body = helper.make_graph(
        [helper.make_node("Add", ["scan.x", "g"], ["scan.y"])],
        "body",
        [INFO("scan.x", FLOAT, None)],
        [INFO("scan.y", FLOAT, None)],
    )
    net.add("Scan", ["c0"], "s", body=body, num_scan_inputs=1, scan_input_axes=[3], scan_output_axes=[3])
    net.add("Relu", ["s"], "r1")
    net.add("Reshape", ["r1", net.const("shape", np.array([-1, 16, 8, 8]))], "r2")
    source = net.model(["r1"])
    expected = Runner(load(source), ONE)({"x": X[:1]})["r1"]
    result = quantize(source, data=X, runtime=ONE, format=format_)  # type: ignore[arg-type]
    assert int8_convs(result.model.proto) == 1
    assert relative(expected, Runner(result.model, ONE)({"x": X[:1]})["r1"]) < 0.05


@pytest.mark.parametrize("format_", FORMATS)
def test_weight_that_is_an_output_and_is_read_in_several_ways(format_: str) -> None:
    """As weights of a Conv and a MatMul, which want other channel axes, as a term of an Add, and by a float node."""
    net = Net()
    net.add("Relu", [net.add("Conv", ["x", net.kernel("w", 16, 3, 1, 1)], "c0")], "r0")
    net.add("Reshape", ["w", net.const("square", np.array([16, 3]))], "flat w")
    net.kernel("m", 8, 8)
    net.add("MatMul", ["r0", "m"], "m0")
    net.add("Add", ["m0", "m"], "a0")
    net.add("PRelu", ["a0", "m"], "s0")
    net.head(net.conv("s0", 16, 16, "c1"), 16)
    source = net.model(["y", "m", "w"])
    result = checked(source, format=format_)
    actual = Runner(result.model, ONE)({"x": X[:1]})
    (stored,) = [tensor for tensor in source.graph.initializer if tensor.name == "m"]
    np.testing.assert_array_equal(actual["m"], numpy_helper.to_array(stored))
    assert left(result)["s0"] == "the runtime's quantiser does not know this operator"


# ---------------------------------------------------------------- activations whose work a range cannot do


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.25)])
def test_clip_without_zero_stays(format_: str, low: float, high: float) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("Clip", ["c1", net.const("low", np.float32(low)), net.const("high", np.float32(high))], "k")
    net.conv("k", 16, 16, "y")
    result = checked(net.model(), format=format_)
    assert left(result) == {
        "k": "its bounds do not have 0 between them, and the range of a quantised tensor always holds 0"
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_clip_with_a_computed_bound_stays(format_: str) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("ReduceMax", ["x"], "most", keepdims=0)
    net.add("Clip", ["c1", "", "most"], "k")
    net.conv("k", 16, 16, "y")
    assert left(checked(net.model(), format=format_))["k"] == "its bounds are not constant"


@pytest.mark.parametrize("format_", FORMATS)
def test_relu_behind_a_node_without_a_range_of_its_own(format_: str) -> None:
    """The integer MaxPool has the scale of the Conv, negative values and all."""
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("MaxPool", ["c1"], "p", kernel_shape=[2, 2])
    net.conv(net.add("Relu", ["p"], "r"), 16, 16, "y")
    net.nodes[-1].attribute[0].ints[:] = [0] * 4
    checked(net.model(), format=format_)


@pytest.mark.parametrize("format_", FORMATS)
def test_chain_of_activations_has_the_range_of_the_last(format_: str) -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("Relu", ["c1"], "r")
    net.add("Clip", ["r", "", net.const("high", np.float32(0.3))], "k")
    net.conv("k", 16, 16, "y")
    result = checked(net.model(), format=format_)
    assert {row.name: row.status for row in result.report.nodes}["node of k"] == "folded"


# ---------------------------------------------------------------- names


def named(name: str, other: str) -> onnx.ModelProto:
    """The first activation has one name, the node of the second Conv the other."""
    net = Net()
    net.bias("b", 16)
    net.add("Relu", [net.add("Conv", ["x", net.kernel("wa", 16, 3, 3, 3), "b"], "c0", pads=[1] * 4)], name)
    net.add("Relu", [net.add("Conv", [name, net.kernel("wb", 16, 16, 3, 3), "b"], "c1", pads=[1] * 4)], "r1")
    net.nodes[2].name = other
    net.head(net.add("MaxPool", ["r1"], "p1", kernel_shape=[2, 2], strides=[2, 2]), 16)
    return net.model()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("x_scale", "x_QuantizeLinear"),
        ("b_quantized", "node of c0_quant"),
        ("wa_QuantizeLinear_Output", "x_DequantizeLinear"),
        ("t0t", "n0n_quant"),
        ("b_own0", ""),
        ("y_QuantizeLinear_Input", "t1t_QuantizeLinear"),
    ],
)
def test_names_that_the_quantiser_makes_may_be_the_users(format_: str, name: str, other: str) -> None:
    source = named(name, other)
    proto = checked(source, format=format_).model.proto
    made = [output for node in proto.graph.node for output in node.output]
    assert len(made) == len(set(made))
    if format_ == "qdq":
        assert name in made
        assert not other or other in {node.name for node in proto.graph.node}


# ---------------------------------------------------------------- one node that cannot be quantised


def grouped_transpose(net: Net) -> None:
    weight = net.kernel("t.w", 16, 4, 2, 2)
    net.add("ConvTranspose", ["r0", weight, net.bias("t.b", 16)], "odd", strides=[2, 2], group=4)


def norm_over_all(net: Net) -> None:
    scale, bias = (net.const(name, np.full((16, 8, 8), value, np.float32)) for name, value in (("s", 1), ("o", 0.1)))
    net.add("LayerNormalization", ["r0", scale, bias], "odd", axis=1)


def pad_of_axes(net: Net) -> None:
    pads = [net.const("pads", np.array([1, 2])), "", net.const("axes", np.array([-1]))]
    net.add("Pad", ["r0", *pads], "odd")


def resize_of_axes(net: Net) -> None:
    net.add("Resize", ["r0", "", net.const("s", np.array([2.0], np.float32))], "odd", mode="linear", axes=[3])


def cubic_resize(net: Net) -> None:
    net.add("Resize", ["r0", "", net.const("s", np.array([1, 1, 2, 2], np.float32))], "odd", mode="cubic")


def antialiased_resize(net: Net) -> None:
    net.add(
        "Resize", ["r0", "", net.const("s", np.array([1, 1, 0.5, 0.5], np.float32))], "odd", mode="linear", antialias=1
    )


def pad_with_a_value(net: Net) -> None:
    """The integer Pad has the scale of its input, which the value is outside of."""
    net.add("Pad", ["r0", net.const("pads", np.array([0, 0, 1, 1] * 2)), net.const("v", np.float32(-4))], "odd")


def scalar_bias(net: Net) -> None:
    net.add("GlobalAveragePool", ["r0"], "g")
    net.add("Flatten", ["g"], "f")
    weight = net.kernel("g.w", 16, 16)
    net.add("Gemm", ["f", weight, net.const("g.b", np.float32(0.5))], "e", transB=1)
    net.add("Reshape", ["e", net.const("shape", np.array([-1, 16, 1, 1]))], "odd")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "awkward",
    [
        grouped_transpose,
        norm_over_all,
        pad_of_axes,
        resize_of_axes,
        pytest.param(cubic_resize, marks=needs_new_runtime),
        antialiased_resize,
        pad_with_a_value,
        scalar_bias,
    ],
)
def test_awkward_node_between_two_convs(format_: str, awkward: Callable[[Net], None]) -> None:
    net = Net()
    beginning(net)
    awkward(net)
    net.conv("odd", 16, 16, "y")
    result = checked(net.model(opset=18), limit=0.08, format=format_, bias_correction=False)
    assert "runtime's quantiser fails" not in "".join(left(result).values())


def test_culprits_are_found_by_bisection() -> None:
    asked = []

    def trial(names: Sequence[str]) -> str:
        asked.append(names)
        return "why" if {"n7", "n31"} & set(names) else ""

    assert culprits([f"n{number}" for number in range(40)], (), trial) == {"n7": "why", "n31": "why"}
    assert len(asked) < 20


def test_a_layer_is_spared_where_the_node_before_it_is_the_awkward_one() -> None:
    def trial(names: Sequence[str]) -> str:
        return "why" if {"pad", "conv2"} <= set(names) else ""

    found = culprits(["conv1", "pad", "relu", "conv2", "conv3"], {"conv1", "conv2", "conv3"}, trial)
    assert found == {"pad": "why"}


@pytest.mark.parametrize("bias_correction", [False, True])
def test_empty_name_is_the_same_as_no_bias(bias_correction: bool) -> None:
    net = Net()
    net.add("Conv", ["x", net.kernel("w", 8, 3, 3, 3), ""], "y", pads=[1] * 4)
    for format_ in FORMATS:
        checked(net.model(), format=format_, bias_correction=bias_correction)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_alpha_and_beta_of_a_gemm(format_: str, per_channel: bool) -> None:
    net = Net()
    beginning(net)
    net.head("r0", 16)
    net.nodes[-1].attribute.extend([helper.make_attribute("alpha", 0.5), helper.make_attribute("beta", 8.0)])
    checked(net.model(), format=format_, per_channel=per_channel, bias_correction=False)


# ---------------------------------------------------------------- steps between source and result


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scales", [(2, 2), (0.7, 0.6), (3, 1.5)])
def test_resize_of_opset_10_keeps_its_coordinates(mode: str, scales: tuple[float, float]) -> None:
    net = Net()
    net.add("Resize", [beginning(net), net.const("scales", np.array([1, 1, *scales], np.float32))], "z", mode=mode)
    net.conv("z", 16, 16, "y")
    checked(net.model(opset=10, ir_version=5))


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample_keeps_its_coordinates(opset: int) -> None:
    net = Net()
    scales = [1.0, 1.0, 2.0, 2.0]
    more: dict[str, Any] = {"scales": scales} if opset == 7 else {}
    inputs = [] if opset == 7 else [net.const("scales", np.array(scales, np.float32))]
    net.add("Upsample", [beginning(net), *inputs], "z", mode="linear", **more)
    net.conv("z", 16, 16, "y")
    checked(net.model(opset=opset, ir_version=4))


def test_hardmax_of_opset_12_is_over_all_axes_from_its_own_on() -> None:
    net = Net()
    net.conv(beginning(net), 16, 16, "c1")
    net.add("Hardmax", ["c1"], "h", axis=1)
    source = net.model(["h"], opset=12, ir_version=7)
    converted, _ = raise_opset(source, 13)
    expected, actual = (Runner(Model(proto), ONE)({"x": X})["h"] for proto in (source, converted))
    np.testing.assert_array_equal(expected, actual)
    assert expected.sum() == len(X)


def test_preparing_is_compared_with_the_source() -> None:
    net = Net()
    net.head(net.conv(beginning(net), 16, 16, "c1"), 16)
    source = net.model()
    agreement = Agreement(load(source), open_data(X, load(source)), range(8), ONE)
    assert agreement.difference(prepare(load(source), Settings(), agreement).proto) == ""
    other = onnx.ModelProto()
    other.CopyFrom(source)
    for tensor in other.graph.initializer:
        if tensor.name == "y.b":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.1), "y.b"))
    assert agreement.difference(other).startswith("output 'y' differs by 0.")
    converted, notes = raise_opset(source, 19)
    assert agreement.difference(converted) == ""
    assert notes == ("opset raised from 17 to 19",)


# ---------------------------------------------------------------- entropy and percentile


def histogram(values: np.ndarray, method: Any = "entropy") -> Histogram:
    found = Histogram.empty(method, float(values.min()), float(values.max()))
    for part in np.array_split(values, 3):
        found.add(part)
    return found


def test_entropy_clips_a_heavy_tail_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    normal, flat = rng.standard_normal(100_000), rng.uniform(-1, 1, 100_000)
    tailed = np.concatenate([normal, [400.0, -300.0]]).astype(np.float32)
    low, high = entropy_range(histogram(tailed))
    assert -60 < low < normal.min()
    assert normal.max() < high < 60
    assert entropy_range(histogram(flat.astype(np.float32))) == pytest.approx((flat.min(), flat.max()))
    zeros = np.maximum(flat, 0).astype(np.float32)
    assert entropy_range(histogram(zeros)) == pytest.approx((0, flat.max()))


def scale_of(tensor: str, proto: onnx.ModelProto) -> float:
    """The scale that a tensor is quantised with."""
    (node,) = (node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == tensor)
    (scale,) = (entry for entry in proto.graph.initializer if entry.name == node.input[1])
    return float(numpy_helper.to_array(scale))


def test_entropy_is_a_method_of_its_own() -> None:
    net = Net()
    net.head(net.conv(beginning(net), 16, 16, "c1"), 16)
    data = np.random.default_rng(0).standard_t(2, (24, 3, 8, 8)).astype(np.float32)
    entropy, minmax = (
        quantize(net.model(), data=data, method=method, runtime=ONE).model.proto for method in ("entropy", "minmax")
    )
    assert scale_of("x", entropy) < 0.7 * scale_of("x", minmax)


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [-2.0, -2.0, -2.0]])
def test_constant_activation_has_its_own_range(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert entropy_range(histogram(array)) == percentile_range(histogram(array), 99.0) == (values[0], values[0])


def test_percentile_of_negative_values() -> None:
    values = -np.random.default_rng(0).exponential(size=50_000).astype(np.float32) - 1
    expected = np.percentile(values, [0.5, 99.5])
    assert percentile_range(histogram(values, "percentile"), 99.0) == pytest.approx(expected, rel=0.01)


# ---------------------------------------------------------------- random graphs


@pytest.mark.parametrize("seed", some([4, 7, 20, 27, 41, 102], 2))
def test_random_graph(seed: int) -> None:
    """Seeds that the quantiser alone got wrong, or failed at."""
    source, data = random_model(np.random.default_rng(seed), (11, 13, 17))
    expected = Runner(Model(source), ONE)(data)
    for format_ in FORMATS:
        result = quantize(source, data=data, format=format_, runtime=ONE)  # type: ignore[arg-type]
        assert int8_convs(result.model.proto) == sum(node.op_type == "Conv" for node in source.graph.node)
        actual = Runner(result.model, ONE)(data)
        assert max(relative(value, actual[name]) for name, value in expected.items()) < 0.15
