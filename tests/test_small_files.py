"""What quantize writes has no padding, computes the same to the last bit, and is fused by the runtime as before."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import run
from marked import marked
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.graph.marks import KEY, Marks
from onnxsep.quantization import api
from onnxsep.quantization.compacting import compact
from onnxsep.quantization.settings import Settings
from onnxsep.running.runtime import RuntimeOptions

ONE = RuntimeOptions(threads=1)
CIFAR = Path(__file__).resolve().parents[1] / "models" / "cifar"
DATA = np.random.default_rng(3).standard_normal((24, 4, 8, 8)).astype(np.float32)
Array = np.ndarray[Any, Any]


class Net:
    """Nodes and weights that become a model of one input, x [n, 4, 8, 8], and one output, y."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> str:
        values = self._random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, kind: str, reads: list[str], makes: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, reads, [makes], name=f"{makes}_node", **attributes))
        return makes

    def conv(self, reads: str, makes: str, *shape: int, bias: bool = True, **attributes: Any) -> str:
        inputs = [reads, self.weight(f"{makes}_w", *shape), *([self.weight(f"{makes}_b", shape[0])] if bias else [])]
        spelled = {"dilations": [1, 1], "group": 1, "kernel_shape": shape[2:], "pads": [s // 2 for s in shape[2:]] * 2}
        return self.add("Conv", inputs, makes, **{**spelled, "strides": [1, 1], **attributes})

    def head(self, reads: str, channels: int) -> None:
        flat = self.add("Flatten", [self.add("GlobalAveragePool", [reads], "pooled")], "flat", axis=1)
        inputs = [flat, self.weight("fc_w", 3, channels), self.weight("fc_b", 3)]
        self.add("Gemm", inputs, "y", alpha=1.0, beta=1.0, transB=1)

    def model(self, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])]
        if ir < 4:  # every initialiser is listed among the inputs
            inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in self.weights]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "small", inputs, [output], self.weights)
        imports = [helper.make_opsetid("", opset), *([helper.make_opsetid("local", 1)] if self.functions else [])]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=self.functions)


def residual(opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    net = Net()
    first = net.add("Relu", [net.conv("x", "c1", 8, 4, 3, 3)], "r1")
    second = net.conv(net.conv(first, "c2", 8, 1, 3, 3, group=8, bias=False), "c3", 8, 8, 1, 1)
    net.head(net.add("Relu", [net.add("Add", [first, second], "s")], "r2"), 8)
    return net.model(opset, ir)


def branches() -> onnx.ModelProto:
    net = Net()
    first = net.add("Relu", [net.conv("x", "c1", 8, 4, 3, 3, strides=[2, 2])], "r1")
    left = net.add("Relu", [net.conv(first, "c2", 4, 8, 1, 1)], "r2")
    pooled = net.add("MaxPool", [first], "p", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    right = net.conv(pooled, "c3", 4, 8, 3, 3, dilations=[2, 2], pads=[2] * 4)
    net.head(net.conv(net.add("Concat", [left, right], "cat", axis=1), "c4", 8, 8, 1, 1), 8)
    return net.model()


def gates() -> onnx.ModelProto:
    """A Mul of two branches, a transposed Conv, a MatMul, an average pool, and a Conv whose output two nodes read."""
    net = Net()
    first = net.conv("x", "c1", 8, 4, 3, 3)
    gate = net.add("Sigmoid", [net.conv(first, "c2", 8, 8, 1, 1)], "g")
    up = [net.add("Mul", [first, gate], "m"), net.weight("t_w", 8, 8, 2, 2), net.weight("t_b", 8)]
    pooled = net.add("AveragePool", [net.add("ConvTranspose", up, "t", strides=[2, 2])], "p", kernel_shape=[16, 16])
    flat = net.add("Flatten", [pooled], "flat")
    net.add("MatMul", [flat, net.weight("mm_w", 8, 3)], "y")
    return net.model()


def nested() -> onnx.ModelProto:
    """A branch that reads what a quantised layer computes."""
    net = Net()
    first = net.add("Relu", [net.conv("x", "c1", 8, 4, 3, 3)], "r1")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("inner", "other")]
    then = helper.make_graph([helper.make_node("Neg", ["r1"], ["inner"], "neg")], "t", [], outputs[:1])
    other = helper.make_graph([helper.make_node("Abs", ["r1"], ["other"], "abs")], "e", [], outputs[1:])
    net.weights.append(numpy_helper.from_array(np.array(2.0, np.float32), "limit"))
    net.add("Less", [net.add("ReduceMax", ["x"], "highest", keepdims=0), "limit"], "low")
    net.nodes.append(helper.make_node("If", ["low"], ["chosen"], "choose", then_branch=then, else_branch=other))
    net.head(net.conv(net.add("Add", [first, "chosen"], "s"), "c2", 8, 8, 1, 1), 8)
    return net.model()


def functions() -> onnx.ModelProto:
    net = Net()
    nodes = [helper.make_node("Conv", ["a", "b"], ["c"], "inner", pads=[1] * 4), helper.make_node("Relu", ["c"], ["d"])]
    net.functions.append(
        helper.make_function("local", "Block", ["a", "b"], ["d"], nodes, [helper.make_opsetid("", 17)])
    )
    net.nodes.append(helper.make_node("Block", ["x", net.weight("w", 8, 4, 3, 3)], ["h"], "call", domain="local"))
    net.head("h", 8)
    return net.model()


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual,
    "IR 3, opset 9": lambda: residual(9, 3),
    "branches": branches,
    "gates": gates,
    "nested": nested,
    "functions": functions,
}
FORMS = ("qdq uint8 channel", "qdq int8 tensor", "qoperator uint8 channel")


def options(form: str) -> dict[str, Any]:
    format_, activations, weights = form.split()
    return {"format": format_, "activations": activations, "per_channel": weights == "channel"}


def computed(proto: onnx.ModelProto, folder: Path, *, optimise: bool = True) -> tuple[list[Array], Counter[str]]:
    """The outputs for the data, and how many nodes of each kind the runtime makes of the model."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    if not optimise:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found = [np.asarray(output) for output in session.run(None, {"x": DATA})]
    return found, Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


class Padded(NamedTuple):
    """What was quantised, and the result as it is before it is made small."""

    source: onnx.ModelProto
    result: onnx.ModelProto

    def small(self, **given: Any) -> onnx.ModelProto:
        copy = onnx.ModelProto.FromString(self.result.SerializeToString())
        compact(copy, self.source, Settings(**given))
        return copy


def padded(source: onnx.ModelProto, data: Array, **given: Any) -> Padded:
    """Quantise, and leave the padding there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "compact", lambda *_: None)
        result = onnxsep.quantize(source, data=data, runtime=ONE, **given).proto
    return Padded(source, result)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_size_changes(name: str, form: str, tmp_path: Path) -> None:
    before = padded(MODELS[name](), DATA, **options(form))
    for names in ("keep", "short"):
        result = before.small(format=form.split()[0], names=names)
        assert result.ByteSize() < (0.85 if form.startswith("qdq") else 0.95) * before.result.ByteSize()
        for optimise in (True, False):
            expected, actual = (computed(one, tmp_path, optimise=optimise) for one in (before.result, result))
            for one, other in zip(expected[0], actual[0], strict=True):
                np.testing.assert_array_equal(one, other)
            # Older runtimes keep DequantizeLinear of an int32 bias where they do not fuse the layer.
            fewer = expected[1] - actual[1]
            assert not optimise or (actual[1] <= expected[1] and not {*fewer} - {"DequantizeLinear"})
        ends = [[one.name for one in field] for field in (result.graph.input, result.graph.output)]
        assert ends == [["x"], ["y"]]
        onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
        again = Padded(before.source, result).small(format=form.split()[0], names=names)
        assert again.ByteSize() == result.ByteSize()


@functools.cache
def resnet20(form: str = FORMS[0], *, old: bool = False) -> Padded:
    """ResNet-20 in depthwise form, quantised; ``old``: each of its nodes says for itself how it was made."""
    source = onnxsep.rewrite(CIFAR / "cifar10_resnet20.onnx", mode="depthwise", verify="none").proto
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    fast = {"equalize": False, "bias_correction": False, "samples": 2}
    return padded(marked(source) if old else source, images, **fast, **options(form))


@pytest.mark.parametrize(
    ("form", "given", "most"),
    [
        (0, {}, 63_000),
        (0, {"names": "short"}, 58_500),
        (0, {"biases": "int32"}, 68_500),
        (2, {"format": "qoperator"}, 57_000),
        (2, {"format": "qoperator", "names": "short"}, 55_200),
    ],
    ids=str,
)
def test_files_of_resnet20_are_small(form: int, given: dict[str, Any], most: int) -> None:
    """38,944 bytes of them are int8 weights; 75,317 and 62,856 (qoperator) before."""
    found = resnet20(FORMS[form])
    assert found.result.ByteSize() > most + 5_000
    assert found.small(**given).ByteSize() <= most


@pytest.mark.parametrize("names", ["keep", "short"])
def test_the_runtime_fuses_every_layer(names: str, tmp_path: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    proto = resnet20().small(names=names)
    onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 39  # 18 pairs, the first one, two shortcuts
    assert (kinds["QLinearAdd"], kinds["QGemm"]) == (9, 1)
    assert not {"Conv", "Add", "Gemm"} & kinds.keys()


def test_biases_are_floats_or_integers_as_asked() -> None:
    before = padded(residual(), DATA, equalize=False)

    def types(**given: Any) -> set[int]:
        proto = before.small(**given)
        made = {
            name: node.input[0]
            for node in proto.graph.node
            if node.op_type == "DequantizeLinear"
            for name in node.output
        }
        stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
        readers = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
        return {stored[made.get(node.input[2], node.input[2])] for node in readers}

    assert types() == types(biases="float") == {TensorProto.FLOAT}
    assert types(biases="int32") == {TensorProto.INT32}
    with pytest.raises(OptionError, match="qoperator"):
        onnxsep.quantize(residual(), data=DATA, format="qoperator", biases="float")


def test_biases_stay_integers_where_the_oldest_runtime_would_not_fuse_floats() -> None:
    """Since opset 21 DequantizeLinear has blocks, and ONNX Runtime 1.21 takes each channel's scale for those."""
    for per_channel in (True, False):
        before = padded(residual(21), DATA, equalize=False, per_channel=per_channel)
        counts = []
        for given in ({}, {"biases": "float"}):
            graph = before.small(**given).graph
            integers = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT32}
            counts.append(sum(node.op_type == "DequantizeLinear" and node.input[0] in integers for node in graph.node))
        assert counts == [3 if per_channel else 0, 0]  # two Convs and the Gemm


def test_a_bias_that_float32_cannot_hold_stays_an_integer() -> None:
    """So large beside the scales of input and weight that 24 bits do not hold it."""
    net = Net()
    net.conv("x", "c1", 4, 4, 1, 1)
    net.head(net.add("Relu", ["c1"], "r"), 4)
    source = net.model()
    (bias,) = [one for one in source.graph.initializer if one.name == "c1_b"]
    bias.CopyFrom(numpy_helper.from_array(np.array([3001.7, 1, 2, 3], np.float32), "c1_b"))
    proto = onnxsep.quantize(source, data=DATA, equalize=False, bias_correction=False, runtime=ONE).proto
    kinds = {tensor.data_type for tensor in proto.graph.initializer if list(tensor.dims) == [4]}
    assert TensorProto.INT32 in kinds


def test_attributes_that_equal_defaults_are_left_out_and_others_stay() -> None:
    result = onnxsep.quantize(branches(), data=DATA, runtime=ONE).proto
    nodes = {node.name: node for node in result.graph.node if node.name}
    given = {
        name: {one.name: helper.get_attribute_value(one) for one in node.attribute} for name, node in nodes.items()
    }
    assert given["c1_node"] == {"pads": [1] * 4, "strides": [2, 2]}
    assert given["c2_node"] == {}
    assert given["c3_node"] == {"dilations": [2, 2], "pads": [2] * 4}
    assert given["p_node"] == {"kernel_shape": [3, 3], "pads": [1] * 4}
    assert given["cat_node"] == {"axis": 1}  # it has no default
    assert given["y_node"] == {"transB": 1}
    assert given["flat_node"] == {}


def test_no_tensor_and_no_conversion_is_there_twice() -> None:
    for name in ("residual", "branches", "gates"):
        graph = padded(MODELS[name](), DATA, equalize=False).small(names="short").graph
        stored = [(one.data_type, tuple(one.dims), numpy_helper.to_array(one).tobytes()) for one in graph.initializer]
        assert len(stored) == len(set(stored))
        convert = [
            (node.op_type, *node.input, *(one.SerializeToString() for one in node.attribute))
            for node in graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] != "y"
        ]
        assert len(convert) == len(set(convert))


def names_of(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in (*node.input, *node.output) if name}


def test_names_that_stay() -> None:
    source = residual()
    source.graph.node[0].metadata_props.add(key="mine", value="stays")
    source.graph.value_info.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT, ["n", 8, 8, 8]))
    before = padded(source, DATA, equalize=False)
    keep, short = before.small().graph, before.small(names="short").graph
    assert {"r1", "c2", "c3", "pooled", "flat", "c1_b", "fc_b"} <= names_of(keep)
    assert {node.name for node in keep.node} >= {"c1_node", "c2_node", "c3_node", "y_node"}
    assert [one.value for node in keep.node for one in node.metadata_props] == ["stays"]
    assert [one.name for one in keep.value_info] == ["r1"]
    assert all(len(name) <= 2 for name in names_of(short) - {"x", "y"})
    assert not any(node.name or node.metadata_props or node.doc_string for node in short.node)
    assert not short.value_info


def test_short_names_in_nested_graphs() -> None:
    graph = onnxsep.quantize(nested(), data=DATA, names="short", runtime=ONE).proto.graph
    (choose,) = [node for node in graph.node if node.op_type == "If"]
    for attribute in choose.attribute:
        assert not attribute.g.node[0].name
        assert len(attribute.g.output[0].name) == 1
        assert attribute.g.output[0].name == attribute.g.node[0].output[0]
        assert attribute.g.node[0].input[0] in names_of(graph)


def test_names_of_what_rewrite_made_in_between_are_ours() -> None:
    proto = resnet20().small()
    assert not any(name.endswith("_depthwise") for name in names_of(proto.graph))
    assert {"stage1_block1_relu1_out", "stage1_block1_relu2_out"} <= names_of(proto.graph)
    marks = Marks(proto)
    made = [node for node in proto.graph.node if marks.of(0, node)]
    assert len(made) == 36
    assert {marks.of(0, node)["mode"] for node in made} == {"depthwise"}
    assert not any(node.metadata_props for node in proto.graph.node)


def test_marks_of_earlier_versions_are_taken_over() -> None:
    now, before = resnet20().small(), resnet20(old=True).small()
    assert now == before
    assert [one.key for one in now.metadata_props].count(KEY) == 1


@pytest.mark.parametrize("names", ["keep", "short"])
def test_layers_in_float_are_not_split_again(names: Any) -> None:
    once = onnxsep.rewrite(residual(), mode="spatial", include_first=True, rank=4, force=True, verify="none")
    assert once.report.totals.replaced
    mixed = onnxsep.quantize(once.model, data=DATA, exclude="c1*", names=names, runtime=ONE)
    for mode in ("spatial", "pointwise", "depthwise"):
        again = onnxsep.rewrite(mixed.model, mode=mode, include_first=True, force=True, verify="none")
        assert again.report.totals.replaced == 0
        assert again.proto == mixed.proto


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["residual", "branches"])
def test_layers_are_compared_whatever_their_names_are(name: str, form: str) -> None:
    source = MODELS[name]()
    found = []
    for names in ("keep", "short"):
        result = onnxsep.quantize(source, data=DATA, names=names, layers=True, runtime=ONE, **options(form))
        assert result.report.layers is not None
        found.append(result.report.layers)
        assert result.report.layers.convs_compared == result.report.layers.convs
    assert found[0].tensors_compared == found[1].tensors_compared
    assert [row.relative for row in found[0].rows] == [row.relative for row in found[1].rows]


@pytest.mark.parametrize("names", ["keep", "short"])
def test_integers_at_the_ends(names: Any) -> None:
    proto = onnxsep.quantize(residual(), data=DATA, int8_io=True, names=names, runtime=ONE).proto
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [one.name for one in (*session.get_inputs(), *session.get_outputs())] == ["x", "y"]
    assert {one.type for one in (*session.get_inputs(), *session.get_outputs())} == {"tensor(uint8)"}
    assert {one.key for one in proto.metadata_props} == {
        "onnxsep.quantization.input.x",
        "onnxsep.quantization.output.y",
    }


def test_quantizing_again_is_refused_as_before() -> None:
    once = onnxsep.quantize(residual(), data=DATA, names="short", runtime=ONE)
    with pytest.raises(onnxsep.OnnxsepError, match="quantised already"):
        onnxsep.quantize(once.model, data=DATA, runtime=ONE)


def test_many_texts_of_nodes_are_told_of() -> None:
    source = residual()
    for node in source.graph.node:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File, line, module " * 20)
    kept = onnxsep.quantize(source, data=DATA, runtime=ONE)
    assert any("metadata and texts of your nodes" in note for note in kept.report.notes)
    short = onnxsep.quantize(source, data=DATA, names="short", runtime=ONE)
    assert not any("metadata and texts" in note for note in short.report.notes)
    assert short.proto.ByteSize() < 0.5 * kept.proto.ByteSize()


def test_the_option_of_before_is_refused(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=DATA)
    given = ["quantize", tmp_path / "in.onnx", tmp_path / "out.onnx", "--data", tmp_path / "data.npz"]
    done = run(*given, "--keep-names")
    assert done.returncode == 2
    assert "--keep-names" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert run(*given, "--names", "shorter").returncode != 0
    assert run(*given, "--names", "short", "--quiet").returncode == 0
