"""The mode squeeze-excitation: a gate behind Conv and activation, which starts as exactly 1."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fold_models import Floats, arrays, model, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from sobolewski_light import baseline, counts, rewritten

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.modes import available_modes

FORMS = ["Relu", "LeakyRelu", "Clip", "HardSwish", "hard swish in parts", "SiLU", "PRelu", "Tanh"]


def network(
    channels: int = 8, *, activation: str = "Relu", norm: bool = True, seed: int = 0, dims: int = 2, opset: int = 17
) -> onnx.ModelProto:
    """x -> Conv -> [BatchNormalization] -> activation -> Conv -> y."""
    rng, ones = np.random.default_rng(seed), (3,) * dims
    tensors = [tensor("w", rng.normal(size=(channels, 3, *ones))), tensor("v", rng.normal(size=(2, channels, *ones)))]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 2 * dims, strides=[2] * dims)]
    read = "c"
    if norm:
        names = ["gamma", "beta", "mean", "var"]
        tensors += [tensor(name, rng.uniform(0.5, 2, channels)) for name in names]
        nodes.append(helper.make_node("BatchNormalization", ["c", *names], ["n"], name="norm"))
        read = "n"
    if activation == "SiLU":
        nodes.append(helper.make_node("Sigmoid", [read], ["s"], name="gate"))
        nodes.append(helper.make_node("Mul", [read, "s"], ["a"], name="act"))
    elif activation == "hard swish in parts":
        tensors += [tensor("three", 3.0), tensor("zero", 0.0), tensor("six", 6.0)]
        nodes += [
            helper.make_node("Add", [read, "three"], ["shifted"], name="shift"),
            helper.make_node("Clip", ["shifted", "zero", "six"], ["ramp"], name="clip"),
            helper.make_node("Mul", [read, "ramp"], ["product"], name="mul"),
            helper.make_node("Div", ["product", "six"], ["a"], name="act"),
        ]
    elif activation:
        more = {"Clip": ["least", "most"], "PRelu": ["slope"]}.get(activation, [])
        for name, number in zip(more, [0.1, 6.0], strict=False):
            shape = (channels, *(1,) * dims) if name == "slope" else ()
            tensors.append(tensor(name, np.full(shape, number)))
        nodes.append(helper.make_node(activation, [read, *more], ["a"], name="act"))
    nodes.append(helper.make_node("Conv", ["a" if activation else read, "v"], ["y"], name="last"))
    ends = [value("x", [2, 3, *(8,) * dims])], [value("y", [2, 2, *(2,) * dims])]
    return model(nodes, tensors, inputs=ends[0], outputs=ends[1], opset=opset)


def output(proto: onnx.ModelProto) -> Floats:
    dims = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    feed = np.random.default_rng(1).normal(size=dims).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return np.asarray(session.run(None, {"x": feed})[0], np.float64)


@settings(max_examples=12, deadline=None)
@given(
    channels=st.sampled_from([4, 6, 9]),
    activation=st.sampled_from(FORMS),
    norm=st.booleans(),
    dims=st.sampled_from([1, 2]),
    reduction=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_random_blocks(channels: int, activation: str, norm: bool, dims: int, reduction: int, seed: int) -> None:
    source = network(channels, activation=activation, norm=norm, dims=dims, seed=seed)
    result = onnxsep.rewrite(source, mode="squeeze-excitation", settings={"reduction": reduction})
    made, totals = result.model.proto, result.report.totals
    onnx.checker.check_model(made, full_check=True)
    assert totals.replaced == 1
    assert totals.parameters_after - totals.parameters_before == 2 * channels * (channels // reduction)
    np.testing.assert_array_equal(output(made), output(source))
    old, new = list(source.graph.node), list(made.graph.node)
    end = len(old) - 2  # the activation
    assert new[:end] == old[:end]
    assert new[-1] == old[-1]
    assert list(new[end].output) == ["a_before"]
    assert (new[end].input, new[end].name) == (old[end].input, old[end].name)
    assert list(made.graph.initializer)[: len(source.graph.initializer)] == list(source.graph.initializer)
    again = onnxsep.rewrite(made, mode="squeeze-excitation", settings={"reduction": reduction})
    assert again.model.proto.SerializeToString() == made.SerializeToString()


def test_the_gate_is_that_of_the_papers() -> None:
    """With other weights in it: y (2 sigmoid(B relu(A mean y))), by numpy."""
    made = onnxsep.rewrite(network(), mode="squeeze-excitation").model.proto
    rng, held = np.random.default_rng(3), {}
    for one in made.graph.initializer:
        if "se_" in one.name:
            held[one.name] = rng.normal(size=tuple(one.dims))
            one.CopyFrom(tensor(one.name, held[one.name]))
    reduce, expand = (weight[:, :, 0, 0] for weight in held.values())
    assert (reduce.shape, expand.shape) == ((2, 8), (8, 2))
    plain = network()
    del plain.graph.node[-1]
    del plain.graph.output[:]
    plain.graph.output.append(value("a", None))
    y = output(plain)
    inner = np.maximum(y.mean(axis=(2, 3)) @ reduce.T, 0) @ expand.T
    gated = y * (2 / (1 + np.exp(-inner)))[:, :, None, None]
    del made.graph.node[-1]
    made.graph.output[0].CopyFrom(value("a", None))
    np.testing.assert_allclose(output(made), gated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verify", ["full", "local"])
def test_it_is_counted_verified_and_other_modes_go_on(verify: Any) -> None:
    result = onnxsep.rewrite(network(), mode="squeeze-excitation", verify=verify)
    row = next(one for one in result.report.convs if one.status == "replaced")
    # The Conv as it is: 4 x 4 outputs of two images; the gate once for each image.
    assert (row.macs_before, row.macs_after) == (2 * 16 * 8 * 27, 2 * 16 * 8 * 27 + 2 * 32)
    assert (row.parameters_before, row.parameters_after) == (8 * 27 + 4 * 8, 8 * 27 + 4 * 8 + 32)
    assert result.report.verification.max_abs == 0
    split = onnxsep.rewrite(result.model, mode="spatial", rank="in", include_first=True, verify=verify)
    assert "conv" in [one.name for one in split.report.convs if one.status == "replaced"]
    dry = onnxsep.rewrite(network(), mode="squeeze-excitation", dry_run=True).report
    assert dry.totals == result.report.totals


def test_what_is_left_alone_has_a_reason() -> None:
    def reason(proto: onnx.ModelProto, **given: Any) -> str:
        report = onnxsep.rewrite(proto, mode="squeeze-excitation", verify="none", **given).report
        assert report.totals.replaced == 0
        return report.convs[0].reason

    assert reason(network(activation="")) == "no activation behind it"
    assert reason(network(), settings={"reduction": 9}) == "its 8 channels are fewer than the reduction 9"
    gated = onnxsep.rewrite(network(), mode="squeeze-excitation").model
    again = onnxsep.rewrite(gated, mode="squeeze-excitation", recurse=True).report
    reasons = {row.name: row.reason for row in again.convs if row.status == "left"}
    assert reasons["conv_se_reduce"] == "its outputs have one position, so that there is no mean to take"
    used = network()
    used.graph.output.append(value("n", [2, 8, 4, 4]))
    assert reason(used) == "what BatchNormalization 'norm' computes, 'n', is an output of the graph"
    with pytest.raises(OptionError, match="reduction must be a whole number, 1 or more, not 0"):
        onnxsep.rewrite(network(), mode="squeeze-excitation", settings={"reduction": 0})
    with pytest.raises(OptionError, match="mode squeeze-excitation has no setting 'groups'; it has reduction=4"):
        onnxsep.rewrite(network(), mode="squeeze-excitation", settings={"groups": 4})


def test_an_output_of_the_graph_keeps_its_name() -> None:
    source = network()
    source.graph.output.append(value("a", [2, 8, 4, 4]))
    made = onnxsep.rewrite(source, mode="squeeze-excitation").model.proto
    assert made.graph.output == source.graph.output
    assert next(node.op_type for node in made.graph.node if "a" in node.output) == "Mul"


def test_weights_in_constants_and_old_versions() -> None:
    """IR 3 lists initialisers as inputs; where the weight is a Constant node, so are the new ones."""
    source = network(opset=9, activation="Relu")
    source.ir_version = 3
    source.graph.input.extend(
        helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in source.graph.initializer
    )
    made = onnxsep.rewrite(source, mode="squeeze-excitation").model.proto
    assert {one.name for one in made.graph.initializer} <= {one.name for one in made.graph.input}
    held = network()
    (weight,) = [one for one in held.graph.initializer if one.name == "w"]
    held.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="held", value=weight))
    held.graph.initializer.remove(weight)
    made = onnxsep.rewrite(held, mode="squeeze-excitation").model.proto
    assert not [name for name in arrays(made) if "se_" in name]
    assert [node.op_type for node in made.graph.node].count("Constant") == 3


def test_counts_are_those_between_v10_and_v11_of_paper_004() -> None:
    """SE(l) behind each of 16 blocks: 1,541,870 - 341,742 parameters, 10,050,088 - 8,546,856 FLOPs."""
    before = baseline("vgg19")
    after, plan = rewritten(before, available_modes()["squeeze-excitation"])
    assert len(plan.replacements) == 16
    assert counts(after)[0] - counts(before)[0] == 1_541_870 - 341_742 == 1_351_382 - 151_254
    assert counts(after)[1] - counts(before)[1] == 10_050_088 - 8_546_856 == 6_305_912 - 4_802_680
