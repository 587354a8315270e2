"""Block modes for residual blocks: inverted-bottleneck, ghost-bottleneck, fire-bottleneck, dice-bottleneck."""

from typing import Any

import numpy as np
import onnx
import pytest
from block_networks import Net, images, reasons, rewritten, run, shapes_of_residual_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxsep

MODES = ("inverted-bottleneck", "ghost-bottleneck", "fire-bottleneck", "dice-bottleneck")


def block(seed: int = 0, *, skip: str = "auto", **shape: Any) -> onnx.ModelProto:
    net = Net(seed)
    return net.model(shape["ci"], net.residual("x", skip=skip, **shape))


def parameters(mode: str, shape: dict[str, Any]) -> Any:
    """What the form has beside the skip, by the formula; every BatchNormalization counts four for each channel."""
    ci, inner, co, norm = (shape[name] for name in ("ci", "inner", "co", "norm"))
    behind = 4 if norm else 1  # for each channel: BatchNormalization, or a bias
    if mode == "inverted-bottleneck":
        e = inner if shape["bottleneck"] else 6 * ci
        return ci * e + behind * e + 9 * e + behind * e + e * co + behind * co
    if mode == "ghost-bottleneck":
        middle = shape["skip"] == "conv" or shape["stride"] > 1 or ci != co

        def ghost(a: int, b: int) -> Any:
            return a * b // 2 + 9 * b // 2 + behind * b

        return ghost(ci, inner) + (9 + behind) * inner * middle + ghost(inner, co)
    if mode == "fire-bottleneck":
        q = inner if shape["bottleneck"] else max(1, round(co / 8))
        first = co // 2
        return q * (ci + 1) + first * (q + 1) + (co - first) * (9 * q + 1)
    size = 8 // shape["stride"]

    def dice(a: int, b: int) -> int:
        three = 9 * a + 2 * 9 * size + (12 * a if norm else 0)
        last = b * 9 * a // np.gcd(a, b) + behind * b
        return int(three + (3 + behind) * a + last + max(1, a // 4) * (a + b))

    first = ci * inner + behind * inner
    if shape["stride"] == 1:
        return first + dice(inner, co)
    half = -(-co // 2)
    return first + (9 + behind) * inner + half * (inner + behind) + dice(inner, co - half)


@settings(max_examples=12, deadline=None)
@given(mode=st.sampled_from(MODES), shape=shapes_of_residual_blocks, seed=st.integers(0, 9))
def test_random_blocks(mode: str, shape: dict[str, Any], seed: int) -> None:
    proto = block(seed, **shape)
    result = rewritten(proto, mode, images(shape["ci"]))
    row = next(one for one in result.report.convs if one.status == "replaced")
    skip = 0
    if shape["skip"] == "conv" or shape["stride"] > 1 or shape["ci"] != shape["co"]:
        skip = shape["ci"] * shape["co"] + (4 if shape["norm"] else 1) * shape["co"]
    assert row.parameters_after == parameters(mode, shape) + skip
    assert result.report.totals.parameters_after == row.parameters_after


@pytest.mark.parametrize("mode", MODES)
def test_any_other_skip_stays_where_it_is(mode: str) -> None:
    """Slices and zeros, as the networks of K. He et al. for CIFAR have them."""
    shape: dict[str, Any] = {
        "ci": 4,
        "inner": 6,
        "co": 6,
        "bottleneck": False,
        "stride": 2,
        "form": "Relu",
        "norm": True,
    }
    proto = block(skip="slice", **shape)
    result = rewritten(proto, mode, images(4))
    assert result.report.totals.replaced == 1
    kept = [node.op_type for node in result.model.proto.graph.node if node in list(proto.graph.node)]
    assert kept == ["Slice", "Pad", "Add", "Relu"]


def test_the_activation_of_the_sum_goes_where_that_is_asked_for() -> None:
    shape: dict[str, Any] = {"ci": 4, "inner": 4, "co": 4, "bottleneck": True, "form": "SiLU", "norm": False}
    for end, last in (("keep", "Mul"), ("none", "Add")):
        result = rewritten(block(**shape), "inverted-bottleneck", images(4), settings={"end": end})
        assert result.model.proto.graph.node[-1].op_type == last
        assert result.report.totals.replaced == 1


def test_an_inverted_bottleneck_begins_with_the_weights_of_the_old_block() -> None:
    """Where the inner Conv has kernels on its diagonal alone, the depthwise one is it, up to the sizes."""
    net = Net(3)
    y = net.activation("Relu", net.conv("x", (4, 6), 1, norm=True))
    weight = np.zeros((6, 6, 3, 3))
    weight[np.arange(6), np.arange(6)] = np.abs(net.rng.normal(size=(6, 3, 3)))  # of no doubtful sign
    statistics = [net.tensor(np.full(6, one)) for one in (1.5, 0.3, 0.2, 0.8)]
    y = net.node("Conv", y, net.tensor(weight), pads=[1] * 4)
    y = net.activation("Relu", net.node("BatchNormalization", y, *statistics))
    y = net.node("Add", net.conv(y, (6, 4), 1, norm=True), "x")
    proto = net.model(4, y)
    made = rewritten(proto, "inverted-bottleneck", images(4), settings={"activation": "relu"}).model.proto
    np.testing.assert_allclose(run(made, images(4))[0], run(proto, images(4))[0], rtol=1e-4, atol=1e-5)


def test_gates_begin_as_one() -> None:
    shape: dict[str, Any] = {"ci": 4, "inner": 4, "co": 4, "bottleneck": True, "norm": True}
    made = [rewritten(block(**shape), "ghost-bottleneck", images(4), settings={"gate": part}) for part in (0, 2)]
    assert made[1].report.totals.parameters_after - made[0].report.totals.parameters_after == 2 * 4 * 2
    gate = next(node.output[0] for node in made[1].model.proto.graph.node if node.name.endswith("se_twice"))
    again = run(made[1].model.proto, images(4), gate)[0]
    np.testing.assert_array_equal(again, np.ones_like(again))


def test_what_is_no_residual_block_is_told() -> None:
    net = Net()
    y = net.activation("Relu", net.conv("x", (4, 4), 1))
    y = net.conv(y, (4, 4), 3)
    told = reasons(net.model(4, net.activation("Relu", y)), "inverted-bottleneck")
    assert told["conv0"] == told["conv2"] == "no residual block: Conv 'conv2' is not added to a skip, and nothing else"
    net = Net()
    y = net.conv(net.activation("Relu", net.conv("x", (4, 4), 1)), (4, 4), 3)
    other = net.conv(net.node("Sigmoid", net.conv("x", (4, 4), 1)), (4, 4), 1)
    told = reasons(net.model(4, net.node("Add", y, net.node("Exp", other))), "inverted-bottleneck")
    assert set(told.values()) != {""}


@pytest.mark.parametrize(
    ("mode", "change", "words"),
    [
        ("ghost-bottleneck", {"inner": 5}, "it has 5 channels inside and 4 outputs, and half of each are ghosts"),
        ("ghost-bottleneck", {"settings": {"gate": 8}}, "its 4 channels inside are fewer than the gate's part 8"),
        ("dice-bottleneck", {"free": True}, "a DiCE unit is for images of known sizes"),
        ("fire-bottleneck", {"co": 1}, "it has one output channel"),
        ("inverted-bottleneck", {"training": True}, "the BatchNormalization of its 1 Conv is in training mode"),
    ],
)
def test_refusals(mode: str, change: dict[str, Any], words: str) -> None:
    shape: dict[str, Any] = {"ci": 4, "inner": 4, "co": 4, "bottleneck": True, "norm": True}
    proto = block(**{**shape, **{name: one for name, one in change.items() if name in shape}})
    if "free" in change:
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "s"
    if "training" in change:
        norm = next(node for node in proto.graph.node if node.op_type == "BatchNormalization")
        norm.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    told = reasons(proto, mode, settings=change.get("settings"))
    assert any(words in reason for reason in told.values()), told


def test_impossible_settings_name_the_known_ones() -> None:
    shape: dict[str, Any] = {"ci": 4, "inner": 4, "co": 4, "bottleneck": True}
    for given_settings, words in (
        ({"expansion": -1}, "expansion must be a number, 0 or more"),
        ({"end": "relu"}, "end must be one of keep, none"),
        ({"ratio": 2}, "has no setting 'ratio'; it has expansion="),
    ):
        with pytest.raises(onnxsep.OnnxsepError, match=words):
            onnxsep.rewrite(block(**shape), mode="inverted-bottleneck", settings=given_settings)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_values_keep_their_size_without_data(mode: str, norm: bool) -> None:
    """Eight blocks one after the other: what is drawn neither explodes nor dies."""
    net, y = Net(8), "x"
    for _ in range(8):
        y = net.residual(y, 6, 6, 6, bottleneck=False, norm=norm)
    proto = net.model(6, y)
    made = onnxsep.rewrite(proto, mode=mode, force=True, verify="none").model.proto
    sizes = [float(np.sqrt(np.square(run(one, images(6))[0]).mean())) for one in (proto, made)]
    assert 0.1 < sizes[1] / sizes[0] < 10
