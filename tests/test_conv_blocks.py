"""Block modes for one Conv: ghost, grouped-pointwise, dice, and the Fire modules of paper 004's later networks."""

from typing import Any

import numpy as np
import onnx
import pytest
from block_networks import ACTIVATIONS, Net, images, reasons, rewritten, run
from fold_models import Floats, arrays
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxsep


def layer(
    weight: Any, *, bias: bool = False, norm: bool = False, form: str = "", concat: bool = False, **geometry: Any
) -> onnx.ModelProto:
    """A Conv of a given weight; ``concat``: behind a Concat of two other Convs' outputs."""
    net, x = Net(1), "x"
    weight = np.asarray(weight)
    channels = weight.shape[1] * geometry.get("group", 1)
    if concat:
        x = net.node("Concat", *(net.conv("x", (channels, channels // 2), 1) for _ in range(2)), axis=1)
    inputs = [x, net.tensor(weight), *([net.tensor(net.rng.normal(size=len(weight)))] if bias else [])]
    y = net.node("Conv", *inputs, **geometry)
    if norm:
        y = net.node("BatchNormalization", y, *(net.tensor(net.rng.uniform(0.5, 2, len(weight))) for _ in range(4)))
    return net.model(channels, net.activation(form, y) if form else y)


def kernels(*shape: int) -> Floats:
    found: Floats = np.random.default_rng(3).normal(size=shape)
    return found


random_layers = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "norm": st.booleans(),
        "form": st.sampled_from(["", *ACTIVATIONS]),
        "concat": st.booleans(),
        "stride": st.sampled_from([1, 2]),
    }
)


def geometry_of(shape: dict[str, Any], kernel: int) -> dict[str, Any]:
    others = {name: one for name, one in shape.items() if name != "stride"}
    return {**others, "strides": [shape["stride"]] * 2, "pads": [kernel // 2] * 4}


def beside(shape: dict[str, Any]) -> list[str]:
    """The Convs before the Concat."""
    return ["conv0", "conv1"] if shape["concat"] else []


def only_row(result: onnxsep.Result) -> Any:
    rows = [row for row in result.report.convs if row.status == "replaced"]
    assert len(rows) == 1
    return rows[0]


# ---------------------------------------------------------------- ghost


@settings(max_examples=8, deadline=None)
@given(
    shape=random_layers,
    kernel=st.sampled_from([1, 3]),
    ratio=st.sampled_from([2, 3]),
    cheap=st.sampled_from([1, 3, 5]),
    primary=st.sampled_from(["conv", "pointwise"]),
)
def test_random_ghosts(shape: dict[str, Any], kernel: int, ratio: int, cheap: int, primary: str) -> None:
    proto = layer(kernels(6, 4, kernel, kernel), **geometry_of(shape, kernel))
    given_settings = {"ratio": ratio, "kernel": cheap, "primary": primary}
    row = only_row(
        rewritten(
            proto,
            "ghost",
            images(4),
            skip=beside(shape),
            settings=given_settings,
        )
    )
    few, taps = 6 // ratio, 1 if primary == "pointwise" else kernel**2
    assert row.parameters_after == few * 4 * taps + (6 - few) * cheap**2 + 6 * shape["bias"]


@pytest.mark.parametrize("bias", [False, True])
def test_ghosts_of_multiples_are_exact(bias: bool) -> None:
    weight = kernels(9, 4, 3, 3)
    weight[:6] = np.repeat(weight[6:], 2, axis=0) * np.array([1, -2, 0.5, 3, 1, 0.1])[:, None, None, None]
    proto = layer(weight, bias=bias, pads=[1] * 4, strides=[2] * 2)
    made = rewritten(proto, "ghost", images(4), settings={"ratio": 3}).model.proto
    np.testing.assert_allclose(run(made, images(4))[0], run(proto, images(4))[0], rtol=1e-4, atol=1e-5)


def test_ghosts_that_are_one_kernel_apart_are_exact_with_pointwise_primaries() -> None:
    common, taps = kernels(3, 4), kernels(3, 3, 3)
    weight = np.zeros((6, 4, 3, 3))
    weight[3:, :, 1, 1] = common
    weight[:3] = np.einsum("oi,oab->oiab", common, taps)
    proto = layer(weight, pads=[1] * 4)
    made = rewritten(proto, "ghost", images(4), settings={"primary": "pointwise"}).model.proto
    np.testing.assert_allclose(run(made, images(4))[0], run(proto, images(4))[0], rtol=1e-4, atol=1e-5)


def test_the_start_of_ghosts_has_the_least_error_of_the_form() -> None:
    """By the mathematics: of each pair of kernels the smaller singular value is lost."""
    weight = kernels(8, 4, 3, 3)
    held = arrays(rewritten(layer(weight, pads=[1] * 4), "ghost", images(4)).model.proto)
    primary, cheap = held["y_primary_weight"], held["y_cheap_weight"]
    assert np.count_nonzero(cheap) == 4  # the middle taps
    made = np.concatenate([primary * cheap[:, :, 1:2, 1:2], primary])
    pairs = np.stack([weight[:4].reshape(4, -1), weight[4:].reshape(4, -1)], axis=1)
    lost = np.linalg.svd(pairs, compute_uv=False)[:, 1]
    assert np.square(made - weight).sum() == pytest.approx(np.square(lost).sum(), rel=1e-4)


def test_what_cannot_be_made_of_ghosts() -> None:
    assert reasons(layer(kernels(5, 4, 3, 3), pads=[1] * 4), "ghost") == {
        "conv0": "its 5 outputs are no multiple of the ratio 2"
    }
    assert reasons(layer(kernels(4, 2, 3, 3), pads=[1] * 4, group=2), "ghost") == {"conv0": "it has 2 groups"}
    pointwise = {"primary": "pointwise"}
    told = reasons(layer(kernels(4, 4, 3, 3)), "ghost", settings=pointwise)
    assert told == {"conv0": "its pads are not those that a 1 x 1 Conv in its place needs"}
    small = layer(kernels(2, 2, 1, 1))
    told = reasons(small, "ghost", force=False)
    assert told == {"conv0": "does not pay: 4 -> 11 parameters (force=True)"}


# ---------------------------------------------------------------- grouped-pointwise


@settings(max_examples=6, deadline=None)
@given(shape=random_layers, groups=st.sampled_from([0, 2, 4]), shuffle=st.booleans())
def test_random_grouped_layers(shape: dict[str, Any], groups: int, shuffle: bool) -> None:
    proto = layer(kernels(12, 8, 1, 1), **geometry_of(shape, 1))
    given_settings = {"groups": groups, "shuffle": shuffle, "above": 0}
    result = rewritten(proto, "grouped-pointwise", images(8), skip=beside(shape), settings=given_settings)
    assert only_row(result).parameters_after == 12 * 8 // (groups or 4) + 12 * shape["bias"]


@pytest.mark.parametrize("shuffle", [True, False])
def test_groups_of_the_old_weight_are_exact(shuffle: bool) -> None:
    outputs, inputs, groups = 8, 12, 4
    group_of = np.arange(outputs) % groups if shuffle else np.arange(outputs) * groups // outputs
    weight = (
        kernels(outputs, inputs, 1, 1) * (np.arange(inputs) * groups // inputs == group_of[:, None])[..., None, None]
    )
    proto = layer(weight, bias=True, norm=True, form="Relu")
    result = rewritten(proto, "grouped-pointwise", images(12), settings={"above": 0, "shuffle": shuffle})
    np.testing.assert_allclose(run(result.model.proto, images(12))[0], run(proto, images(12))[0], rtol=1e-4, atol=1e-5)


def test_the_shuffle_is_that_of_the_paper() -> None:
    """X. Zhang et al. 2018: reshape to [groups, n], transpose, flatten."""
    made = rewritten(layer(kernels(8, 12, 1, 1)), "grouped-pointwise", images(12), settings={"above": 0}).model.proto
    before, after = run(made, images(12), made.graph.node[0].output[0], "y")
    count, channels, *size = before.shape
    wanted = before.reshape(count, 4, channels // 4, *size).swapaxes(1, 2).reshape(before.shape)
    np.testing.assert_array_equal(after, wanted)


def test_what_cannot_be_grouped() -> None:
    def told(weight: Any, **given_settings: Any) -> str:
        return reasons(
            layer(weight, pads=[np.shape(weight)[2] // 2] * 4), "grouped-pointwise", settings=given_settings
        )["conv0"]

    assert told(kernels(8, 6, 1, 1), above=0) == "4 groups do not divide its 6 inputs and 8 outputs"
    assert told(kernels(7, 5, 1, 1), above=0, groups=0) == "nothing divides its 5 inputs and 7 outputs"
    assert told(kernels(8, 8, 1, 1)) == "its 8 inputs are no more than 24 (setting above)"
    assert told(kernels(8, 8, 3, 3)) == "its kernel is 3 x 3, not 1 x 1"
    with pytest.raises(
        onnxsep.OnnxsepError, match=r"has no setting 'group'; did you mean 'groups'\?|has no setting 'group'"
    ):
        told(kernels(8, 8, 1, 1), group=2)
    with pytest.raises(onnxsep.OnnxsepError, match="groups must be a whole number, 0, or 2 or more, not 1"):
        told(kernels(8, 8, 1, 1), groups=1)


# ---------------------------------------------------------------- dice


@settings(max_examples=6, deadline=None)
@given(shape=random_layers, pads=st.sampled_from(["dicenet", "paper004"]), outputs=st.sampled_from([4, 6]))
def test_random_dice_units(shape: dict[str, Any], pads: str, outputs: int) -> None:
    proto = layer(kernels(outputs, 4, 3, 3), **geometry_of(shape, 3))
    result = rewritten(proto, "dice", images(4), skip=beside(shape), settings={"pads": pads})
    kinds = [
        node.op_type
        for node in result.model.proto.graph.node
        if node.name not in {one.name for one in proto.graph.node}
    ]
    norms = kinds.count("BatchNormalization")
    assert norms == (0 if not shape["norm"] else 3 if shape["stride"] == 1 else 5)
    assert kinds.count("Transpose") == 4
    assert kinds[-1] == ("Mul" if shape["stride"] == 1 else "Gather")


def test_a_row_is_a_channel_to_the_convs_of_rows() -> None:
    """What the unit computes before its Convs are joined, by numpy."""
    made = rewritten(layer(kernels(4, 4, 3, 3), pads=[1] * 4), "dice", images(4)).model.proto
    held, x = arrays(made), images(4)
    rows, columns = run(made, x, "y_dice_rows", "y_dice_columns")
    kernel = held["y_dice_rows_conv_weight"][:, 0]  # [rows, 3, 3] over channels and columns
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (1, 1)))
    wanted = sum(
        kernel[None, None, :, c, w, None] * padded[:, c : c + 4, :, w : w + 8] for c in range(3) for w in range(3)
    )
    np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-5)
    kernel = held["y_dice_columns_conv_weight"][:, 0]  # [columns, 3, 3] over rows and channels
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = sum(kernel[:, h, c] * padded[:, c : c + 4, h : h + 8] for h in range(3) for c in range(3))
    np.testing.assert_allclose(columns, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- fire


FORMS: list[dict[str, Any]] = [
    {"between": "relu", "expand": "grouped", "biases": "pointwise"},
    {"between": "relu6", "biases": "none", "norms": "each"},
    {"between": "relu", "expand": "grouped", "biases": "none", "norms": "pointwise", "shuffle": 4},
    {"shuffle": 2},
]


@pytest.mark.parametrize("form", FORMS)
def test_the_other_fire_modules(form: dict[str, Any]) -> None:
    proto = layer(kernels(16, 6, 3, 3), norm=True, form="Relu", pads=[1] * 4)
    row = only_row(rewritten(proto, "fire", images(6), settings={"squeeze": 0.25, **form}))
    squeezed, half = 4, 8
    biases = {"all": squeezed + 16, "pointwise": squeezed + half, "none": 0}[form.get("biases", "all")]
    norms = (
        4 * squeezed * ("between" in form)
        + {"behind": 0, "each": 4 * 16, "pointwise": 4 * half}[form.get("norms", "behind")]
    )
    wide = half * 9 * (1 if form.get("expand") == "grouped" else squeezed)
    assert row.parameters_after == squeezed * 6 + half * squeezed + wide + biases + norms


@pytest.mark.parametrize("norms", ["each", "pointwise"])
def test_normalization_in_the_branches_is_what_it_was_behind_them(norms: str) -> None:
    """The same start, and what the branches do with BatchNormalization by themselves is the same too."""
    proto = layer(kernels(16, 6, 3, 3), bias=True, norm=True, pads=[1] * 4)
    whole = {"squeeze": 0.25}
    behind, inside = (
        rewritten(proto, "fire", images(6), settings={**whole, "norms": one}) for one in ("behind", norms)
    )
    outputs = [run(one.model.proto, images(6))[0] for one in (behind, inside)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)


def test_a_shuffle_keeps_the_order_of_the_outputs() -> None:
    """Every other output is 1 x 1, and so of the branch that the shuffle puts there: exact."""
    weight = np.zeros((8, 6, 3, 3))
    weight[:, :2] = kernels(8, 2, 3, 3)  # of rank two over the inputs
    weight[::2, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # 1 x 1 ones
    proto = layer(weight, pads=[1] * 4)
    made = rewritten(proto, "fire", images(6), settings={"squeeze": 0.25, "shuffle": 2}).model.proto
    np.testing.assert_allclose(run(made, images(6))[0], run(proto, images(6))[0], rtol=1e-4, atol=1e-5)


def test_what_fire_cannot_divide() -> None:
    def told(**given_settings: Any) -> str:
        bias = given_settings.pop("bias", False)
        return reasons(layer(kernels(16, 6, 3, 3), bias=bias, pads=[1] * 4), "fire", settings=given_settings)["conv0"]

    assert told(expand="grouped", squeeze=0.2) == "3 channels in between do not divide the 8 of the grouped branch"
    assert told(shuffle=3) == "a shuffle of 3 groups does not divide its 16 outputs"
    assert told(biases="none", bias=True).startswith("it has a bias, and not all branches have one")
    assert told(norms="each") == "no Conv with BatchNormalization behind it here"


def test_a_shuffle_needs_operators_that_hold_integers() -> None:
    net = Net()
    proto = net.model(8, net.node("Conv", "x", net.tensor(kernels(8, 8, 1, 1))), opset=8)
    words = "operator set 8: only from 9 on does it hold what a channel shuffle needs"
    assert reasons(proto, "grouped-pointwise", settings={"above": 0}) == {"conv0": words}
    rewritten(proto, "grouped-pointwise", images(8), settings={"above": 0, "shuffle": False})
    net = Net()
    proto = net.model(4, net.node("Conv", "x", net.tensor(kernels(8, 4, 3, 3)), pads=[1] * 4), opset=8)
    assert reasons(proto, "dice") == reasons(proto, "fire", settings={"shuffle": 2}) == {"conv0": words}
