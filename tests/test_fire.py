"""The mode fire: squeeze, then 1 x 1 and k x k side by side, from a factorisation of the trained weights."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fold_models import Floats, arrays, model, tensor, value
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from scipy.signal import correlate
from sobolewski_light import baseline, counts, rewritten

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.modes import available_modes


def network(weight: Floats, *, bias: bool = True, norm: bool = True, size: int = 9, **geometry: Any) -> onnx.ModelProto:
    """x -> Conv -> [BatchNormalization] -> Clip -> y."""
    outputs, rng = len(weight), np.random.default_rng(2)
    inputs, dims = weight.shape[1] * geometry.get("group", 1), weight.ndim - 2
    tensors = [tensor("w", weight), tensor("least", 0.0), tensor("most", 6.0)]
    if bias:
        tensors.append(tensor("b", rng.normal(size=outputs)))
    nodes = [helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", **geometry)]
    if norm:
        names = ["gamma", "beta", "mean", "var"]
        tensors += [tensor(name, rng.uniform(0.5, 2, outputs)) for name in names]
        nodes.append(helper.make_node("BatchNormalization", ["c", *names], ["n"], name="norm"))
    nodes.append(helper.make_node("Clip", ["n" if norm else "c", "least", "most"], ["y"], name="act"))
    ends = [value("x", [2, inputs, *[size] * dims])], [value("y", [2, outputs, *[None] * dims])]
    return model(nodes, tensors, inputs=ends[0], outputs=ends[1])


def output(proto: onnx.ModelProto, name: str, feed: Any) -> Any:
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    del proto.graph.output[:]
    proto.graph.output.append(value(name, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": feed})[0]


def fire(proto: onnx.ModelProto, **given: Any) -> onnxsep.Result:
    return onnxsep.rewrite(proto, mode="fire", force=True, **given)


def images(channels: int, size: int = 9) -> Any:
    return np.random.default_rng(1).normal(size=(2, channels, size, size)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
    outputs=st.integers(2, 17),
    inputs=st.integers(1, 9),
    kernel=st.sampled_from([(3, 3), (5, 5), (1, 3), (2, 2)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    norm=st.booleans(),
    squeeze=st.sampled_from([0.125, 0.25, 0.5, 0.9]),
)
def test_random_blocks(
    outputs: int,
    inputs: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    bias: bool,
    norm: bool,
    squeeze: float,
) -> None:
    weight = np.random.default_rng(0).normal(size=(outputs, inputs, *kernel))
    begins = [dilation * ((k - 1) // 2) for k in kernel]
    pads = [*begins, *(dilation * (k - 1) - begin for k, begin in zip(kernel, begins, strict=True))]
    geometry: dict[str, Any] = {"pads": pads, "strides": [stride] * 2, "dilations": [dilation] * 2}
    source = network(weight, bias=bias, norm=norm, **geometry)
    result = fire(source, settings={"squeeze": squeeze})
    made = result.model.proto
    onnx.checker.check_model(made, full_check=True)
    q, e = max(1, round(outputs * squeeze)), max(1, round(outputs * 0.5))
    formula = q * (inputs + 1) + e * (q + 1) + (outputs - e) * (q * kernel[0] * kernel[1] + 1)
    row = result.report.convs[0]
    assert row.parameters_after == formula
    assert row.parameters_before == weight.size + bias * outputs
    assert output(made, "y", images(inputs)).shape == output(source, "y", images(inputs)).shape
    assert list(made.graph.node)[-1 - norm :] == list(source.graph.node)[-1 - norm :]
    kept = [one for one in source.graph.initializer if one.name not in ("w", "b")]
    assert list(made.graph.initializer)[: len(kept)] == kept
    again = fire(made, settings={"squeeze": squeeze})
    assert again.model.proto.SerializeToString() == made.SerializeToString()


def exact_weight(outputs: int, inputs: int, rank: int, first: int) -> Floats:
    """A weight that the form can hold: of that rank over the inputs, the first kernels with a centre alone."""
    rng = np.random.default_rng(5)
    kernels = rng.normal(size=(outputs, rank, 3, 3))
    middle = kernels[:first, :, 1, 1].copy()
    kernels[:first] = 0
    kernels[:first, :, 1, 1] = middle
    found: Floats = np.einsum("orab,ri->oiab", kernels, rng.normal(size=(rank, inputs)))
    return found


@pytest.mark.parametrize(("stride", "bias", "squeeze"), [(1, True, 0.25), (2, False, 0.25), (2, True, 0.5)])
def test_what_the_form_can_hold_is_exact(stride: int, bias: bool, squeeze: float) -> None:
    weight = exact_weight(12, 6, 3, 6)
    source = network(weight, bias=bias, norm=False, pads=[1] * 4, strides=[stride] * 2)
    made = fire(source, settings={"squeeze": squeeze}).model.proto
    expected, found = (output(one, "c", images(6)) for one in (source, made))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_start_is_the_truncated_svd_of_what_the_form_holds() -> None:
    """Error by the mathematics: the singular values that are left out, and the taps that the first kernels lose."""
    weight = np.random.default_rng(0).normal(size=(8, 6, 3, 3))
    held = arrays(fire(network(weight, pads=[1] * 4), settings={"squeeze": 0.25}).model.proto)
    squeeze, one, three = (
        held[name][..., 0, 0] if name != "c_expand3_weight" else held[name]
        for name in ("c_squeeze_weight", "c_expand1_weight", "c_expand3_weight")
    )
    made = np.zeros_like(weight)
    made[:4, :, 1, 1] = one @ squeeze
    made[4:] = np.einsum("oqab,qi->oiab", three, squeeze)
    matrix = np.concatenate([weight[:4, :, 1, 1], weight[4:].transpose(0, 2, 3, 1).reshape(-1, 6)])
    left_out = np.square(np.linalg.svd(matrix, compute_uv=False)[2:]).sum()
    lost = np.square(weight[:4]).sum() - np.square(weight[:4, :, 1, 1]).sum()
    assert np.square(weight - made).sum() == pytest.approx(left_out + lost, rel=1e-4)
    np.testing.assert_array_equal(held["c_squeeze_bias"], 0)


def test_one_branch_reads_the_place_of_the_output() -> None:
    """Pads that lie on one side alone: the 1 x 1 branch stands for the first tap."""
    weight = np.zeros((4, 2, 3, 3))
    weight[:2, :, 0, 0] = np.random.default_rng(0).normal(size=(2, 2))
    source = network(weight, norm=False, bias=False, pads=[0, 0, 2, 2])
    made = fire(source, settings={"squeeze": 0.5}).model.proto
    x = images(2)
    expected = sum(correlate(x[0, one], weight[0, one, :1, :1], mode="valid") for one in range(2))
    np.testing.assert_allclose(output(made, "c", x)[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_pay_or_fit_is_left_alone() -> None:
    def reason(weight: Floats, force: bool = False, **given: Any) -> str:
        report = onnxsep.rewrite(network(weight, **given), mode="fire", force=force).report
        assert report.totals.replaced == 0
        return report.convs[0].reason

    rng = np.random.default_rng(0)
    ones = np.ones((4, 4, 1, 1))
    assert reason(ones) == "a 1 x 1 kernel has nothing to separate"
    assert reason(np.ones((64, 3, 3, 3)), pads=[1] * 4) == "does not pay: 1,792 -> 2,656 parameters (force=True)"
    few = rng.normal(size=(8, 8, 3, 3))
    assert reason(few, force=True).startswith("its pads are not those that a 1 x 1 Conv beside it needs")
    assert reason(few, force=True, auto_pad="VALID").startswith("its pads are not")
    assert reason(few[:, :4], force=True, group=2, pads=[1] * 4) == "it has 2 groups"
    assert reason(few[:1], force=True, pads=[1] * 4) == "it has one output channel, and the form needs two"
    for wrong in ({"squeeze": 0}, {"squeeze": 1.5}, {"pointwise": 1}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))} must be a number, above 0 and below 1"):
            fire(network(few), settings=wrong)


def test_it_is_said_that_it_needs_training() -> None:
    result = fire(network(np.random.default_rng(0).normal(size=(16, 16, 3, 3)), pads=[1] * 4))
    assert any(
        note.startswith("warning: mode fire: new blocks start from a factorisation") for note in result.report.notes
    )
    assert result.report.convs[0].notes == ()
    assert onnxsep.rewrite(result.model, mode="spatial", include_first=True).report.totals.replaced == 0


def test_counts_of_v5_and_of_v5_with_squeeze_excitation() -> None:
    """What V5 has live (its squeezed channels have BatchNormalization and Relu that nothing reads)."""
    modes = available_modes()
    v2, _ = rewritten(baseline("vgg19"), modes["gap-head"])
    v5, plan = rewritten(v2, modes["fire"], force=True)
    assert len(plan.replacements) == 16
    assert counts(v5) == (1_800_530, 40_221_696)
    gated, _ = rewritten(rewritten(v2, modes["squeeze-excitation"])[0], modes["fire"], force=True)
    assert counts(gated) == (1_800_530 + 1_200_128, 40_221_696 + 1_503_232)
