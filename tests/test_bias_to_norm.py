"""The mode bias-to-norm: the bias of a Conv goes into the mean of the BatchNormalization behind it."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fold_models import Chain, arrays, model, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxsep


def network(channels: int, seed: int, *, group: int = 1, shared: bool = False) -> onnx.ModelProto:
    """x -> Conv (bias) -> BatchNormalization -> Relu -> y; shared: two of them, with one weight."""
    rng = np.random.default_rng(seed)
    nodes, tensors, x = [], [tensor("w", rng.normal(size=(channels, channels // group, 3, 3)))], "x"
    for number in range(1 + shared):
        names = [f"{part}{number}" for part in ("b", "gamma", "beta", "mean", "var")]
        tensors += [tensor(name, rng.uniform(0.5, 2, channels)) for name in names]
        nodes += [
            helper.make_node(
                "Conv", [x, "w", names[0]], [f"c{number}"], name=f"conv{number}", pads=[1] * 4, group=group
            ),
            helper.make_node("BatchNormalization", [f"c{number}", *names[1:]], [f"n{number}"], epsilon=0.01),
            helper.make_node("Relu", [f"n{number}"], [f"y{number}"]),
        ]
        x = f"y{number}"
    ends = [value("x", [2, channels, 5, 5])], [value(x, [2, channels, 5, 5])]
    return model(nodes, tensors, inputs=ends[0], outputs=ends[1])


@settings(max_examples=10, deadline=None)
@given(channels=st.sampled_from([1, 4, 6]), seed=st.integers(0, 99), grouped=st.booleans())
def test_the_result_computes_the_same(channels: int, seed: int, grouped: bool) -> None:
    source = network(channels, seed, group=channels if grouped else 1)
    result = onnxsep.rewrite(source, mode="bias-to-norm")
    made = result.model.proto
    assert result.report.totals.parameters_before - result.report.totals.parameters_after == channels
    feed = {"x": np.random.default_rng(seed).normal(size=(2, channels, 5, 5)).astype(np.float32)}
    found = [onnxruntime.InferenceSession(one.SerializeToString()).run(None, feed)[0] for one in (source, made)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
    before, after = arrays(source), arrays(made)
    (mean,) = set(after) - set(before)
    np.testing.assert_allclose(after[mean], before["mean0"] - before["b0"], rtol=1e-6)
    assert set(before) - set(after) == {"b0", "mean0"}
    assert made.graph.node[2] == source.graph.node[2]
    norm = next(node for node in made.graph.node if node.op_type == "BatchNormalization")
    assert norm.attribute[0].f == np.float32(0.01)
    again = onnxsep.rewrite(made, mode="bias-to-norm")
    assert again.model.proto.SerializeToString() == made.SerializeToString()


def test_a_shared_weight_stays_shared() -> None:
    made = onnxsep.rewrite(network(4, 0, shared=True), mode="bias-to-norm").model.proto
    convs = [node for node in made.graph.node if node.op_type == "Conv"]
    assert [list(node.input)[1:] for node in convs] == [["w"], ["w"]]
    assert {"w", "gamma0", "beta1", "var1"} <= set(arrays(made))


@pytest.mark.parametrize("verify", ["full", "local"])
def test_then_fold_and_conv_modes_go_on(verify: Any) -> None:
    made = onnxsep.rewrite(network(8, 0), mode="bias-to-norm", verify=verify).model
    assert onnxsep.rewrite(made, mode="fold").report.totals.replaced == 1
    report = onnxsep.rewrite(made, mode="spatial", rank="in", include_first=True, verify=verify).report
    assert report.totals.replaced == 1


def test_what_is_none_has_a_reason() -> None:
    plain = network(4, 0)
    plain.graph.node[0].input.pop()
    assert [row.reason for row in onnxsep.rewrite(plain, mode="bias-to-norm").report.convs] == ["it has no bias"]
    chain = Chain(np.ones((2, 2, 3, 3)), np.ones(2))
    bare = model(
        chain.nodes, chain.initializers, inputs=[value("x", [1, 2, 4, 4])], outputs=[value("t0", [1, 2, 4, 4])]
    )
    (row,) = onnxsep.rewrite(bare, mode="bias-to-norm").report.convs
    assert row.reason == "no BatchNormalization behind it"
    used = network(4, 0)
    used.graph.output.append(value("c0", [2, 4, 5, 5]))
    (row,) = onnxsep.rewrite(used, mode="bias-to-norm").report.convs
    assert row.reason == "what Conv 'conv0' computes, 'c0', is an output of the graph"


def test_statistics_of_another_type_than_the_weights() -> None:
    """From operator set 15 on they may be float32 behind a Conv of float16; new ones would have the weight's type."""
    source = network(4, 0)
    for one in source.graph.initializer:
        if not one.name.startswith(("mean", "var")):
            one.CopyFrom(tensor(one.name, onnx.numpy_helper.to_array(one), np.float16))
    for end in (*source.graph.input, *source.graph.output):
        end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.checker.check_model(source, full_check=True)
    (row,) = onnxsep.rewrite(source, mode="bias-to-norm", verify="none").report.convs
    assert row.reason == "its constants are floats of several types"
