"""Modes that rewrite what lies between blocks and head: late-stride, drop-block, expand-before-gap, conv-head, ..."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fold_models import model, tensor, value
from onnx import helper, numpy_helper
from random_examples import DEEP
from residual_models import CLASSES, SIDE, Residual

import onnxsep

STAGES = ((4, 12, 2), (5, 16, 2))
FORMS: list[dict[str, Any]] = [
    {},
    {"norm": False, "swapped": True},
    {"activation": "Clip", "head": "matmul"},
    {"activation": "SiLU", "head": "reduce"},
    {"activation": "HardSwish", "last": ""},
]
MODES: dict[str, dict[str, Any]] = {
    "late-stride": {},
    "drop-block": {},
    "expand-before-gap": {"channels": 7},
    "expand-before-gap conv": {"channels": 7, "block": "conv", "activation": "silu"},
    "conv-head": {},
    "conv-head norm": {"norm": True, "activation": "relu6", "bias": False},
    "conv-head absorb": {"absorb": True, "activation": "relu"},
    "linear-bias": {},
}


def run(proto: onnx.ModelProto, feed: Any, *more: str) -> list[Any]:
    """The outputs, and other tensors by name."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for name in more:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    names = [one.name for one in proto.graph.output]
    found = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(names, {"image": feed})
    return list(found)


def images(count: int = 2, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def output_of(proto: onnx.ModelProto, suffix: str) -> str:
    return next(node.output[0] for node in proto.graph.node if node.name.endswith(suffix))


EVERY = list(product(MODES, range(len(FORMS))))
USUAL = [(mode, number % len(FORMS)) for number, mode in enumerate(MODES)]


@pytest.mark.parametrize(("mode", "form"), EVERY if DEEP else USUAL)
def test_on_whatever_the_exporter_wrote(mode: str, form: int) -> None:
    source = Residual(STAGES, seed=form, **FORMS[form]).proto
    asked: dict[str, Any] = {"mode": mode.partition(" ")[0], "settings": MODES[mode]}
    if "absorb" in mode:
        source = onnxsep.rewrite(source, mode="expand-before-gap", settings={"channels": 7}).model.proto
    result = onnxsep.rewrite(source, **asked)
    made, totals = result.model.proto, result.report.totals
    onnx.checker.check_model(made, full_check=True)
    assert totals.replaced == 1
    assert totals.parameters_after == sum(numpy_helper.to_array(one).size for one in made.graph.initializer if one.dims)
    assert run(made, images())[0].shape == (2, CLASSES)
    names = {node.name for node in source.graph.node}
    same = [node for node in made.graph.node if node.name in names]
    assert [node for node in source.graph.node if node.name in {one.name for one in same}] == same
    assert made.graph.input == source.graph.input
    assert made.graph.output == source.graph.output
    again = onnxsep.rewrite(made, **asked)
    assert again.report.totals.replaced == 0
    assert again.model.proto.SerializeToString() == made.SerializeToString()


@pytest.mark.parametrize("norm", [True, False])
def test_late_stride_is_exact_where_nothing_bends(norm: bool) -> None:
    """Without an activation of the first sum both blocks have the same to work with as before, at fewer positions."""
    source = Residual(STAGES, last="", norm=norm).proto
    made = onnxsep.rewrite(source, mode="late-stride").model.proto
    nodes = list(source.graph.node)
    convs = [node for node in nodes if node.op_type == "Conv"]

    def behind(conv: onnx.NodeProto) -> str:
        return next(node.output[0] for node in nodes if conv.output[0] in node.input) if norm else conv.output[0]

    # In the order of building: the stem, 3 Convs and a projection, 3 Convs, then the first block of the second stage.
    first, projection = convs[8], convs[11]
    wanted = run(source, images(), behind(projection), behind(first))[1:]
    suffix = "b1_norm" if norm else "b1"
    found = run(made, images(), output_of(made, "a_sum"), output_of(made, suffix))[1:]
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1], wanted[1][:, :, ::2, ::2], rtol=1e-3, atol=1e-4)


def test_late_stride_of_basic_blocks_that_differ() -> None:
    source = Residual(((4, 12, 1), (5, 16, 2))).proto
    result = onnxsep.rewrite(source, mode="late-stride")
    assert result.report.totals.replaced == 0
    assert all(row.reason for row in result.report.convs)


def test_expand_before_gap_keeps_the_channels_that_matter_most() -> None:
    source = Residual(STAGES).proto
    made = onnxsep.rewrite(source, mode="expand-before-gap", settings={"channels": 7, "activation": "relu"}).model.proto
    pool = next(node for node in source.graph.node if node.op_type == "GlobalAveragePool")
    other = next(node for node in made.graph.node if node.op_type == "GlobalAveragePool")
    wanted, found = run(source, images(), pool.input[0])[1], run(made, images(), other.input[0])[1]
    stay = np.abs(found).max(axis=(0, 2, 3)) > 0
    assert 5 <= stay.sum() <= 7
    np.testing.assert_allclose(found[:, stay], wanted[:, stay], rtol=1e-4, atol=1e-5)
    assert not found[:, ~stay].any()


def test_a_block_that_does_nothing_is_dropped_without_loss() -> None:
    net = Residual(STAGES, norm=False)
    proto = net.proto
    last = [node for node in proto.graph.node if node.op_type == "Conv"][-1]
    for one in proto.graph.initializer:
        if one.name in last.input[1:]:
            one.CopyFrom(tensor(one.name, np.zeros(one.dims)))
    made = onnxsep.rewrite(proto, mode="drop-block").model.proto
    np.testing.assert_allclose(run(made, images())[0], run(proto, images())[0], rtol=1e-5)
    assert sum(node.op_type == "Conv" for node in made.graph.node) == 12


def test_every_block_can_be_dropped() -> None:
    source = Residual(((4, 12, 3), (5, 16, 2)))
    result = onnxsep.rewrite(source.proto, mode="drop-block", settings={"which": "all"}, skip=[source.convs[5]])
    left = {row.name: row.reason for row in result.report.convs if row.status == "left"}
    assert result.report.totals.replaced == 2
    assert "skip" in left[source.convs[5]]
    assert left[source.convs[1]] == "its skip is a Conv, so what it gives cannot be what it reads"


@pytest.mark.parametrize("form", ["gemm", "matmul", "reduce"])
def test_conv_head_is_exact_without_an_activation(form: str) -> None:
    source = Residual(STAGES, head=form).proto
    result = onnxsep.rewrite(source, mode="conv-head")
    np.testing.assert_allclose(run(result.model.proto, images())[0], run(source, images())[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "given", [{"norm": True, "activation": "relu"}, {"activation": "relu"}, {"norm": True, "activation": "relu6"}]
)
def test_conv_head_shifts_logits_so_that_nothing_is_cut_off(given: dict[str, Any]) -> None:
    """What it reads is at most 1 long, so that a logit is at most s, the largest norm of a row."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 3)), np.array([0.1, -0.1, 0.0, 0.2])
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="fc", transB=1),
    ]
    source = model(
        nodes,
        [tensor("w", weight), tensor("b", bias)],
        inputs=[value("image", ["n", 3, SIDE, SIDE])],
        outputs=[value("y", ["n", 4])],
    )
    feed = images(5)
    feed /= np.linalg.norm(feed, axis=1, keepdims=True)
    made = onnxsep.rewrite(source, mode="conv-head", settings=given).model.proto
    size = np.linalg.norm(weight, axis=1).max()
    wanted = run(source, feed)[0] + 3 * size
    if given["activation"] == "relu6":
        wanted = wanted / size
    np.testing.assert_allclose(run(made, feed)[0], wanted, rtol=1e-4)


def test_conv_head_without_its_expansion_computes_the_same_where_nothing_bends() -> None:
    source = Residual(STAGES, activation="Relu").proto
    wide = onnxsep.rewrite(source, mode="expand-before-gap", settings={"channels": 7, "activation": "relu"})
    made = onnxsep.rewrite(wide.model, mode="conv-head", settings={"absorb": True}).model.proto
    # The expansion puts channels back in their places; what comes in is not cut at 0 any more.
    pool = next(node for node in made.graph.node if node.op_type == "GlobalAveragePool")
    assert next(node.op_type for node in made.graph.node if pool.input[0] in node.output) == "Conv"
    assert run(made, images())[0].shape == (2, CLASSES)


def test_the_bias_of_a_linear_layer_goes() -> None:
    for form in ("gemm", "matmul"):
        source = Residual(STAGES, head=form).proto
        last = source.graph.node[-1]
        bias = next(numpy_helper.to_array(one) for one in source.graph.initializer if one.name == last.input[-1])
        made = onnxsep.rewrite(source, mode="linear-bias").model.proto
        np.testing.assert_allclose(run(made, images())[0], run(source, images())[0] - bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "steps",
    [
        [  # R9
            ("late-stride", {}),
            ("expand-before-gap", {"channels": 8, "block": "conv"}),
            ("narrow-stages", {"widths": "3,5"}),
            ("narrow-stem", {"channels": 2}),
            ("inverted-bottleneck", {"end": "none"}),
            ("conv-head", {"norm": True, "activation": "relu6", "bias": False, "absorb": True}),
        ],
        [  # R14
            ("narrow-inner", {"layers": "5,6", "widths": "4"}),
            ("narrow-stages", {"widths": "4,8"}),
            ("drop-block", {}),
            ("narrow-stem", {"channels": 4}),
            ("conv-head", {"norm": True, "activation": "relu6", "bias": False}),
            ("ghost-bottleneck", {"middle": "strided", "gate": 4, "end": "none"}),
        ],
    ],
)
def test_modes_compose_with_weights(steps: list[tuple[str, dict[str, Any]]]) -> None:
    made: Any = Residual(((8, 12, 2), (8, 16, 2))).proto
    for mode, asked in steps:
        result = onnxsep.rewrite(made, mode=mode, settings=asked, force=mode.endswith("bottleneck"))
        assert result.report.totals.replaced, mode
        assert result.report.verification.ran
        made = result.model
    onnx.checker.check_model(made.proto, full_check=True)
    first = run(made.proto, images())[0]
    assert first.shape == (2, CLASSES)
    assert np.isfinite(first).all()


@pytest.mark.parametrize(
    ("mode", "given", "change", "message"),
    [
        ("late-stride", {}, "pads", "different kernels or pads"),
        ("late-stride", {}, "read", "is an output of the graph"),
        ("drop-block", {}, "max", "is not the last block: what it computes goes on into GlobalMaxPool"),
        ("expand-before-gap", {"channels": 3}, "training", "training mode"),
        ("expand-before-gap", {"channels": 16}, "", "it has 16 channels, and 16 are not fewer"),
        ("expand-before-gap", {"channels": 3}, "read", ""),
        ("conv-head", {}, "max", "its pool is GlobalMaxPool, not the mean over all positions"),
        ("conv-head", {}, "alpha", "alpha is 2"),
        ("conv-head", {"absorb": True}, "", "no mean and linear layer"),
        ("linear-bias", {}, "alpha", "alpha is 2"),
    ],
)
def test_what_cannot_be_is_left_alone_with_its_reason(
    mode: str, given: dict[str, Any], change: str, message: str
) -> None:
    source = Residual(STAGES)
    proto = source.proto
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    if change == "pads":
        next(one for one in convs[9].attribute if one.name == "pads").ints[:] = [2, 2, 0, 0]
    elif change == "read":
        block = [node for node in proto.graph.node if node.op_type == "Add"][1]
        proto.graph.output.append(onnx.ValueInfoProto(name=block.output[0]))
    elif change == "max":
        next(node for node in proto.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"
    elif change == "training":
        norm = [node for node in proto.graph.node if node.op_type == "BatchNormalization"][-1]
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        norm.output.extend(["m", "v"])
    elif change == "alpha":
        proto.graph.node[-1].attribute.append(helper.make_attribute("alpha", 2.0))
    result = onnxsep.rewrite(proto, mode=mode, settings=given, verify="none")
    reasons = [row.reason for row in result.report.convs if row.status == "left"]
    if message:
        assert any(message in reason for reason in reasons), reasons
        assert result.report.totals.replaced == 0
    else:
        assert result.report.totals.replaced == 1
