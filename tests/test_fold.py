"""The mode fold: BatchNormalization, Mul and Add of constants go into the Conv before them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import run as command
from fold_models import BATCH, Chain, arrays, conv_norm, model, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st
from marked import marked
from onnx import TensorProto, helper

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.rewriting.report import ConvReport

NOTHING_BEHIND = "no BatchNormalization behind it"


def fold(proto: onnx.ModelProto | onnxsep.Model, **options: Any) -> onnxsep.Result:
    """The result of folding; what it computes is compared with the original in ONNX Runtime, at full."""
    result = onnxsep.rewrite(proto, mode="fold", **options)
    if result.report.totals.replaced and options.get("verify") != "none":
        assert result.report.verification.ran, result.report.verification.reason
    return result


def run(proto: onnx.ModelProto, seed: int = 0) -> list[Any]:
    """Outputs on random inputs, by ONNX Runtime itself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    rng = np.random.default_rng(seed)
    stored = {one.name for one in proto.graph.initializer}
    feeds = {
        one.name: rng.normal(size=[dim.dim_value for dim in one.type.tensor_type.shape.dim]).astype(np.float32)
        for one in proto.graph.input
        if one.name not in stored
    }
    return list(session.run(None, feeds))


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def only_row(result: onnxsep.Result) -> ConvReport:
    (row,) = result.report.convs
    return row


def reason_of(proto: onnx.ModelProto, **options: Any) -> str:
    """Why the one Conv of a model is left alone, whose bytes then stay."""
    before = proto.SerializeToString()
    result = fold(proto, **options)
    row = only_row(result)
    assert row.status == "left"
    assert result.model.proto.SerializeToString() == before
    return row.reason


@st.composite
def chains(draw: st.DrawFn) -> tuple[Chain, int]:
    """Any Conv with one to five nodes behind it, and an operator set."""
    opset = draw(st.sampled_from([7, 8, 9, 11, 13, 14, 15, 17, 21]))
    dims, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    out = group * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bias = rng.normal(size=out) if draw(st.booleans()) else None
    chain = Chain(rng.normal(size=(out, draw(st.integers(1, 2)), *[3] * dims)), bias, group)
    for kind in draw(st.lists(st.sampled_from(["norm", "Mul", "Add"]), min_size=1, max_size=5)):
        if kind == "norm":
            chain.norm(rng, draw(st.sampled_from([None, 1e-3, 0.5])))
            continue
        whole = (out, *[1] * dims)
        shape = draw(st.sampled_from([whole, (1, *whole), (), (1,), (1,) * (dims + 2)]))
        chain.binary(kind, rng.normal(size=shape), first=draw(st.booleans()))
    return chain, opset


@given(chains())
@settings(max_examples=25, deadline=None)
def test_any_chain_becomes_the_conv_that_the_mathematics_gives(drawn: tuple[Chain, int]) -> None:
    chain, opset = drawn
    proto = chain.model(opset=opset, size=4)
    before = proto.SerializeToString()
    result = fold(proto)
    assert proto.SerializeToString() == before
    made = result.model.proto
    assert operators(made) == ["Conv"]
    weight, bias = chain.folded
    stored = arrays(made)
    assert set(stored) == set(made.graph.node[0].input[1:])  # nothing is left over
    np.testing.assert_allclose(stored[made.graph.node[0].input[1]], weight, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(stored[made.graph.node[0].input[2]], bias, rtol=1e-5, atol=1e-6)
    expected, found = run(proto)[0], run(made)[0]
    scale = np.abs(expected).max() + np.abs(bias).max()
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale, rtol=0)
    row = only_row(result)
    assert row.parameters_before == sum(math.prod(one.dims) for one in proto.graph.initializer)
    assert row.parameters_after == weight.size + bias.size
    again = onnxsep.rewrite(made, mode="fold", verify="none")
    assert again.model.proto.SerializeToString() == made.SerializeToString()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_types_are_folded_in_double_precision_and_rounded_once(dtype: Any) -> None:
    chain = conv_norm(1, dtype=dtype)
    result = fold(chain.model())
    stored = arrays(result.model.proto)
    node = result.model.proto.graph.node[0]
    weight, bias = chain.folded
    assert stored[node.input[1]].dtype == stored[node.input[2]].dtype == np.dtype(dtype)
    for name, exact in ((node.input[1], weight), (node.input[2], bias)):
        unit = {np.float16: 2.0**-10, np.float64: 2.0**-52, ml_dtypes.bfloat16: 2.0**-7}[dtype]
        np.testing.assert_allclose(stored[name].astype(np.float64), exact, rtol=unit, atol=unit)


def test_statistics_of_another_type_than_the_weight() -> None:
    """From operator set 15 on a float16 network may keep its statistics in float32."""
    chain = conv_norm(2, dtype=np.float16)
    proto = chain.model()
    for index, one in enumerate(proto.graph.initializer):
        if one.name.startswith(("mean", "variance")):
            values = onnx.numpy_helper.to_array(one).astype(np.float32)
            proto.graph.initializer[index].CopyFrom(tensor(one.name, values))
    stored = arrays(fold(proto, verify="none").model.proto)
    np.testing.assert_array_equal(stored["y_folded_weight"], chain.folded[0].astype(np.float16))


def test_weights_that_leave_float16_are_left_alone() -> None:
    chain = Chain(np.full((1, 1, 3, 3), 6e4), dtype=np.float16).binary("Mul", 2.0)
    assert reason_of(chain.model(), verify="none") == "its new weights do not fit into float16"


def test_local_verification_compares_the_block_with_its_conv() -> None:
    rng = np.random.default_rng(3)
    chain = conv_norm().binary("Mul", rng.normal(size=(1, 4, 1, 1)))
    report = fold(chain.model(), verify="local").report
    assert report.verification.kind == "local"
    assert report.verification.relative is not None
    assert 0 < report.verification.relative < 1e-5
    assert report.convs[0].output_error == report.verification.relative
    assert report.convs[0].weight_error is None


def test_local_verification_finds_a_wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxsep.passes.fold import Fold

    right = Fold.weights

    def wrong(self: Fold, *arguments: Any) -> list[Any]:
        weight, bias = right(self, *arguments)
        return [weight, bias + 1]

    monkeypatch.setattr(Fold, "weights", wrong)
    for verify in ("local", "full"):
        with pytest.raises(onnxsep.OnnxsepError, match="all ranks are full, yet the outputs differ"):
            fold(conv_norm().model(), verify=verify)


# ---------------------------------------------------------------- what stays


def branched() -> onnx.ModelProto:
    """Two Convs with BatchNormalization, a Relu, a residual Add, annotations and metadata on all that stays."""
    first, second = conv_norm(4, channels=3), conv_norm(5, channels=3)
    nodes, tensors = [], []
    for prefix, chain, source in (("a_", first, "x"), ("b_", second, "r")):
        for node in chain.nodes:
            node.name = prefix + node.name
            node.input[:] = [source if name == "x" else prefix + name for name in node.input]
            node.output[:] = [prefix + name for name in node.output]
            nodes.append(node)
        for one in chain.initializers:
            one.name = prefix + one.name
            tensors.append(one)
    relu = helper.make_node("Relu", ["a_t1"], ["r"], name="relu", doc_string="stays")
    relu.metadata_props.add(key="k", value="v")
    nodes.insert(2, relu)
    nodes.append(helper.make_node("Add", ["b_t1", "x"], ["y"], name="join"))
    shape = [BATCH, 3, 6, 6]
    inner = [value(name, shape) for name in ("a_t0", "a_t1", "r", "b_t0", "b_t1")]
    tensors.append(tensor("unused", [1, 2]))
    return model(nodes, tensors, inputs=[value("x", shape)], outputs=[value("y", shape)], value_info=inner)


def test_everything_else_keeps_its_bytes() -> None:
    proto = branched()
    made = fold(proto).model.proto
    assert operators(made) == ["Conv", "Relu", "Conv", "Add"]
    kept = {node.SerializeToString() for node in made.graph.node}
    for node in proto.graph.node:
        assert (node.SerializeToString() in kept) == (node.op_type in ("Relu", "Add"))
    assert [one.name for one in made.graph.value_info] == ["a_t1", "r", "b_t1"]  # those of inner tensors go
    assert "unused" in arrays(made)
    assert len(arrays(made)) == 5
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(run(made)[0], run(proto)[0], rtol=1e-4, atol=1e-4)


def test_metadata_and_names_of_the_new_conv() -> None:
    chain = conv_norm()
    chain.nodes[0].metadata_props.add(key="namespace", value="stem")
    chain.nodes[0].doc_string = "the stem"
    (node,) = marked(fold(chain.model()).model.proto).graph.node
    assert node.name == "conv_folded"
    assert node.doc_string == "the stem"
    carried = {entry.key: entry.value for entry in node.metadata_props}
    assert carried == {"namespace": "stem", "onnxsep.fold": "conv, norm1", "onnxsep.source": "conv"}


def test_a_folded_conv_is_split_like_any_other() -> None:
    folded = fold(conv_norm().model()).model
    split = onnxsep.rewrite(folded, mode="spatial", rank="full", force=True, include_first=True)
    assert split.report.totals.replaced == 1
    assert split.report.verification.ran


def test_batch_norms_behind_factors_are_folded_into_the_last_of_them() -> None:
    split = onnxsep.rewrite(conv_norm().model(), mode="spatial", rank="full", force=True, include_first=True)
    result = fold(split.model)
    assert operators(result.model.proto) == ["Conv", "Conv"]
    last = marked(result.model.proto).graph.node[-1]
    assert {entry.key: entry.value for entry in last.metadata_props}["onnxsep.mode"] == "spatial"
    again = onnxsep.rewrite(result.model, mode="spatial", include_first=True, force=True)
    assert again.report.totals.replaced == 0


def test_constants_that_others_use_stay() -> None:
    chain = conv_norm()
    chain.nodes.append(helper.make_node("Relu", [chain.last], ["r"], name="relu"))
    chain.nodes.append(helper.make_node("BatchNormalization", ["r", *chain.nodes[1].input[1:]], ["t3"], name="other"))
    result = fold(chain.model())
    assert operators(result.model.proto) == ["Conv", "Relu", "BatchNormalization"]
    assert {"gamma1", "beta1", "mean1", "variance1"} < set(arrays(result.model.proto))
    assert "w" not in arrays(result.model.proto)


def test_constants_of_every_form() -> None:
    """Constant nodes, and an expression of constants: what is not used any more goes."""
    chain = conv_norm()
    constants = [
        helper.make_node("Constant", [], [one.name], name=f"constant_{one.name}", value=one)
        for one in chain.initializers
    ]
    factor = helper.make_node("Constant", [], ["flat"], value=tensor("flat", [1, 2, 3, 4]))
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[1, 2])
    wide = helper.make_node("Unsqueeze", ["flat", "axes"], ["wide"], name="unsqueeze")
    chain.nodes.append(helper.make_node("Mul", ["wide", chain.last], ["t2"], name="mul"))
    chain.initializers.clear()
    chain.nodes[:] = [*constants, factor, axes, wide, *chain.nodes]
    made = fold(chain.model()).model.proto
    assert operators(made) == ["Constant", "Constant", "Conv"]
    np.testing.assert_allclose(run(made)[0], run(chain.model())[0], rtol=1e-4, atol=1e-4)


def test_ir_version_3_lists_new_weights_among_the_inputs() -> None:
    result = fold(conv_norm().model(opset=8, ir_version=3))
    made = result.model.proto
    assert {one.name for one in made.graph.input} == {"x", *arrays(made)}
    assert set(result.report.removed_inputs) == {"w", "gamma1", "beta1", "mean1", "variance1"}
    onnx.checker.check_model(made)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(conv_norm().model(), path, save_as_external_data=True, location="in.data", size_threshold=0)
    result = onnxsep.rewrite(path, mode="fold")
    saved = result.save(tmp_path / "out.onnx").path
    weight, _ = conv_norm().folded
    np.testing.assert_allclose(arrays(onnx.load(saved))["y_folded_weight"], weight, rtol=1e-6)
    assert command("check", saved, path, "--no-structure", "--no-weights", "-q").returncode == 0


# ---------------------------------------------------------------- nested graphs and functions


def in_branches(chain: Chain) -> onnx.ModelProto:
    """The chain in one branch of an If, its weights in the main graph; the other branch is a Relu."""
    proto = chain.model()
    shape = [BATCH, 4, 6, 6]
    then = helper.make_graph(list(proto.graph.node), "then", [], [value("y", shape)])
    other = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["dims"], ["e"], name="zeros")], "else", [], [value("e", None)]
    )
    nodes = [
        helper.make_node("If", ["condition"], ["z"], name="if", then_branch=then, else_branch=other),
    ]
    return model(
        nodes,
        [*chain.initializers, onnx.numpy_helper.from_array(np.array(shape), "dims")],
        inputs=[value("x", [BATCH, 3, 6, 6]), value("condition", [], TensorProto.BOOL)],
        outputs=[value("z", None)],
    )


def test_in_a_nested_graph() -> None:
    result = fold(in_branches(conv_norm()))
    then = result.model.proto.graph.node[0].attribute
    bodies = {entry.name: entry.g for entry in then}
    assert [node.op_type for node in bodies["then_branch"].node] == ["Conv"]
    assert only_row(result).where == "If 'if', then_branch"
    assert set(arrays(result.model.proto)) == {"dims", "y_folded_weight", "y_folded_bias"}


def test_what_a_nested_graph_reads_is_used_elsewhere() -> None:
    chain = conv_norm()
    proto = chain.model()
    body = helper.make_graph(
        [helper.make_node("Identity", ["t0"], ["i"], name="captures")], "b", [], [value("i", None)]
    )
    proto.graph.node.append(helper.make_node("If", ["condition"], ["z"], name="if", then_branch=body, else_branch=body))
    proto.graph.input.append(value("condition", [], TensorProto.BOOL))
    proto.graph.output.append(value("z", [BATCH, 4, 6, 6]))
    reason = reason_of(proto)
    assert "Conv 'conv'" in reason
    assert "Identity 'captures'" in reason


def in_function(chain: Chain, *, epsilon_given: bool = False) -> onnx.ModelProto:
    """The chain as the body of a function that is called twice, its weights Constant nodes."""
    proto = chain.model()
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in chain.initializers]
    nodes += list(proto.graph.node)
    imports = [helper.make_opsetid("", 17)]
    if epsilon_given:
        norm = next(node for node in nodes if node.op_type == "BatchNormalization")
        entry = norm.attribute.add(name="epsilon", ref_attr_name="eps")
        entry.type = onnx.AttributeProto.FLOAT
    attributes = ["eps"] if epsilon_given else []
    function = helper.make_function("local", "Block", ["x"], ["y"], nodes, imports, attributes)
    given: dict[str, Any] = {"eps": 0.1} if epsilon_given else {}
    calls = [
        helper.make_node("Block", ["x"], ["y0"], name="call0", domain="local", **given),
        helper.make_node("Block", ["x"], ["y1"], name="call1", domain="local", **given),
    ]
    shape = [BATCH, 4, 6, 6]
    made = model(calls, [], inputs=[value("x", [BATCH, 3, 6, 6])], outputs=[value("y0", shape), value("y1", shape)])
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("local", 1))
    return made


def test_in_a_function() -> None:
    proto = in_function(conv_norm())
    result = fold(proto)
    assert [node.op_type for node in result.model.proto.functions[0].node] == ["Constant", "Constant", "Conv"]
    for found, expected in zip(run(result.model.proto), run(proto), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_attribute_that_the_call_gives_is_refused() -> None:
    reason = reason_of(in_function(conv_norm(), epsilon_given=True))
    assert reason.startswith("BatchNormalization 'norm1'")
    assert "takes 'epsilon' from the call of the function" in reason


# ---------------------------------------------------------------- what is left alone


def plain_conv() -> onnx.ModelProto:
    return Chain(np.ones((2, 1, 3, 3))).model()


def behind_relu() -> onnx.ModelProto:
    chain = Chain(np.ones((4, 3, 3, 3)))
    chain.nodes.append(helper.make_node("Relu", [chain.last], ["t1"], name="relu"))
    return chain.norm(np.random.default_rng(0)).model()


def residual() -> onnx.ModelProto:
    chain = Chain(np.ones((3, 3, 3, 3)))
    chain.nodes.append(helper.make_node("Add", [chain.last, "x"], ["t1"], name="add"))
    return chain.model()


def squared() -> onnx.ModelProto:
    chain = Chain(np.ones((3, 3, 3, 3)))
    chain.nodes.append(helper.make_node("Mul", [chain.last, chain.last], ["t1"], name="mul"))
    return chain.model()


def used_twice() -> onnx.ModelProto:
    proto = conv_norm().model()
    proto.graph.node.append(helper.make_node("Relu", ["t0"], ["z"], name="relu"))
    proto.graph.output.append(value("z", [BATCH, 4, 6, 6]))
    return proto


def also_output() -> onnx.ModelProto:
    proto = conv_norm().model()
    proto.graph.output.append(value("t0", [BATCH, 4, 6, 6]))
    return proto


def given_mean() -> onnx.ModelProto:
    proto = conv_norm().model()
    (index,) = [at for at, one in enumerate(proto.graph.initializer) if one.name == "mean1"]
    del proto.graph.initializer[index]
    proto.graph.input.append(value("mean1", [4]))
    return proto


def training() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    proto = Chain(rng.normal(size=(4, 3, 3, 3))).norm(rng, training_mode=1).model()
    proto.graph.node[-1].output.extend(["running_mean", "running_variance"])
    return proto


def training_before_14() -> onnx.ModelProto:
    proto = conv_norm().model(opset=9)
    proto.graph.node[-1].output.extend(["m_out", "v_out", "saved_mean", "saved_var"])
    return proto


def not_spatial() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return Chain(rng.normal(size=(4, 3, 3, 3))).norm(rng, spatial=0).model(opset=7)


def computed_bias() -> onnx.ModelProto:
    chain = conv_norm()
    chain.nodes[0].input.append("bias")
    proto = chain.model()
    proto.graph.input.append(value("bias", [4]))
    return proto


def negative_variance() -> onnx.ModelProto:
    proto = conv_norm().model()
    for one in proto.graph.initializer:
        if one.name == "variance1":
            one.CopyFrom(tensor("variance1", [1, -1, 1, 1]))
    return proto


def nan_mean() -> onnx.ModelProto:
    proto = conv_norm().model()
    for one in proto.graph.initializer:
        if one.name == "mean1":
            one.CopyFrom(tensor("mean1", [1, np.nan, 1, 1]))
    return proto


def along_width() -> onnx.ModelProto:
    """[C] is broadcast along the last axis, not along the channels."""
    return Chain(np.ones((6, 3, 3, 3))).binary("Mul", np.arange(6)).norm(np.random.default_rng(0)).model()


def one_for_each_pixel() -> onnx.ModelProto:
    chain = Chain(np.ones((4, 3, 3, 3)))
    chain.nodes.append(helper.make_node("Add", [chain.last, "map"], ["t1"], name="add1"))
    chain.initializers.append(tensor("map", np.ones((4, 6, 6))))
    return chain.model()


def more_dimensions() -> onnx.ModelProto:
    proto = Chain(np.ones((4, 3, 3, 3))).binary("Add", np.ones((1, 1, 4, 1, 1))).model()
    proto.graph.output[0].type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_value=1))
    return proto


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (plain_conv, NOTHING_BEHIND),
        (behind_relu, NOTHING_BEHIND),
        (residual, NOTHING_BEHIND),
        (squared, NOTHING_BEHIND),
        (used_twice, "what Conv 'conv' computes, 't0', is also read by Relu 'relu'"),
        (also_output, "what Conv 'conv' computes, 't0', is an output of the graph"),
        (given_mean, "BatchNormalization 'norm1' reads 'mean1' as its mean, which is not constant"),
        (training, "the BatchNormalization behind it is in training mode"),
        (training_before_14, "the BatchNormalization behind it is in training mode"),
        (not_spatial, "the BatchNormalization behind it has statistics for each position (spatial=0)"),
        (computed_bias, "Conv 'conv' reads 'bias' as its bias, which is not constant"),
        (negative_variance, "a variance of the BatchNormalization behind it is not positive"),
        (nan_mean, "its constant 'mean1' holds NaN or infinity"),
        (along_width, "the factor of the Mul behind it (6) is not one number for each channel"),
        (one_for_each_pixel, "the term of the Add behind it (4x6x6) is not one number for each channel"),
        (more_dimensions, "the term of the Add behind it (1x1x4x1x1) is not one number for each channel"),
    ],
)
def test_left_alone_with_its_reason(make: Callable[[], onnx.ModelProto], reason: str) -> None:
    assert reason_of(make(), verify="none") == reason


def test_operator_sets_below_7_are_left_alone() -> None:
    proto = conv_norm().model(opset=6, ir_version=3)
    proto.graph.node[-1].attribute.append(helper.make_attribute("is_test", 1))
    assert reason_of(proto, verify="none").startswith("operator set 6")


def test_a_chain_is_folded_up_to_what_is_used_elsewhere() -> None:
    chain = conv_norm().binary("Mul", [2.0])
    proto = chain.model()
    proto.graph.output.append(value("t1", [BATCH, 4, 6, 6]))
    result = fold(proto)
    assert operators(result.model.proto) == ["Conv", "Mul"]
    assert only_row(result).notes == ("with BatchNormalization 'norm1'",)
    for found, expected in zip(run(result.model.proto), run(proto), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_second_run_changes_nothing_however_long_the_chain() -> None:
    chain = conv_norm()
    for number in range(11):
        chain.binary("Add", [number])
    first = fold(chain.model()).model
    assert operators(first.proto) == ["Conv", *["Add"] * 4]
    again = fold(first)
    assert again.model.proto.SerializeToString() == first.proto.SerializeToString()
    assert only_row(again).reason == "made by onnxsep (mode fold); recurse=True splits it again"
    assert operators(fold(first, recurse=True).model.proto) == ["Conv"]


# ---------------------------------------------------------------- shared weights


def twins(second: str) -> onnx.ModelProto:
    """Two Convs with one weight, on two inputs: the second with the same statistics, with others, or with none."""
    chain, other = conv_norm(6), conv_norm(7)
    nodes = list(chain.nodes)
    nodes.append(helper.make_node("Conv", ["x2", "w"], ["u0"], name="conv2"))
    nodes[-1].attribute.extend(nodes[0].attribute)
    tensors = list(chain.initializers)
    last = "u0"
    if second != "none":
        operands = list(chain.nodes[1].input[1:])
        if second == "others":
            for one in other.initializers[1:]:
                one.name = f"other_{one.name}"
                tensors.append(one)
            operands = [f"other_{name}" for name in operands]
        nodes.append(helper.make_node("BatchNormalization", ["u0", *operands], ["u1"], name="norm2"))
        last = "u1"
    shapes = [BATCH, 3, 6, 6], [BATCH, 4, 6, 6]
    return model(
        nodes,
        tensors,
        inputs=[value("x", shapes[0]), value("x2", shapes[0])],
        outputs=[value("t1", shapes[1]), value(last, shapes[1])],
    )


def test_a_shared_weight_that_is_folded_alike_is_stored_once() -> None:
    result = fold(twins("same"))
    assert operators(result.model.proto) == ["Conv", "Conv"]
    first, second = (list(node.input[1:]) for node in result.model.proto.graph.node)
    assert first == second
    assert set(arrays(result.model.proto)) == set(first)


@pytest.mark.parametrize(
    ("second", "reason", "replaced"),
    [
        ("others", "its weight is shared and would need 2 different sets of factors", 2),
        ("none", "its weight stays, for it is also used by Conv 'conv2', which is left alone", 1),
    ],
)
def test_a_shared_weight_that_is_not_folded_alike(second: str, reason: str, replaced: int) -> None:
    proto = twins(second)
    result = fold(proto)
    assert result.report.totals.replaced == 0
    assert result.report.convs[0].reason == f"does not pay: {reason} (force=True)"
    forced = fold(proto, force=True)
    assert forced.report.totals.replaced == replaced
    assert ("w" in arrays(forced.model.proto)) == (second == "none")
    for found, expected in zip(run(forced.model.proto), run(proto), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- commands


def test_the_command_reports_and_writes(tmp_path: Path) -> None:
    source, out, again = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "again.onnx"
    onnx.save(branched(), source)
    planned = command("rewrite", source, "--mode", "fold", "--dry-run")
    assert planned.returncode == 0
    assert "; mode fold\n" in planned.stdout
    assert "93 -> 84" in planned.stdout
    done = command("rewrite", source, out, "--mode", "fold", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["rank"] == ""
    notes = [row["notes"] for row in report["convs"]]
    assert notes == [["with BatchNormalization 'a_norm1'"], ["with BatchNormalization 'b_norm1'"]]
    assert report["totals"]["parameters_before"] - report["totals"]["parameters_after"] == 2 * 3 * (4 - 1)
    assert report["totals"]["macs_before"] == report["totals"]["macs_after"] == 2 * BATCH * 36 * 81
    assert command("rewrite", out, again, "--mode", "fold", "-q").returncode == 0
    assert again.read_bytes() == out.read_bytes()


def test_patterns_choose_which_are_folded() -> None:
    result = fold(branched(), skip=["a_*"])
    assert [row.status for row in result.report.convs] == ["left", "replaced"]
    assert operators(result.model.proto) == ["Conv", "BatchNormalization", "Relu", "Conv", "Add"]


def test_inspect_counts_what_folding_would_bring() -> None:
    found = onnxsep.inspect(branched(), modes=["fold", "spatial"])
    costs = [row.modes["fold"] for row in found.convs]
    assert [cost.parameters for cost in costs] == [84, 84]
    assert all(cost.pays and cost.replaced for cost in costs)
    assert found.totals.mode_convs["fold"] == 2
    assert found.totals.mode_parameters["fold"] == found.totals.parameters - 2 * 9
    assert found.totals.mode_macs["fold"] == found.totals.macs


def test_modes_lists_it_with_its_kind() -> None:
    (line,) = [line for line in command("modes").stdout.splitlines() if line.startswith("fold: ")]
    assert line.endswith("(block mode)")


def test_data_have_nothing_to_fit() -> None:
    data = {"x": np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)}
    plain, fitted = (fold(branched(), data=given) for given in (None, data))
    assert plain.model.proto.SerializeToString() == fitted.model.proto.SerializeToString()
    assert fitted.report.calibration is not None
    assert any("nothing is fitted to the data" in note for note in fitted.report.calibration.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 3}, "mode fold has no rank to choose"),
        ({"round_ranks": 8}, "mode fold has no rank to choose"),
        ({"init": "joint"}, "mode fold fits nothing to data"),
        ({"statistics": "s.npz"}, "mode fold fits nothing to data"),
        ({"data": "absent.npz", "tune": 10}, "mode fold is exact, so there is nothing to tune"),
    ],
)
def test_options_that_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        onnxsep.rewrite("absent.onnx", mode="fold", **options)


def test_its_plan_carries_it_out(tmp_path: Path) -> None:
    source, plan, direct, planned = (tmp_path / name for name in ("in.onnx", "plan.toml", "a.onnx", "b.onnx"))
    onnx.save(branched(), source)
    assert command("rewrite", source, direct, "--plan-out", plan, "--mode", "fold").returncode == 0
    assert 'mode = "fold"' in plan.read_text()
    done = command("rewrite", source, planned, "--plan", plan)
    assert done.returncode == 0, done.stderr
    assert planned.read_bytes() == direct.read_bytes()
