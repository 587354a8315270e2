"""Gemm and MatMul as what a mode replaces: exact at full rank, wherever the weight is, or left with the reason."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from marked import marked
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep import Mode, Result
from onnxsep.algebra.linalg import squared_singular_values, truncated_svd
from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Options, make_plan, takes_new_bias
from onnxsep.engine.sites import find_sites
from onnxsep.engine.surgery import replace_matches
from onnxsep.graph.first_convs import first_convs
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import INPUT, ConvLayer, Layer
from onnxsep.layers.rank import Rank, RankAxis, RankPolicy
from onnxsep.modes.base import Factors, Task
from onnxsep.rewriting.report import ConvReport

Array = npt.NDArray[Any]
FLOAT = TensorProto.FLOAT
IN, OUT = 6, 9  # asymmetric, so that swapped axes show
TYPES: dict[str, tuple[Any, int, float]] = {
    "float32": (np.float32, TensorProto.FLOAT, 1e-5),
    "float64": (np.float64, TensorProto.DOUBLE, 1e-12),
    "float16": (np.float16, TensorProto.FLOAT16, 5e-3),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16, 4e-2),
}


class Narrow(Mode):
    """A layer with fewer outputs, then one back to all: the truncated SVD of the matrix."""

    name = "narrow"
    summary = "two matrix products"
    linear_layers = True

    def accepts(self, conv: Conv) -> str | None:
        return None if conv.dims == 0 else "a Conv"

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        return None if chosen else RankAxis("channels", full=min(conv.in_channels, conv.out_channels), paper=2)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        first = conv.pointwise(conv.in_channels, rank[0], bias=False)
        last = conv.pointwise(rank[0], conv.out_channels, bias=conv.bias)
        return ConvLayer("in", INPUT, first), ConvLayer("out", "in", last)

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        return squared_singular_values(task.weight[None])

    def factorize(self, task: Task, rank: Rank) -> Factors:
        assert task.weight.shape == (task.conv.out_channels, task.conv.in_channels)
        u, s, vt = truncated_svd(task.weight, *rank)
        return Factors([s[:, None] * vt, u])

    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        first, last = factors.weights
        product: Array = last @ first
        return product


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(values(*shape, seed=seed), name)


def gemm(x: str, w: str, y: str, c: str | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Gemm", [x, w, *([] if c is None else [c])], [y], name=f"gemm_{y}", **attributes)


def matmul(x: str, w: str, y: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, w], [y], name=f"matmul_{y}")


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[int | str] = (5, IN),
    kind: int = FLOAT,
    outputs: Sequence[str] = ("y",),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with the input x."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid("local", 1) for _ in functions[:1])]
    proto = helper.make_graph(
        nodes, "g", [value("x", shape, kind)], [value(name, None, kind) for name in outputs], list(initializers)
    )
    made = helper.make_model(proto, opset_imports=imports, functions=functions, ir_version=8)
    for output, inferred in zip(made.graph.output, onnx.shape_inference.infer_shapes(made).graph.output, strict=True):
        output.CopyFrom(inferred)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(proto: onnx.ModelProto, x: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {"x": x})
    return outputs


def rewrite(proto: onnx.ModelProto, rank: str | float = "full", **options: Any) -> Result:
    """Replace everything at any cost."""
    settings: dict[str, Any] = {"verify": "none", "force": True, "include_first": True, **options}
    return onnxsep.rewrite(proto, mode=Narrow(), rank=rank, **settings)


def rows(result: Result) -> dict[str, ConvReport]:
    return {row.name: row for row in result.report.convs}


def assert_same(source: onnx.ModelProto, result: onnx.ModelProto, x: Array, tolerance: float = 1e-5) -> None:
    onnx.checker.check_model(result, full_check=True)
    for expected, actual in zip(run(source, x), run(result, x), strict=True):
        assert expected.shape == actual.shape
        assert expected.dtype == actual.dtype
        difference = np.linalg.norm(expected.astype(np.float64) - actual.astype(np.float64))
        assert difference <= tolerance * np.linalg.norm(expected.astype(np.float64))


def weight_shapes(proto: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Operator and stored shape of the weight, of every Gemm and MatMul of the main graph."""
    stored = {one.name: tuple(one.dims) for one in proto.graph.initializer}
    return [(node.op_type, stored[node.input[1]]) for node in proto.graph.node if node.op_type in ("Gemm", "MatMul")]


# ---------------------------------------------------------------- forms of one layer


def one_gemm(trans_b: int, bias: tuple[int, ...] | None, kind: int = FLOAT, opset: int = 17) -> onnx.ModelProto:
    weight = values(OUT, IN) if trans_b else values(IN, OUT)
    arrays = {"w": weight} if bias is None else {"w": weight, "c": values(*bias, seed=1)}
    numpy_type = next(one for one, number, _ in TYPES.values() if number == kind)
    initializers = [
        helper.make_tensor(name, kind, array.shape, array.astype(numpy_type).tobytes(), raw=True)
        for name, array in arrays.items()
    ]
    node = gemm("x", "w", "y", "c" if bias else None, **({"transB": 1} if trans_b else {}))
    return model([node], initializers, kind=kind, opset=opset)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("bias", [None, (OUT,), (1, OUT)], ids=str)
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_at_full_rank_is_exact(trans_b: int, bias: tuple[int, ...] | None, dtype: str) -> None:
    numpy_type, kind, tolerance = TYPES[dtype]
    source = one_gemm(trans_b, bias, kind)
    result = rewrite(source, verify="local")
    assert result.report.verification.ran
    assert result.report.verification.relative is not None
    assert result.report.verification.relative <= tolerance
    shapes = [(6, IN), (OUT, 6)] if trans_b else [(IN, 6), (6, OUT)]
    assert weight_shapes(result.proto) == [("Gemm", shapes[0]), ("Gemm", shapes[1])]
    first, last = result.proto.graph.node
    assert [entry.i for node in (first, last) for entry in node.attribute if entry.name == "transB"] == [1, 1] * trans_b
    assert len(first.input) == 2
    assert list(last.input[2:]) == ([] if bias is None else ["c"])
    assert {one.data_type for one in result.proto.graph.initializer} == {kind}
    assert_same(source, result.proto, values(5, IN, seed=3).astype(numpy_type), tolerance)
    assert rows(result)["gemm_y"].rank == (6,)


def test_bfloat16_gemm_keeps_its_type() -> None:
    source = one_gemm(1, (OUT,), TensorProto.BFLOAT16)
    result = rewrite(source, verify="full")
    assert {one.data_type for one in result.proto.graph.initializer} == {TensorProto.BFLOAT16}
    error = rows(result)["gemm_y"].weight_error
    assert error is not None
    assert error < 2e-2
    assert result.report.verification.relative is not None
    assert result.report.verification.relative < 4e-2


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_of_old_operator_sets(trans_b: int, opset: int) -> None:
    """Below 11 a Gemm needs its C, so the product in front is a MatMul there."""
    source = one_gemm(trans_b, (OUT,), opset=opset)
    result = rewrite(source, verify="local")
    assert [node.op_type for node in result.proto.graph.node] == ["Gemm" if opset >= 11 else "MatMul", "Gemm"]
    assert_same(source, result.proto, values(5, IN, seed=3))
    assert result.report.verification.relative is not None
    assert result.report.verification.relative < 1e-5


@pytest.mark.parametrize("shape", [(IN,), (5, IN), (2, 3, IN), (2, 3, 4, IN)], ids=str)
@pytest.mark.parametrize("opset", [9, 17])
def test_matmul_at_full_rank_is_exact(shape: tuple[int, ...], opset: int) -> None:
    source = model([matmul("x", "w", "y")], [tensor("w", IN, OUT)], shape=shape, opset=opset)
    result = rewrite(source, verify="local")
    assert weight_shapes(result.proto) == [("MatMul", (IN, 6)), ("MatMul", (6, OUT))]
    assert_same(source, result.proto, values(*shape, seed=3))
    assert result.report.verification.relative is not None
    assert result.report.verification.relative < 1e-5


@pytest.mark.parametrize("trans_b", [0, 1])
def test_lower_rank_keeps_the_leading_singular_values(trans_b: int) -> None:
    source = one_gemm(trans_b, (OUT,))
    weight = numpy_helper.to_array(source.graph.initializer[0]).astype(np.float64)
    singular = np.linalg.svd(weight, compute_uv=False)
    for rank in (1, 3, 5):
        row = rows(rewrite(source, rank))["gemm_y"]
        assert row.weight_error == pytest.approx(np.linalg.norm(singular[rank:]) / np.linalg.norm(singular), abs=1e-6)
        assert row.weight_shape == (OUT, IN)
        assert row.op_type == "Gemm"


# ---------------------------------------------------------------- where weights come from


def test_constant_nodes_and_expressions() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w1"], name="w1", value=tensor("w1", OUT, IN)),
        helper.make_node("Transpose", ["w2"], ["w2t"], perm=[1, 0], name="transpose"),
        gemm("x", "w1", "h", transB=1),
        matmul("h", "w2t", "y"),
    ]
    source = model(nodes, [tensor("w2", 7, OUT)])
    result = rewrite(source)
    kinds = [node.op_type for node in result.proto.graph.node]
    assert kinds.count("Constant") == 4
    assert "Transpose" not in kinds
    assert not result.proto.graph.initializer
    assert rows(result)["matmul_y"].notes == (
        "its weight was computed by an expression of constants; the factors are stored",
    )
    assert_same(source, result.proto, values(5, IN, seed=3))


def branch(name: str, seed: int, *, transposed: bool) -> onnx.GraphProto:
    shape = (IN, OUT) if transposed else (OUT, IN)
    node = gemm("x", f"w_{name}", f"y_{name}", transB=int(not transposed))
    return helper.make_graph([node], name, [], [value(f"y_{name}", (5, OUT))], [tensor(f"w_{name}", *shape, seed=seed)])


def test_nested_graphs() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            name="if",
            then_branch=branch("then", 1, transposed=True),
            else_branch=branch("else", 2, transposed=False),
        ),
    ]
    source = model(nodes, [numpy_helper.from_array(np.float32(0.0), "zero")])
    result = rewrite(source, verify="local")
    assert {row.where for row in result.report.convs} == {"If 'if', then_branch", "If 'if', else_branch"}
    assert result.report.totals.replaced == 2
    x = values(5, IN, seed=3)
    for sample in (np.abs(x), -np.abs(x)):
        assert_same(source, result.proto, sample)


@pytest.mark.parametrize("transposed", [False, True])
def test_functions(transposed: bool) -> None:
    """A function's body tells no shapes; its bias is a constant, so its shape is known all the same."""
    shape = (IN, IN + 1) if transposed else (IN + 1, IN)
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor("w", *shape)),
        helper.make_node("Constant", [], ["c"], value=tensor("c", IN + 1)),
        gemm("a", "w", "b", "c", **({} if transposed else {"transB": 1})),
    ]
    function = helper.make_function("local", "Layer", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    source = model([helper.make_node("Layer", ["x"], ["y"], domain="local")], functions=[function])
    result = rewrite(source, verify="local")
    assert [row.status for row in result.report.convs] == ["replaced"]
    assert [node.op_type for node in result.proto.functions[0].node].count("Gemm") == 2
    assert_same(source, result.proto, values(5, IN, seed=3))


def test_external_weights(tmp_path: Path) -> None:
    source = model(
        [gemm("x", "w", "h", "c", transB=1), matmul("h", "v", "y")],
        [tensor("w", 300, IN), tensor("c", 300), tensor("v", 300, OUT)],
    )
    onnx.save(source, tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    result = onnxsep.rewrite(tmp_path / "in.onnx", mode=Narrow(), rank="full", force=True, include_first=True)
    result.save(tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    outside = {one.name for one in saved.graph.initializer if one.data_location == TensorProto.EXTERNAL}
    assert {"c", "h_out_weight", "y_in_weight"} <= outside
    assert_same(onnx.load(tmp_path / "in.onnx"), onnx.load(tmp_path / "out.onnx"), values(5, IN, seed=3))


def test_shared_weight_has_one_set_of_factors() -> None:
    nodes = [gemm("x", "w", "a", transB=1), gemm("x", "w", "b", "c", transB=1)]
    source = model(nodes, [tensor("w", OUT, IN), tensor("c", OUT)], outputs=("a", "b"))
    result = rewrite(source)
    assert len(result.proto.graph.initializer) == 3
    assert_same(source, result.proto, values(5, IN, seed=3))


@pytest.mark.parametrize("rank", ["full", 3])
def test_weight_that_is_used_in_both_orientations(rank: str | int) -> None:
    """A tied matrix, square so that shapes do not tell: x W and then (x W) W^T are different maps."""
    nodes = [matmul("x", "w", "h"), gemm("h", "w", "y", transB=1)]
    source = model(nodes, [tensor("w", IN, IN)])
    result = rewrite(source, rank, verify="local")
    assert len(result.proto.graph.initializer) == 4
    if rank == "full":
        assert_same(source, result.proto, values(5, IN, seed=3))
        return
    weight = numpy_helper.to_array(source.graph.initializer[0])
    u, s, vt = np.linalg.svd(weight)
    low = (u[:, :rank] * s[:rank]) @ vt[:rank]
    x = values(5, IN, seed=3)
    np.testing.assert_allclose(run(result.proto, x)[0], x @ low @ low.T, atol=1e-4)


def test_weight_that_has_to_stay_is_left_alone() -> None:
    """The other Gemm scales its product, so it stays, and with it the weight."""
    nodes = [gemm("x", "w", "a", transB=1), gemm("x", "w", "b", transB=1, alpha=2.0)]
    source = model(nodes, [tensor("w", OUT, IN)], outputs=("a", "b"))
    result = rewrite(source, 1, force=False)
    assert rows(result)["gemm_a"].reason == (
        "does not pay: its weight stays, for it is also used by Gemm 'gemm_b' (force=True)"
    )
    assert result.proto.SerializeToString() == source.SerializeToString()
    forced = rewrite(source)
    assert "w" in {one.name for one in forced.proto.graph.initializer}
    assert_same(source, forced.proto, values(5, IN, seed=3))


# ---------------------------------------------------------------- what is left alone, and why


REJECTED: dict[str, tuple[onnx.NodeProto, list[onnx.TensorProto], str]] = {
    "alpha": (gemm("x", "w", "y", alpha=0.5), [tensor("w", IN, OUT)], "alpha is 0.5; only 1 can be replaced"),
    "beta": (
        gemm("x", "w", "y", "c", beta=2.0),
        [tensor("w", IN, OUT), tensor("c", OUT)],
        "beta is 2; only 1 can be replaced",
    ),
    "transA": (gemm("x", "w", "y", transA=1), [tensor("w", 5, OUT)], "transA: its input is transposed"),
    "scalar C": (
        gemm("x", "w", "y", "c"),
        [tensor("w", IN, OUT), tensor("c")],
        "its C has the shape [], which is no bias of 9 channels",
    ),
    "C of one element": (
        gemm("x", "w", "y", "c"),
        [tensor("w", IN, OUT), tensor("c", 1)],
        "its C has the shape [1], which is no bias of 9 channels",
    ),
    "C of rows": (
        gemm("x", "w", "y", "c"),
        [tensor("w", IN, OUT), tensor("c", 5, OUT)],
        "its C has the shape [5, 9], which is no bias of 9 channels",
    ),
    "stack of matrices": (
        matmul("x", "w", "y"),
        [tensor("w", 2, IN, OUT)],
        "its weight has the shape [2, 6, 9]; only a matrix can be replaced",
    ),
    "vector": (
        matmul("x", "w", "y"),
        [tensor("w", IN)],
        "its weight has the shape [6]; only a matrix can be replaced",
    ),
    "constant in front": (
        matmul("w", "x", "y"),
        [tensor("w", 4, 5)],
        "its constant operand is the first one; only a constant second operand can be replaced",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_left_alone_with_the_reason(case: str) -> None:
    node, initializers, reason = REJECTED[case]
    source = model([node], initializers)
    result = rewrite(source)
    (row,) = result.report.convs
    assert (row.status, row.reason, row.op_type) == ("left", reason, node.op_type)
    assert result.proto.SerializeToString() == source.SerializeToString()


def test_beta_without_c_does_not_matter() -> None:
    source = model([gemm("x", "w", "y", beta=3.0)], [tensor("w", IN, OUT)])
    result = rewrite(source)
    assert rows(result)["gemm_y"].status == "replaced"
    assert_same(source, result.proto, values(5, IN, seed=3))


def test_weights_of_the_run_and_quantised_ones_are_left_alone() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0], name="turn"),
        matmul("x", "xt", "scores"),
        helper.make_node("Cast", ["scores"], ["small"], to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["small", "q"], ["whole"], name="integer"),
        helper.make_node("Cast", ["whole"], ["y"], to=FLOAT),
    ]
    source = model(nodes, [numpy_helper.from_array(np.ones((5, 2), np.int8), "q")])
    result = rewrite(source)
    assert {name: row.reason for name, row in rows(result).items()} == {
        "matmul_scores": "its weight is computed at run time by Transpose 'turn'",
        "integer": "MatMulInteger: its weight is quantised already",
    }


def test_other_modes_do_not_see_linear_layers() -> None:
    weights = [tensor("w", 4, 3, 3, 3), tensor("v", 4, OUT)]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        gemm("f", "v", "y"),
    ]
    source = model(nodes, weights, shape=(2, 3, 8, 8))
    plain = onnxsep.rewrite(source, mode="depthwise", force=True, include_first=True)
    assert [row.name for row in plain.report.convs] == ["conv"]
    both = onnxsep.inspect(source, modes=["depthwise", Narrow()])
    assert [(row.name, row.op_type) for row in both.convs] == [("conv", "Conv"), ("gemm_y", "Gemm")]
    linear = both.convs[1]
    assert linear.modes["depthwise"].reason == "mode depthwise takes Convs only"
    assert not linear.modes["depthwise"].eligible
    assert linear.modes["narrow"].eligible
    assert linear.modes["narrow"].parameters == 2 * (4 + OUT)
    assert both.convs[0].modes["narrow"].reason == "a Conv"
    assert [row.name for row in onnxsep.inspect(source, modes=["depthwise"]).convs] == ["conv"]


def test_made_layers_are_left_alone_the_next_time() -> None:
    source = one_gemm(1, (OUT,))
    once = rewrite(source, 2)
    twice = rewrite(once.proto, 2)
    assert [row.reason for row in twice.report.convs] == [
        "made by onnxsep (mode narrow); recurse=True splits it again"
    ] * 2
    assert twice.proto.SerializeToString() == once.proto.SerializeToString()


def test_first_layers() -> None:
    """A Conv behind a Gemm stays first, as it was; a Gemm is first unless a Conv, Gemm or MatMul stands before it."""
    nodes = [
        gemm("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        matmul("b", "v", "c"),
        helper.make_node("Reshape", ["b", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "k"], ["d"], name="conv"),
        helper.make_node("Flatten", ["d"], ["e"]),
        gemm("e", "u", "f"),
    ]
    weights = [tensor("w", IN, 16), tensor("v", 16, 3), tensor("k", 2, 1, 3, 3), tensor("u", 8, 4)]
    weights.append(numpy_helper.from_array(np.array([-1, 1, 4, 4]), "shape"))
    source = model(nodes, weights, outputs=("c", "f"))

    def names(places: set[tuple[int, int]]) -> set[str]:
        return {source.graph.node[index].name for _, index in places}

    assert names(first_convs(source)) == {"conv"}
    assert names(first_convs(source, linear_layers=True)) == {"gemm_a", "conv"}
    report = onnxsep.rewrite(source, mode=Narrow(), rank=1, verify="none").report
    reasons = {row.name: row.reason for row in report.convs}
    assert reasons["gemm_a"] == "first Gemm, reached straight from an input; include_first=True replaces it"
    assert reasons["matmul_c"] == ""
    assert reasons["gemm_f"] == ""


# ---------------------------------------------------------------- counts and biases


@pytest.mark.parametrize(
    ("shape", "count"), [((5, IN), 5), (("n", IN), 1), ((2, 3, IN), 6), (("n", 3, IN), 3), ((IN,), 1)], ids=str
)
def test_counts(shape: Sequence[int | str], count: int) -> None:
    """One row meets every element of the weight; a free first dimension counts as one."""
    source = model([matmul("x", "w", "y")], [tensor("w", IN, OUT)], shape=shape)
    (row,) = rewrite(source, 2).report.convs
    assert (row.macs_before, row.macs_after) == (count * IN * OUT, count * 2 * (IN + OUT))
    assert (row.parameters_before, row.parameters_after) == (IN * OUT, 2 * (IN + OUT))
    totals = rewrite(source, 2).report.totals
    assert (totals.macs_before, totals.macs_after, totals.macs_unknown) == (row.macs_before, row.macs_after, 0)
    assert (totals.parameters_before, totals.parameters_after) == (IN * OUT, 2 * (IN + OUT))


def test_counts_of_unknown_sizes() -> None:
    source = model([matmul("x", "w", "y")], [tensor("w", IN, OUT)], shape=("n", "m", IN))
    result = rewrite(source, 2)
    (row,) = result.report.convs
    assert (row.macs_before, row.macs_after, row.notes) == (None, None, ("sizes unknown",))
    assert result.report.totals.macs_unknown == 1
    (row,) = rewrite(source, 2, input_shapes={"x": (2, 4, IN)}).report.convs
    assert (row.macs_before, row.macs_after) == (8 * IN * OUT, 8 * 2 * (IN + OUT))


def test_what_does_not_pay_is_left_alone() -> None:
    result = rewrite(one_gemm(1, None), 4, force=False)
    assert rows(result)["gemm_y"].reason == "does not pay: 54 -> 60 parameters (force=True)"
    assert rows(rewrite(one_gemm(1, None), 3, force=False))["gemm_y"].status == "replaced"


def test_nothing_else_changes() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu", doc_string="kept"),
        gemm("r", "w", "h", "c", transB=1),
        helper.make_node("Relu", ["h"], ["y"], name="relu_2"),
    ]
    nodes[1].doc_string = "the layer"
    entry = nodes[1].metadata_props.add()
    entry.key, entry.value = "where", "here"
    source = model(nodes, [tensor("unused", 2, 3), tensor("w", OUT, IN), tensor("c", OUT)])
    result = rewrite(source, 3).proto
    assert [source.graph.node[i] for i in (0, 2)] == [result.graph.node[i] for i in (0, 3)]
    first, last = result.graph.node[1:3]
    assert [node.name for node in (first, last)] == ["gemm_h_in", "gemm_h_out"]
    assert last.doc_string == "the layer"
    for node in marked(result).graph.node[1:3]:
        said = {entry.key: entry.value for entry in node.metadata_props}
        assert said == {"where": "here", "onnxsep.mode": "narrow", "onnxsep.rank": "3", "onnxsep.source": "gemm_h"}
    assert [one.name for one in result.graph.initializer] == ["unused", "c", "h_in_weight", "h_out_weight"]
    assert result.graph.initializer[0] == source.graph.initializer[0]
    assert (result.graph.input, result.graph.output) == (source.graph.input, source.graph.output)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (OUT,), (1, OUT)], ids=str)
def test_fitted_bias_takes_the_place_of_c(trans_b: int, bias: tuple[int, ...] | None) -> None:
    source = one_gemm(trans_b, bias)
    sites = find_sites(onnxsep.load(source), linear_layers=True)
    options = Options(rank=RankPolicy.parse("full"), force=True, include_first=True, init="joint")
    plan = make_plan(sites.found, Narrow(), options, lambda site: np.zeros(site.conv.weight_shape))
    (replacement,) = plan.replacements
    assert replacement.new_bias
    assert replacement.parameters == 6 * (IN + OUT) + OUT
    first, last, fitted = values(6, IN, seed=4), values(OUT, 6, seed=5), values(OUT, seed=6)
    result = onnx.ModelProto()
    result.CopyFrom(source)
    replace_matches(result, plan.replacements, {replacement.site.place: Factorized([first, last], 0.0, fitted)})
    assert "c" not in {one.name for one in result.graph.initializer}
    onnx.checker.check_model(result, full_check=True)
    x = values(5, IN, seed=3)
    np.testing.assert_allclose(run(result, x)[0], x @ (last @ first).T + fitted, rtol=1e-4, atol=1e-4)


def test_matmul_has_no_place_for_a_bias() -> None:
    source = model([matmul("x", "w", "y")], [tensor("w", IN, OUT)])
    (site,) = find_sites(onnxsep.load(source), linear_layers=True).found
    assert isinstance(site, ConvSite)
    assert not takes_new_bias(site)
    assert takes_new_bias(replace(site, op_type="Gemm"))


def test_networks_of_exporters(shared: Path) -> None:
    """Every linear layer of real networks, each piece compared in ONNX Runtime."""
    replaced = 0
    for path in sorted((shared / "models").rglob("*.onnx")):
        result = onnxsep.rewrite(path, mode=Narrow(), rank="full", force=True, include_first=True, verify="local")
        replaced += result.report.totals.replaced
        if result.report.totals.replaced:
            assert result.report.verification.ran, path
            assert result.report.verification.relative is not None
            assert result.report.verification.relative < 1e-4, path
    assert replaced >= 5
