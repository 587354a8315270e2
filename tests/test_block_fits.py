"""Fitting block modes to data: block by block along the network, their last Convs by least squares."""

from typing import Any

import numpy as np
import onnx
import pytest
from block_networks import Net, images, rewritten, run
from onnx import TensorProto, numpy_helper

import onnxsep

DATA, UNSEEN = images(4, count=40), images(4, count=20, seed=2)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("ghost", {}),
    ("fire", {"squeeze": 0.5, "between": "relu"}),
    ("dice", {"pads": "paper004"}),
    ("inverted-bottleneck", {}),
    ("ghost-bottleneck", {"gate": 2}),
    ("fire-bottleneck", {"squeeze": 0.75}),
]


def network(*, norm: bool = True) -> onnx.ModelProto:
    """Two residual blocks and a classifier."""
    net = Net(5)
    y = net.residual("x", 4, 6, 6, bottleneck=False, norm=norm, stride=2)
    y = net.residual(y, 6, 8, 6, bottleneck=True, norm=norm, form="SiLU")
    return net.model(4, y, classes=6)


def error(made: onnx.ModelProto, wanted: onnx.ModelProto) -> float:
    found, aim = (run(one, UNSEEN)[0].astype(float) for one in (made, wanted))
    return float(np.linalg.norm(found - aim) / np.linalg.norm(aim - aim.mean(axis=0)))


@pytest.mark.parametrize(("mode", "given"), CASES)
def test_a_fit_is_nearer_than_its_start(mode: str, given: dict[str, Any]) -> None:
    proto = network(norm=mode != "dice")
    fitted = onnxsep.rewrite(proto, mode=mode, force=True, verify="none", data=DATA, settings=given)
    rows = [row for row in fitted.report.convs if row.status == "replaced"]
    assert rows
    for row in rows:
        assert row.svd_error is not None
        assert row.held_out_error is not None
        assert row.held_out_error <= row.svd_error
    assert any(row.held_out_error < 0.9 * row.svd_error for row in rows if row.held_out_error and row.svd_error)
    assert fitted.report.calibration is not None
    assert fitted.report.calibration.init == "least-squares"
    assert not any("needs training" in note for note in fitted.report.notes)
    start = onnxsep.rewrite(proto, mode=mode, force=True, verify="none", settings=given).model.proto
    assert error(fitted.model.proto, proto) < error(start, proto)


def pointwise_layer(*, bias: bool = True) -> tuple[onnx.ModelProto, Any]:
    net = Net(2)
    x = net.activation("Relu", net.conv("x", (4, 8), 3))
    weight = net.rng.normal(size=(12, 8, 1, 1))
    inputs = [x, net.tensor(weight), *([net.tensor(net.rng.normal(size=12))] if bias else [])]
    return net.model(4, net.node("Conv", *inputs)), x


@pytest.mark.parametrize("bias", [True, False])
def test_groups_are_those_of_least_squares(bias: bool) -> None:
    """By numpy, on all positions of the images that were fitted: no weights of the form have a lower error there."""
    proto, x = pointwise_layer(bias=bias)
    options: dict[str, Any] = {"settings": {"groups": 2, "above": 0, "shuffle": False}, "data": DATA, "skip": ["conv0"]}
    result = rewritten(proto, "grouped-pointwise", UNSEEN, **options)
    row = next(one for one in result.report.convs if one.status == "replaced")
    read, aim = (one.transpose(0, 2, 3, 1).reshape(-1, one.shape[1]).astype(float) for one in run(proto, DATA, x, "y"))
    made = run(result.model.proto, DATA)[0].transpose(0, 2, 3, 1).reshape(aim.shape)
    least = 0.0
    for group in range(2):
        rows = read[:, 4 * group : 4 * group + 4]
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1) if bias else rows
        target = aim[:, 6 * group : 6 * group + 6]
        solved = np.linalg.lstsq(rows, target, rcond=None)[0]
        least += float(np.square(target - rows @ solved).sum())
    assert least <= np.square(aim - made).sum() < 1.03 * least  # a tenth of the images are held out
    spread = np.square(aim - aim.mean(axis=0)).sum()
    assert row.fitted_error == pytest.approx((least / spread) ** 0.5, rel=0.05)


def test_statistics_of_normalization_are_those_of_what_it_reads() -> None:
    made = rewritten(network(), "inverted-bottleneck", UNSEEN, data=DATA).model.proto
    held = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    norms = [node for node in made.graph.node if node.op_type == "BatchNormalization" and "skip" not in node.name]
    assert len(norms) == 6
    for node in norms:
        (values,) = run(made, DATA, node.input[0])
        mean, variance = (held[name] for name in node.input[3:5])
        tolerance = 0.2 * values.std(axis=(0, 2, 3))  # a tenth of the images and some positions are left out
        assert (np.abs(values.mean(axis=(0, 2, 3)) - mean) <= tolerance).all()
        np.testing.assert_allclose(variance, values.var(axis=(0, 2, 3)), rtol=0.3, atol=1e-6)


def test_a_block_is_fitted_to_what_it_will_read() -> None:
    """Two blocks one after the other: the second makes up for the first, and is better than where it is alone in it."""
    net = Net(4)
    y = net.activation("Relu", net.conv("x", (4, 8), 3))
    y = net.conv(net.activation("Relu", net.conv(y, (8, 8), 3)), (8, 8), 3)
    proto = net.model(4, y)
    both = onnxsep.rewrite(proto, mode="ghost", force=True, verify="none", data=DATA)
    first = onnxsep.rewrite(proto, mode="ghost", force=True, verify="none", data=DATA, only=["conv0", "conv2"])
    last = onnxsep.rewrite(proto, mode="ghost", force=True, verify="none", data=DATA, only="conv4")
    joined = onnx.ModelProto.FromString(both.model.proto.SerializeToString())
    alone = {one.name: one for one in last.model.proto.graph.initializer}
    for one in joined.graph.initializer:
        if one.name in alone:
            one.CopyFrom(alone[one.name])
    assert first.report.totals.replaced == 2
    assert error(both.model.proto, proto) < error(joined, proto)


def test_the_same_data_give_the_same_bytes() -> None:
    made = [onnxsep.rewrite(network(), mode="fire", force=True, verify="none", data=DATA).model.proto for _ in range(2)]
    assert made[0].SerializeToString(deterministic=True) == made[1].SerializeToString(deterministic=True)


def test_weights_that_are_shared_are_fitted_once() -> None:
    net = Net(6)
    weight = net.tensor(net.rng.normal(0, 0.2, (4, 4, 3, 3)))
    y = net.activation("Relu", net.node("Conv", "x", weight, pads=[1] * 4))
    proto = net.model(4, net.node("Conv", y, weight, pads=[1] * 4))
    result = rewritten(proto, "ghost", UNSEEN, data=DATA)
    assert result.report.totals.replaced == 2
    assert [one.name for one in result.model.proto.graph.initializer] == list(result.new_initializers)
    assert len(result.new_initializers) == 2
    rows = result.report.convs
    assert rows[0].held_out_error is not None
    assert rows[1].held_out_error is None


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_types_of_the_source_stay(kind: int) -> None:
    net = Net(7)
    y = net.residual("x", 4, 4, 4, bottleneck=True, norm=False)
    proto = net.model(4, y)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.BFLOAT16 and dtype == np.float32:
        pytest.skip("this old onnx has no type of numpy for bfloat16")
    for one in proto.graph.initializer:
        if one.data_type == TensorProto.FLOAT:
            one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(dtype), one.name))
    for end in (*proto.graph.input, *proto.graph.output):
        end.type.tensor_type.elem_type = kind
    data = DATA.astype(dtype)
    result = onnxsep.rewrite(proto, mode="inverted-bottleneck", force=True, data=data, verify="none")
    made = result.model.proto
    onnx.checker.check_model(made)
    row = next(one for one in result.report.convs if one.status == "replaced")
    assert row.held_out_error is not None
    assert row.svd_error is not None
    assert row.held_out_error < row.svd_error
    floats = {one.data_type for one in made.graph.initializer}
    bounds = {node.attribute[0].t.data_type for node in made.graph.node if node.op_type == "Constant"}
    assert floats == bounds == {kind}


def test_data_that_cannot_be_used() -> None:
    wrong = DATA.copy()
    wrong[3] = np.nan
    with pytest.raises(onnxsep.OnnxsepError, match="NaN or infinity"):
        onnxsep.rewrite(network(), mode="ghost", force=True, data=wrong)
    with pytest.raises(onnxsep.OnnxsepError, match="at least 2 samples"):
        onnxsep.rewrite(network(), mode="ghost", force=True, data=DATA[:1])
    with pytest.raises(onnxsep.OnnxsepError, match="leave init"):
        onnxsep.rewrite(network(), mode="ghost", force=True, data=DATA, init="joint")


def test_blocks_are_trained_one_after_the_other() -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install onnxsep[finetune])")
    options: dict[str, Any] = {"mode": "inverted-bottleneck", "force": True, "verify": "none", "data": DATA}
    plain, trained = (onnxsep.rewrite(network(), **options, tune_blocks=steps).report.convs for steps in (0, 40))
    pairs = [(one.held_out_error, two.held_out_error) for one, two in zip(plain, trained, strict=True)]
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    assert known
    assert sum(two for _, two in known) < 0.97 * sum(one for one, _ in known)


def test_training_of_blocks_is_for_block_modes_with_data() -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install onnxsep[finetune])")
    for mode in ("spatial", "fold", "squeeze-excitation", "gap-head"):
        with pytest.raises(onnxsep.OnnxsepError, match=f"for modes that fit whole blocks, and mode {mode} does not"):
            onnxsep.rewrite(network(), mode=mode, data=DATA, tune_blocks=5)
    with pytest.raises(onnxsep.OnnxsepError, match="needs the inputs themselves"):
        onnxsep.rewrite(network(), mode="ghost", tune_blocks=5)
