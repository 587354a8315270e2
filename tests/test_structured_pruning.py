"""Whole channels taken out of a graph: what goes with them, what stays, and what the result computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxsep.engine.families import filter_norms
from onnxsep.engine.sites import find_sites
from onnxsep.errors import OptionError
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.model.tensors import decode
from onnxsep.pruning import Goal, PruneResult, prune
from onnxsep.pruning.structured import prune_channels
from onnxsep.rewriting.verifying_weights import verify_pruned
from onnxsep.running.verification import Settings

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
Array = NDArray[Any]
RNG = np.random.default_rng(11)


def weight(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


KINDS = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}


def tensor(name: str, values: Array) -> onnx.TensorProto:
    """Also of bfloat16, which older onnx cannot store."""
    kind = KINDS[values.dtype.name]
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes())


def make(
    nodes: str, weights: Mapping[str, Array], *, x: str = "float[1,3,8,8] x", y: str = "float y", opset: int = 17
) -> onnx.ModelProto:
    """A model of the nodes, written in ONNX's text form, with initialisers."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    proto: onnx.ModelProto = onnx.parser.parse_model(f"{head}\ng ({x}) => ({y}) {{\n{nodes}\n}}")
    proto.graph.initializer.extend(tensor(name, values) for name, values in weights.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")  # the text form cannot leave it open
    inferred = shape_inference.infer_shapes(proto)
    proto.graph.output[0].CopyFrom(inferred.graph.output[0])
    return proto


def run(proto: onnx.ModelProto, seed: int = 0) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rng = np.random.default_rng(seed)
    initialisers = {tensor.name for tensor in proto.graph.initializer}
    feeds = {
        value.name: rng.standard_normal([dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]).astype(
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
        for value in proto.graph.input
        if value.name not in initialisers
    }
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def assert_close(left: onnx.ModelProto, right: onnx.ModelProto, tolerance: float = 1e-5) -> None:
    for one, other in zip(run(left), run(right), strict=True):
        assert one.shape == other.shape
        assert np.linalg.norm(one) > 0  # else every network would do
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(one)


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def reasons(result: PruneResult) -> dict[str, str]:
    return {layer.name: layer.reason + "".join(layer.notes) for layer in result.report.layers}


# --- what goes with a channel --------------------------------------------------------------------------------------
#
# Each network has "dead" channels: their filters, biases and shifts are zero, so they have no effect, and have the
# smallest norm. Pruned by exactly their share of the weights, the network must lose them, compute what the source
# computes, and have the shapes that are written here by hand.

CHAIN = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (5, 8, 3, 3)}
NETWORKS: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "chain": (
        "a = Conv(x, w0, b0)\n b = Relu(a)\n y = Conv(b, w1)",
        CHAIN,
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 6, 3, 3)},
    ),
    "batch normalisation, pooling, PRelu": (
        "a = Conv(x, w0)\n n = BatchNormalization(a, b0, b1, u, v)\n p = PRelu(n, s)\n"
        "q = MaxPool<kernel_shape = [2, 2]>(p)\n y = Conv(q, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "b1": (8,), "u": (8,), "v": (8,), "s": (8, 1, 1), "w1": (5, 8, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "b1": (6,), "u": (6,), "v": (6,), "s": (6, 1, 1), "w1": (5, 6, 3, 3)},
    ),
    "residual partners": (
        "a = Conv(x, w0, b0)\n b = Relu(a)\n c = Conv<pads = [1, 1, 1, 1]>(b, w2)\n d = Add(c, b)\n e = Relu(d)\n"
        "y = Conv(e, w1)",
        {**CHAIN, "w2": (8, 8, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 6, 3, 3), "w2": (6, 6, 3, 3)},
    ),
    "concat": (
        "a = Conv(x, w0, b0)\n c = Conv(x, w2)\n d = Concat<axis = 1>(c, a)\n y = Conv(d, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w2": (4, 3, 3, 3), "w1": (5, 12, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w2": (3, 3, 3, 3), "w1": (5, 9, 3, 3)},
    ),
    "depthwise with two filters for each channel": (
        "a = Conv(x, w0, b0)\n b = Relu(a)\n c = Conv<group = 8>(b, w2)\n y = Conv(c, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w2": (16, 1, 3, 3), "w1": (5, 16, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w2": (12, 1, 3, 3), "w1": (5, 12, 3, 3)},
    ),
    "Flatten and Gemm": (
        "a = Conv(x, w0, b0)\n b = AveragePool<kernel_shape = [3, 3], strides = [3, 3]>(a)\n f = Flatten(b)\n"
        "y = Gemm<transB = 1>(f, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (5, 32)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 24)},
    ),
    "global pooling and MatMul": (
        "a = Conv(x, w0, b0)\n m = ReduceMean<axes = [2, 3], keepdims = 0>(a)\n y = MatMul(m, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 5)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (6, 5)},
    ),
    "Reshape, constants that scale and shift": (
        "k = Constant<value = int64[2] {0, -1}>()\n a = Conv(x, w0)\n s = Mul(a, b0)\n t = Add(s, b1)\n"
        "g = GlobalAveragePool(t)\n f = Reshape(g, k)\n y = Gemm(f, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8, 1, 1), "b1": (1, 8, 1, 1), "w1": (8, 5)},
        {"w0": (6, 3, 3, 3), "b0": (6, 1, 1), "b1": (1, 6, 1, 1), "w1": (6, 5)},
    ),
    "squeeze and excitation": (
        "a = Conv(x, w0, b0)\n g = GlobalAveragePool(a)\n h = Conv(g, w2)\n i = Sigmoid(h)\n m = Mul(a, i)\n"
        "y = Conv(m, w1)",
        {**CHAIN, "w2": (8, 8, 1, 1)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 6, 3, 3), "w2": (6, 6, 1, 1)},
    ),
    "resizing and padding": (
        "r = Constant<value = float[0] {}>()\n k = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>()\n"
        "z = Constant<value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}>()\n"
        "a = Conv(x, w0, b0)\n u = Resize(a, r, k)\n p = Pad(u, z)\n y = Conv(p, w1)",
        CHAIN,
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 6, 3, 3)},
    ),
    "a shortcut that pads channels": (
        "i = Constant<value = int64[4] {0, 0, 0, 0}>()\n j = Constant<value = int64[4] {9, 99, 99, 99}>()\n"
        "k = Constant<value = int64[4] {0, 1, 2, 3}>()\n l = Constant<value = int64[4] {1, 1, 2, 2}>()\n"
        "z = Constant<value = int64[8] {0, 2, 0, 0, 0, 2, 0, 0}>()\n"
        "a = Conv(x, w0, b0)\n s = Slice(a, i, j, k, l)\n p = Pad(s, z)\n"
        "c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(a, w2)\n d = Add(p, c)\n y = Conv(d, w1)",
        {"w0": (8, 3, 3, 3), "b0": (8,), "w2": (12, 8, 3, 3), "w1": (5, 12, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w2": (10, 6, 3, 3), "w1": (5, 10, 3, 3)},
    ),
    "one weight for two Convs": (
        "a = Conv<pads = [1, 1, 1, 1]>(x, w0)\n b = Conv<pads = [1, 1, 1, 1]>(a, w2)\n c = Relu(b)\n"
        "d = Conv<pads = [1, 1, 1, 1]>(c, w2)\n e = Conv(d, w1)\n y = Relu(e)",
        {"w0": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w1": (5, 8, 3, 3)},
        {"w0": (6, 3, 3, 3), "w2": (6, 6, 3, 3), "w1": (5, 6, 3, 3)},
    ),
    "Dropout and several readers": (
        "a = Conv(x, w0, b0)\n n, mask = Dropout(a)\n c = Conv(n, w1)\n d = Conv(a, w2)\n y = Add(c, d)",
        {**CHAIN, "w2": (5, 8, 3, 3)},
        {"w0": (6, 3, 3, 3), "b0": (6,), "w1": (5, 6, 3, 3), "w2": (5, 6, 3, 3)},
    ),
}
# Which entries along the first axis are dead: the second and the last of each eight, ...
_DEAD = {
    ("concat", "w2"): (2,),
    ("depthwise with two filters for each channel", "w2"): (2, 3, 14, 15),
    ("a shortcut that pads channels", "w2"): (3, 9),
    ("Dropout and several readers", "w2"): (),  # it reads them
}


def dead_network(name: str) -> tuple[onnx.ModelProto, int, int]:
    """The network, its Conv weights, and how many stay."""
    nodes, before, after = NETWORKS[name]
    source = make(nodes, {key: weight(*shape) for key, shape in before.items()})
    for tensor in source.graph.initializer:
        values = decode(tensor).copy()
        if tensor.name == "v":
            values = np.abs(values) + 1
        elif tensor.name != "w1":
            dead: Sequence[int] = _DEAD.get((name, tensor.name), (1, 7))
            if tensor.name in ("u", "s"):
                dead = ()  # means and slopes of dead channels do not matter where the scale is zero
            axis = 1 if values.ndim == 4 and values.shape[0] == 1 else 0
            np.moveaxis(values, axis, 0)[list(dead)] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    convs = [tensor.name for tensor in source.graph.initializer if len(tensor.dims) == 4 and tensor.name[0] == "w"]
    sizes = [sum(int(np.prod(table[conv])) for conv in convs) for table in (before, after)]
    return source, sizes[0], sizes[1]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_dead_channels_go_and_nothing_is_lost(name: str, norm: Any, scope: Any) -> None:
    source, total, stay = dead_network(name)
    before = source.SerializeToString()
    result = prune(source, sparsity=round((total - stay) / total - 1e-6, 9), channels=True, norm=norm, scope=scope)
    assert source.SerializeToString() == before
    assert shapes(result.proto) == NETWORKS[name][2]
    assert result.report.totals.weights_after == stay
    assert_close(source, result.proto)
    onnx.checker.check_model(result.proto, full_check=True)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.1, 0.4, 0.6])
def test_result_equals_the_source_whose_removed_channels_nobody_reads(name: str, sparsity: float) -> None:
    nodes, before, _ = NETWORKS[name]
    values = {key: np.abs(weight(*shape)) if key == "v" else weight(*shape) for key, shape in before.items()}
    source = Model(make(nodes, values))
    sites = find_sites(source)
    done = prune_channels(source, sites, Goal(sparsity=sparsity), "global", "l1")
    assert done.totals.weights_after <= (1 - sparsity) * done.totals.weights_before + 1
    assert done.masked is not None
    unread = done.masked().proto
    assert shapes(unread) == shapes(source.proto)
    assert_close(unread, done.model.proto)
    masked = {tensor.name: decode(tensor) for tensor in unread.graph.initializer}
    changed = [key for key in values if not np.array_equal(masked[key], values[key])]
    assert changed  # only what reads channels, and only to zero
    for key in changed:
        assert (masked[key][masked[key] != values[key]] == 0).all()
        assert key.startswith("w")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("chain", "b"),
        ("batch normalisation, pooling, PRelu", "q"),
        ("residual partners", "e"),
        ("Flatten and Gemm", "b"),
        ("resizing and padding", "p"),
    ],
)
def test_result_equals_the_source_with_the_removed_channels_set_to_zero(name: str, tensor: str) -> None:
    """Set to zero where the last Conv or Gemm reads them; the residual partners' other reader keeps its own part."""
    nodes, before, _ = NETWORKS[name]
    values = {key: np.abs(weight(*shape)) if key == "v" else weight(*shape) for key, shape in before.items()}
    source = make(nodes, values)
    result = prune(source, sparsity=0.3, channels=True)
    first = next(decode(entry) for entry in result.proto.graph.initializer if entry.name == "w0")
    stays = np.array([any(np.array_equal(one, kept) for kept in first) for one in values["w0"]], np.float32)
    assert 0 < stays.sum() < 8
    masked = onnx.ModelProto()
    masked.CopyFrom(source)
    masked.graph.initializer.append(numpy_helper.from_array(stays.reshape(1, 8, 1, 1), "mask"))
    for index in reversed(range(len(masked.graph.node))):
        reader = masked.graph.node[index]
        if tensor in reader.input or (name == "residual partners" and reader.op_type == "Conv" and "b" in reader.input):
            read = reader.input[0]
            reader.input[0] = f"{read}_masked"
            masked.graph.node.insert(index, helper.make_node("Mul", [read, "mask"], [f"{read}_masked"]))
    assert_close(masked, result.proto)


def test_a_wrong_result_fails_the_verification() -> None:
    source = Model(make(*NETWORKS["chain"][:1], {key: weight(*shape) for key, shape in CHAIN.items()}))
    done = prune_channels(source, find_sites(source), Goal(sparsity=0.5), "layer", "l1")
    fine = verify_pruned(source, done.model, done.masked, done.dtypes, Settings())
    assert fine[1] == ""
    wrong = verify_pruned(source, done.model, lambda: source, done.dtypes, Settings())  # the source itself is no mask
    assert "is a bug of onnxsep" in wrong[1]


# --- which channels ------------------------------------------------------------------------------------------------


def test_norms_of_filters_differ() -> None:
    filters = np.array([[3.0, 0, 0, 0], [1, 1, 1, 1]]).reshape(2, 1, 2, 2)
    assert filter_norms(filters, "l1")[0].tolist() == [3, 4]
    assert filter_norms(filters, "l2")[0].tolist() == [3, 2]
    assert [filter_norms(filters, norm)[1] for norm in ("l1", "l2")] == [4, 2]
    kernels = {"w0": filters.astype(np.float32), "w1": weight(3, 2, 1, 1)}
    for norm, kept in (("l1", 1), ("l2", 0)):
        source = make("a = Conv(x, w0)\n y = Conv(a, w1)", kernels, x="float[1,1,5,5] x")
        result = prune(source, sparsity=0.4, channels=True, norm=norm)  # type: ignore[arg-type]
        assert np.array_equal(decode(result.proto.graph.initializer[0]), kernels["w0"][kept : kept + 1])


def test_norms_add_up_over_residual_partners() -> None:
    one, other = np.ones((4, 3, 1, 1), np.float32), np.ones((4, 3, 1, 1), np.float32)
    one[0], other[1], other[3] = 0.1, 0.05, 0.5  # sums: 1.1, 1.05, 2, 1.5
    weights = {"w0": one, "w2": other, "w1": weight(2, 4, 1, 1)}
    nodes = "a = Conv(x, w0)\n b = Conv(x, w2)\n c = Add(a, b)\n y = Conv(c, w1)"
    result = prune(make(nodes, weights), sparsity=0.25, channels=True)
    assert shapes(result.proto) == {"w0": (3, 3, 1, 1), "w2": (3, 3, 1, 1), "w1": (2, 3, 1, 1)}
    assert np.array_equal(decode(result.proto.graph.initializer[0]), one[[0, 2, 3]])


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_rounding_keeps_multiples(multiple: int) -> None:
    result = prune(DIGITS, sparsity=0.4, channels=True, multiple=multiple)
    assert result.report.totals.weights_after <= 0.6 * result.report.totals.weights_before
    for layer in result.report.layers:
        assert (layer.new_shape or layer.weight_shape or ())[0] % multiple == 0


def test_one_channel_stays() -> None:
    result = prune(DIGITS, sparsity=0.999, channels=True, verify="none")
    assert all(min(shape) >= 1 for shape in shapes(result.proto).values())
    with pytest.raises(OptionError, match=r"ask for a sparsity of at most 0\.99"):
        prune(DIGITS, sparsity=0.9999, channels=True)


def test_steps_set_the_count() -> None:
    result = prune(DIGITS, step=0.2, steps=3, channels=True)
    assert result.report.surviving == (147_686, 118_149, 94_519)
    assert 0.97 * 94_519 < result.report.totals.weights_after <= 94_519


def test_patterns_leave_filters_alone() -> None:
    result = prune(DIGITS, sparsity=0.1, channels=True, only="head_conv")
    assert shapes(result.proto)["head_conv.weight"][0] < 128
    others = [layer for layer in result.report.layers if layer.name != "head_conv"]
    assert all("not among only" in layer.reason for layer in others)


# --- what stays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        ("t = Transpose<perm = [0, 2, 3, 1]>(a)\n y = Relu(t)", "Transpose 't', which cannot be followed"),
        ("k = Constant<value = int64[3] {1, 8, 36}>()\n y = Reshape(a, k)", "no Reshape to [batch, -1]"),
        ("y = Softmax<axis = 1>(a)", "Softmax 'y', which cannot be followed"),
        ("s = Shape(a)\n c = Cast<to = 1>(s)\n d = Conv(a, w1)\n e = ReduceSum(c)\n y = Add(d, e)", "Shape 's'"),
        ("y = Conv<group = 2>(a, w2)", "has 2 groups"),
        ("p = PRelu(a, s)\n y = Conv(p, w1)", "has slopes that mean channels before"),
        ("y = Relu(a)", "they are in the output 'y' of the graph"),
        ("r = ReduceMean<axes = [1]>(a)\n y = Neg(r)", "other axes than the spatial ones"),
        ("d = Conv(a, w1)\n e = ReduceSum(w1)\n y = Add(d, e)", "'w1', which is also used in another way"),
    ],
)
def test_channels_that_cannot_be_followed(behind: str, words: str) -> None:
    weights = {"w0": weight(8, 3, 3, 3), "w1": weight(5, 8, 3, 3), "w2": weight(6, 4, 3, 3)}
    weights["s"] = weight(6)
    nodes = f"a = Conv(x, w0)\n{behind}"
    source = make(nodes, {key: values for key, values in weights.items() if key in nodes.replace("s = Shape(a)", "")})
    with pytest.raises(OptionError, match="no channels of the model can be removed") as caught:
        prune(source, sparsity=0.2, channels=True)
    assert words in str(caught.value)


def test_channels_of_the_input_stay() -> None:
    weights = {"w0": weight(8, 3, 3, 3), "w1": weight(5, 11, 3, 3)}
    nodes = "a = Conv<pads = [1, 1, 1, 1]>(x, w0)\n d = Concat<axis = 1>(a, x)\n y = Conv(d, w1)"
    result = prune(make(nodes, weights), sparsity=0.2, channels=True)
    found = shapes(result.proto)
    assert found["w0"][0] < 8
    assert found["w1"] == (5, found["w0"][0] + 3, 3, 3)


def test_convs_in_nested_graphs_stay_and_hold_what_they_read() -> None:
    nodes = """
    c = Constant<value = bool {1}>()
    a = Conv(x, w0)
    b = Conv(a, w1)
    t = If(c) <then_branch = p () => (float q) { q = Conv(b, w2) }, else_branch = r () => (float s) { s = Conv(b, w3) }>
    y = Relu(t)
    """
    weights = {"w0": weight(8, 3, 3, 3), "w1": weight(6, 8, 3, 3), "w2": weight(4, 6, 1, 1), "w3": weight(4, 6, 1, 1)}
    result = prune(make(nodes, weights), sparsity=0.2, channels=True)
    found = shapes(result.proto)
    assert found["w0"][0] < 8
    assert {key: found[key] for key in ("w2", "w3")} == {"w2": (4, 6, 1, 1), "w3": (4, 6, 1, 1)}
    assert found["w1"] == (6, found["w0"][0], 3, 3)
    assert "nested graph" in reasons(result)["q"]
    assert "'b'" in reasons(result)["b"]


# --- how it is stored ----------------------------------------------------------------------------------------------


def test_shapes_that_the_model_states_are_kept_true() -> None:
    source = make("a = Conv(x, w0, b0)\n b = Relu(a)\n y = Conv(b, w1)", {k: weight(*v) for k, v in CHAIN.items()})
    source = shape_inference.infer_shapes(source)
    source.ir_version = 3
    for tensor in source.graph.initializer:
        source.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    source.opset_import[0].version = 8
    del source.opset_import[1:]
    outputs = [value.SerializeToString() for value in source.graph.output]
    result = prune(source, sparsity=0.3, channels=True)
    kept = shapes(result.proto)["w0"][0]
    assert kept < 8
    stated = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*result.proto.graph.value_info, *result.proto.graph.input)
    }
    assert stated["a"] == stated["b"] == [1, kept, 6, 6]
    assert stated["w0"] == [kept, 3, 3, 3]
    assert stated["b0"] == [kept]
    assert stated["w1"] == [5, kept, 3, 3]
    assert stated["x"] == [1, 3, 8, 8]
    assert [value.SerializeToString() for value in result.proto.graph.output] == outputs
    assert [node.SerializeToString() for node in result.proto.graph.node] == [
        node.SerializeToString() for node in source.graph.node
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("spatial", [1, 3])
def test_types_and_dimensions(dtype: Any, spatial: int) -> None:
    kind = TensorProto.DataType.Name(KINDS[np.dtype(dtype).name]).lower()
    kernel, size = (3,) * spatial, ",".join(["6"] * spatial)
    weights = {"w0": weight(8, 3, *kernel), "b0": weight(8), "w1": weight(5, 8, *kernel)}
    source = make(
        "a = Conv(x, w0, b0)\n b = Relu(a)\n y = Conv(b, w1)",
        {key: values.astype(dtype) for key, values in weights.items()},
        x=f"{kind}[1,3,{size}] x",
        y=f"{kind} y",
    )
    result = prune(source, sparsity=0.4, channels=True)
    kept = shapes(result.proto)["w0"][0]
    assert shapes(result.proto)["w1"] == (5, kept, *kernel)
    assert kept < 8
    assert result.report.verification.ran, result.report.verification.reason
    order = np.argsort(np.abs(weights["w0"].astype(dtype).astype(np.float64)).reshape(8, -1).sum(axis=1))
    stays = sorted(order[8 - kept :])
    assert np.array_equal(decode(result.proto.graph.initializer[0]), weights["w0"].astype(dtype)[stays])


def test_weights_in_constant_nodes() -> None:
    source = make("a = Conv(x, w0, b0)\n b = Relu(a)\n y = Conv(b, w1)", {k: weight(*v) for k, v in CHAIN.items()})
    expected = prune(source, sparsity=0.3, channels=True)
    tensors = list(source.graph.initializer)
    for tensor in tensors:
        source.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del source.graph.initializer[:]
    result = prune(source, sparsity=0.3, channels=True)
    found = {node.output[0]: decode(node.attribute[0].t) for node in result.proto.graph.node[:3]}
    for tensor in expected.proto.graph.initializer:
        assert np.array_equal(found[tensor.name], decode(tensor))


def test_external_data(tmp_path: Path) -> None:
    source = make("a = Conv(x, w0, b0)\n b = Relu(a)\n y = Conv(b, w1)", {k: weight(*v) for k, v in CHAIN.items()})
    expected = prune(source, sparsity=0.3, channels=True)
    onnx.save(source, tmp_path / "in.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = prune(tmp_path / "in.onnx", sparsity=0.3, channels=True)
    result.save(tmp_path / "out.onnx")
    saved = load(tmp_path / "out.onnx")
    for tensor, other in zip(saved.proto.graph.initializer, expected.proto.graph.initializer, strict=True):
        assert np.array_equal(read_tensor(saved, tensor), decode(other))


# --- the whole -----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    done = command_line.run("prune", DIGITS, out, "--sparsity", "0.5", "--channels", "--round", "8")
    assert done.returncode == 0, done.stderr
    assert "equals the original whose removed channels nobody reads" in done.stdout
    assert "no speed" not in done.stdout  # that is said of zeros
    assert out.stat().st_size < 0.55 * DIGITS.stat().st_size
    onnx.checker.check_model(str(out), full_check=True)


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet20_ts",
        "cifar10_resnet20_dynamo",
        "cifar10_resnet32_ts_bn_op10",
        "cifar10_resnet32_dynamo_ext",
        "cifar10_resnet8_tf2onnx",
        "meshnet3d_t1_ts",
        "mnist_cntk",
        "ppocr_v2_det_paddle",
        "squeezenet_fp16_caffe2",
        "subpixel_sr_pt12",
        "ultraface_rfb640_pt13",
    ],
)
def test_models_of_other_exporters(shared: Path, name: str) -> None:
    result = prune(shared / "models" / f"{name}.onnx", sparsity=0.2, channels=True)
    totals = result.report.totals
    assert totals.weights_after <= 0.8 * totals.weights_before + 1
    assert totals.macs_after < totals.macs_before or totals.macs_unknown
    assert result.report.verification.ran
    assert "equals the original" in result.report.verification.notes[-1]


def test_both_exporters_give_the_same_channels(shared: Path) -> None:
    """One trained network, exported twice: other operators around the shortcuts, constants in other places."""
    found = [
        [layer.new_shape for layer in prune(shared / "models" / name, sparsity=0.3, channels=True).report.layers]
        for name in ("cifar10_resnet20_ts.onnx", "cifar10_resnet20_dynamo.onnx")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 19
