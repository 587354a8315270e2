"""Parameters, MACs and FLOPs: the numbers of the papers, and a count by brute force."""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_examples import some

import onnxsep
from onnxsep.graph.counting import Operations, count_flops_paper004, count_macs
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.rewriting.report import InspectReport

RESNET50V2 = Path(__file__).resolve().parents[1] / "models" / "resnet50v2.py"
IMAGE_SIZE = 64


def load_script(path: Path) -> ModuleType:
    """Load a script of models/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def resnet() -> onnx.ModelProto:
    model: onnx.ModelProto = load_script(RESNET50V2).build(image_size=IMAGE_SIZE)
    return model


@pytest.fixture(scope="module")
def inspected(resnet: onnx.ModelProto) -> InspectReport:
    return onnxsep.inspect(resnet)


# --- paper 000 -----------------------------------------------------------------------------------------------------


# The README's test rewrites it in both modes, and finds the same counts printed.
@pytest.mark.parametrize(("mode", "parameters"), some([("depthwise", 13_559_498), ("spatial", 19_812_874)], 2))
def test_resnet50v2_shrinks_to_the_papers_counts(resnet: onnx.ModelProto, mode: str, parameters: int) -> None:
    """Paper 000, Table 2: sixteen 3 x 3 Convs, those of the residual blocks; the 7 x 7 stem stays."""
    result = onnxsep.rewrite(resnet, mode=mode, verify="none")
    totals = result.report.totals
    assert totals.parameters_before == 23_585_290
    assert totals.parameters_after == parameters
    # The file itself, counted without onnxsep.
    assert sum(math.prod(tensor.dims) for tensor in result.proto.graph.initializer) == parameters
    replaced = [row for row in result.report.convs if row.status == "replaced"]
    assert totals.replaced == len(replaced) == 16
    assert {row.weight_shape[2:] for row in replaced if row.weight_shape} == {(3, 3)}
    stem = result.report.convs[0]
    assert (stem.name, stem.status, stem.weight_shape) == ("conv1_conv", "left", (64, 3, 7, 7))
    changes = [(row.parameters_after or 0) - (row.parameters_before or 0) for row in replaced]
    assert totals.parameters_after - totals.parameters_before == sum(changes)
    # What inspect promises is what rewrite does.
    promised = onnxsep.inspect(resnet, modes=[mode]).totals
    assert promised.mode_convs == {mode: 16}
    assert promised.mode_parameters == {mode: parameters}
    assert promised.mode_macs == {mode: totals.macs_after}
    assert (promised.macs, promised.macs_unknown) == (totals.macs_before, 0)


def test_both_modes_one_after_the_other(resnet: onnx.ModelProto) -> None:
    """Depthwise, then its 3 x 3 factors split again: one channel each, so 3 + 3 parameters for 9."""
    first = onnxsep.rewrite(resnet, mode="depthwise", verify="none")
    second = onnxsep.rewrite(first.proto, mode="spatial", recurse=True, only=["*_depthwise"], verify="none")
    channels = 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512
    assert second.report.totals.replaced == 16
    assert second.report.totals.parameters_after == 13_559_498 - 3 * channels


def test_factors_of_equations_1_and_3(inspected: InspectReport) -> None:
    """P_s = 2 / n and P_d = M_d = 1 / n^2 + 1 / N_F for each of the sixteen Convs, strided ones included."""
    convs = [conv for conv in inspected.convs if conv.weight_shape and conv.weight_shape[2:] == (3, 3)]
    assert len(convs) == 16
    assert {conv.strides for conv in convs} == {(1, 1), (2, 2)}
    for conv in convs:
        assert conv.weight_shape is not None
        assert conv.weight_shape[0] == conv.weight_shape[1]
        equation_3 = Fraction(1, 9) + Fraction(1, conv.weight_shape[0])
        spatial, depthwise = conv.modes["spatial"], conv.modes["depthwise"]
        assert spatial.parameter_ratio == pytest.approx(float(Fraction(2, 3)), rel=1e-15)
        assert depthwise.parameter_ratio == pytest.approx(float(equation_3), rel=1e-15)
        assert depthwise.mac_ratio == pytest.approx(float(equation_3), rel=1e-15)
        assert spatial.parameters is not None
        assert depthwise.macs is not None
        assert conv.parameters is not None
        assert conv.macs is not None
        assert Fraction(spatial.parameters, conv.parameters) == Fraction(2, 3)
        assert Fraction(depthwise.macs, conv.macs) == equation_3


def single_conv(channels: int, kernel: int, size: int) -> onnx.ModelProto:
    """An unpadded Conv with stride 1 and ``channels`` in and out."""
    weight = np.ones((channels, channels, kernel, kernel), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("kernel", [2, 3, 5, 7])
@pytest.mark.parametrize("size", [8, 15, 32, 224])
def test_macs_of_equation_2(kernel: int, size: int) -> None:
    """M_s = 2 / n + 2 / (n (N - 2)) of an unpadded Conv.

    The paper writes it with n = 3 put into the second term; for any n that term is (n - 1) / (n (N - n + 1)).
    """
    (conv,) = onnxsep.inspect(single_conv(8, kernel, size)).convs
    spatial = conv.modes["spatial"]
    assert spatial.macs is not None
    assert conv.macs is not None
    n = Fraction(kernel)
    assert Fraction(spatial.macs, conv.macs) == 2 / n + (n - 1) / (n * (size - n + 1))
    if kernel == 3:
        assert Fraction(spatial.macs, conv.macs) == 2 / n + 2 / (n * (size - 2))
    assert conv.macs == 64 * kernel**2 * (size - kernel + 1) ** 2


# --- paper 004 -----------------------------------------------------------------------------------------------------


class Network:
    """A network in the making, of sizes only: the weights are placeholders without data, as in a skeleton."""

    def __init__(self, channels: int, size: int) -> None:
        self.model = helper.make_model(
            helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
        )
        self.graph = self.model.graph
        shape = [1, channels, size, size]
        self.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        self.last = "x"

    def weight(self, *dims: int) -> str:
        name = f"w{len(self.graph.initializer)}"
        tensor = self.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="left-out")
        return name

    def node(self, op_type: str, *weights: str, source: str | None = None, **attributes: Any) -> str:
        output = f"t{len(self.graph.node)}"
        inputs = [source or self.last, *weights]
        self.graph.node.append(helper.make_node(op_type, inputs, [output], **attributes))
        self.last = output
        return output

    def conv(self, inner: int, outer: int, kernel: int, *, stride: int = 1, bias: bool = False) -> str:
        weights = [self.weight(outer, inner, kernel, kernel), *([self.weight(outer)] if bias else [])]
        return self.node("Conv", *weights, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def norm(self, channels: int) -> str:
        return self.node("BatchNormalization", *(self.weight(channels) for _ in range(4)))

    def linear(self, inner: int, outer: int) -> str:
        return self.node("Gemm", self.weight(outer, inner), self.weight(outer), transB=1)

    def light(self) -> onnx.ModelProto:
        self.graph.output.append(helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None))
        return infer_shapes(skeleton(self.model))


VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)


def vgg19(*, pooled: bool) -> onnx.ModelProto:
    """VGG-19 with batch normalisation for 32 x 32 images: V1 of paper 004, or V2 (global pooling, one Linear)."""
    net = Network(3, 32)
    channels = 3
    for width in (*VGG19, 0) if not pooled else VGG19:
        if not width:
            net.node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
            continue
        net.conv(channels, width, 3, bias=True)
        net.norm(width)
        net.node("Relu")
        channels = width
    if pooled:
        net.node("GlobalAveragePool")
    net.node("Flatten")
    for inner, outer in [(512, 10)] if pooled else [(512, 4096), (4096, 4096), (4096, 10)]:
        net.linear(inner, outer)
        if outer != 10:
            net.node("Relu")
    return net.light()


def resnet101() -> onnx.ModelProto:
    """torchvision's ResNet-101 for 32 x 32 images: a 3 x 3 stem of stride 1, no max-pool, 100 classes (R1)."""
    net = Network(3, 32)
    net.conv(3, 64, 3)
    net.norm(64)
    net.node("Relu")
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 23), (512, 3)]):
        for block in range(blocks):
            source = net.last
            stride = 2 if stage and not block else 1
            for inner, outer, kernel in [(channels, width, 1), (width, width, 3), (width, 4 * width, 1)]:
                net.conv(inner, outer, kernel, stride=stride if kernel == 3 else 1)
                net.norm(outer)
                if outer == width:
                    net.node("Relu")
            branch = net.last
            if not block:
                net.last = source
                net.conv(channels, 4 * width, 1, stride=stride)
                source = net.norm(4 * width)
            net.node("Add", source, source=branch)
            net.node("Relu")
            channels = 4 * width
    net.node("GlobalAveragePool")
    net.node("Flatten")
    net.linear(2048, 100)
    return net.light()


@pytest.mark.parametrize(
    ("light", "parameters", "flops"),
    [
        (vgg19(pooled=False), 38_958_922, 417_652_736),  # V1
        (vgg19(pooled=True), 20_040_522, 398_744_576),  # V2
        (resnet101(), 42_697_380, 2_520_408_064),  # R1
    ],
    ids=["V1", "V2", "R1"],
)
def test_totals_of_paper_004(light: onnx.ModelProto, parameters: int, flops: int) -> None:
    assert count_parameters(light, "trainable") == parameters
    assert count_parameters(light, "paper004") == parameters
    assert count_flops_paper004(light) == Operations(flops, 0)


def test_flops_of_a_small_network_by_hand() -> None:
    net = Network(3, 8)
    net.conv(3, 4, 3)  # 64 positions x 4 x 3 x 9 = 6,912
    net.norm(4)  # 2 x 256 outputs = 512
    net.node("Relu")
    net.node("GlobalAveragePool")  # 256 inputs
    net.node("Flatten")
    net.linear(4, 5)  # 20
    light = net.light()
    assert count_macs(light) == Operations(6_912 + 20, 0)
    assert count_flops_paper004(light) == Operations(6_912 + 512 + 256 + 20, 0)
    assert count_parameters(light, "trainable") == 108 + 8 + 20 + 5
    assert count_parameters(light, "stored") == 108 + 16 + 20 + 5


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("axes", [[2, 3], [-2, -1], [-1, -2]])
@pytest.mark.parametrize("in_a_node", [False, True])
def test_a_mean_over_both_axes_is_global_pooling(opset: int, axes: list[int], in_a_node: bool) -> None:
    """PyTorch exports global pooling as ReduceMean; from opset 18 on the axes are an input."""
    net = Network(5, 6)
    net.model.opset_import[0].version = opset
    if opset < 18:
        net.node("ReduceMean", axes=axes)
    else:
        values = numpy_helper.from_array(np.array(axes), "axes")
        if in_a_node:
            net.graph.node.append(helper.make_node("Constant", [], ["axes"], value=values))
        else:
            net.graph.initializer.append(values)
        net.node("ReduceMean", "axes")
    assert count_flops_paper004(net.light()) == Operations(5 * 36, 0)


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3]])
def test_other_means_are_not(axes: list[int]) -> None:
    net = Network(5, 6)
    net.node("ReduceMean", axes=axes)
    assert count_flops_paper004(net.light()) == Operations(0, 0)


# --- every kind of node, by brute force ------------------------------------------------------------------------------


def infer(nodes: Sequence[onnx.NodeProto], **inputs: tuple[int | str, ...]) -> onnx.ModelProto:
    """Nodes with inputs of these shapes; the output is ``y``."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def macs_of(model: onnx.ModelProto) -> Operations:
    return count_macs(infer_shapes(skeleton(model)))


def run(model: onnx.ModelProto, **arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: array.astype(np.float32) for name, array in arrays.items()})[0])


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 4, 9), (6, 4, 3), {}),
        ((1, 4, 9, 7), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
        ((3, 2, 8, 9), (4, 2, 2, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ((1, 6, 8, 9), (6, 1, 3, 3), {"group": 6, "dilations": [1, 2]}),
        ((1, 2, 5, 6, 7), (3, 2, 3, 1, 2), {"strides": [1, 2, 3], "pads": [1, 0, 1, 1, 0, 0]}),
    ],
)
def test_macs_of_conv(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """With ones everywhere and padding counted like data, every output element is the sum of all its products."""
    model = infer([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], x=x, w=w)
    positions = run(model, x=np.ones(x), w=np.ones(w)).shape
    count = 0
    for _ in itertools.product(*(range(extent) for extent in positions)):
        for _ in itertools.product(*(range(extent) for extent in w[1:])):
            count += 1
    assert macs_of(model) == Operations(count, 0)
    if not any(key in attributes for key in ("pads", "auto_pad")):
        assert count == run(model, x=np.ones(x), w=np.ones(w)).sum()


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ((2, 4, 5), (4, 3, 3), {}),
        ((1, 4, 5, 3), (4, 3, 2, 3), {"group": 2, "strides": [2, 3], "output_padding": [1, 0]}),
        ((1, 2, 3, 4, 2), (2, 3, 2, 1, 3), {"dilations": [1, 1, 2]}),
    ],
)
def test_macs_of_conv_transpose(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """Without pads nothing is cut off: with ones everywhere the outputs add up to the number of products."""
    model = infer([helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)], x=x, w=w)
    assert macs_of(model) == Operations(int(run(model, x=np.ones(x), w=np.ones(w)).sum()), 0)


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [
        ("Gemm", (3, 4), (4, 5), {}),
        ("Gemm", (4, 3), (4, 5), {"transA": 1}),
        ("Gemm", (3, 4), (5, 4), {"transB": 1}),
        ("Gemm", (4, 3), (5, 4), {"transA": 1, "transB": 1}),
        ("MatMul", (3, 4), (4, 5), {}),
        ("MatMul", (2, 3, 4), (4, 5), {}),
        ("MatMul", (2, 1, 3, 4), (6, 4, 5), {}),
        ("MatMul", (4,), (4, 5), {}),
        ("MatMul", (3, 4), (4,), {}),
        ("MatMul", (4,), (4,), {}),
    ],
)
def test_macs_of_products(op_type: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """With ones everywhere, the sum of the outputs is the number of products."""
    model = infer([helper.make_node(op_type, ["x", "w"], ["y"], **attributes)], x=x, w=w)
    assert macs_of(model) == Operations(int(run(model, x=np.ones(x), w=np.ones(w)).sum()), 0)


def test_nodes_without_products_and_unknown_sizes() -> None:
    relu = helper.make_node("Relu", ["x"], ["a"])
    conv = helper.make_node("Conv", ["a", "w"], ["y"])
    assert macs_of(infer([relu, conv], x=("N", 2, 5, 5), w=(3, 2, 3, 3))) == Operations(3 * 3 * 54, 0)
    assert macs_of(infer([relu, conv], x=(1, 2, "H", 5), w=(3, 2, 3, 3))) == Operations(0, 1)
    custom = helper.make_node("Conv", ["a", "w"], ["y"], domain="custom")
    model = infer([relu, custom], x=(1, 2, 5, 5), w=(3, 2, 3, 3))
    model.opset_import.append(helper.make_opsetid("custom", 1))
    assert macs_of(model) == Operations(0, 0)


def test_nested_graphs_and_functions_count_once() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[1,2,5,5] x, float[3,2,3,3] w, bool c) => (float[1,3,3,3] y)
    <float[3,1,1,1] scale = {1.0, 2.0, 3.0}>
    {
        b = If (c) <
            then_branch = t () => (float[1,3,3,3] p) { p = Conv (x, w) },
            else_branch = e () => (float[1,3,3,3] q) <float[3,2,3,3] v> { q = Conv (x, w) }
        >
        y = f.scaled (b)
    }
    <domain: "f", opset_import: ["" : 17]>
    scaled (u) => (q) {
        half = Constant <value = float[2] {0.5, 0.25}> ()
        index = Constant <value = int64[2] {0, 1}> ()
        alone = Constant <value = float {2.0}> ()
        q = Conv (u, half)
    }""")
    light = infer_shapes(skeleton(model))
    # Both branches: 9 positions of 54 products each. The function's body has no sizes: it is not counted, and named.
    assert count_macs(light) == Operations(2 * 9 * 54, 1)
    # Floats with a dimension: scale and half; not the indices, not the scalar.
    assert count_parameters(light) == 3 + 2


def test_each_stored_tensor_counts_once() -> None:
    """Shared weights once; a quantised model counts its small integers, never indices."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4,5,5] x) => (float[1,4,5,5] y) {
        a = Conv (x, w)
        b = Conv (a, w)
        n1 = BatchNormalization (b, gamma, beta, mean, variance)
        n2 = BatchNormalization (n1, gamma, beta, mean, variance)
        v = Constant <value = float[4] {1, 2, 3, 4}> ()
        y = BatchNormalization (n2, gamma, beta, mean, v)
    }""")
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "w": np.ones((4, 4, 1, 1), np.float32),
        **{name: np.ones(4, np.float32) for name in ("gamma", "beta", "mean", "variance")},
        "quantised": np.ones((7, 2), np.int8),
        "half": np.ones((3,), np.float16),
        "indices": np.ones((11,), np.int64),
        "scalar": np.array(1.0, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    values = helper.make_tensor("s", TensorProto.FLOAT, [5], [1.0] * 5)
    indices = helper.make_tensor("s_indices", TensorProto.INT64, [5], range(5))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [100]))
    stored = 16 + 4 * 4 + 4 + 14 + 3 + 5  # of a sparse tensor the file holds the five values
    assert count_parameters(model) == count_parameters(skeleton(model)) == stored
    # The mean, the variance and v, each once though two or three nodes use them.
    assert count_parameters(model, "trainable") == stored - 3 * 4
