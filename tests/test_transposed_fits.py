"""ConvTransposes and grouped Convs fitted to data."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, difference, fitted, images, network, outputs, replaced, row
from random_examples import some
from transposed_models import MODES

import onnxsep
from onnxsep.modes.base import conv_modes

X = images(40)
# Twice the size in groups, with a normalization; the same again, with a skip; then both ends of an activation.
BODY = """g (float[N, 3, 8, 8] x) => (float[N, 4, 15, 15] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    b = Relu(a)
    c = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], group = 2>(b, w2)
    d = BatchNormalization(c, gamma, beta, mean, variance)
    e = Relu(d)
    f = Conv<pads = [1, 1, 1, 1], group = 2>(e, w3)
    s = Add(f, d)
    h = Relu(s)
    k = ConvTranspose<pads = [1, 1, 1, 1]>(h, w4, b4)
    y = Relu(k)
}"""
UP = network(
    BODY,
    w1=(8, 3, 3, 3),
    w2=(8, 4, 3, 3),
    w3=(8, 4, 3, 3),
    w4=(8, 4, 3, 3),
    b4=(4,),
    gamma=np.linspace(0.5, 1.5, 8).astype(np.float32),
    beta=np.linspace(-0.2, 0.2, 8).astype(np.float32),
    mean=np.zeros(8, np.float32),
    variance=np.ones(8, np.float32),
)


@pytest.mark.parametrize("name", MODES)
def test_full_rank_with_data_is_the_original(name: str) -> None:
    for init in some(reversed(conv_modes()[name].inits), 2):
        result = fitted(UP, X, mode=name, rank="full", init=init, positions=16, include_first=False)
        assert [entry.status for entry in result.report.convs] == ["left", *["replaced"] * 3]
        assert difference(UP, result.proto) < 1e-4, init
        assert all(entry.held_out_error is not None and entry.held_out_error < 1e-4 for entry in replaced(result))


@pytest.mark.parametrize("name", MODES)
def test_the_fit_is_better_than_the_weights_alone(name: str) -> None:
    result = fitted(UP, X, mode=name, rank=0.5, include_first=False)
    gains = [(entry.svd_error or 0) - (entry.held_out_error or 0) for entry in replaced(result)]
    assert len(gains) == 3
    assert min(gains) >= 0
    assert sum(gain > 0.03 for gain in gains) >= 2
    assert difference(UP, result.proto) < 0.95 * difference(
        UP, fitted(UP, None, mode=name, rank=0.5, include_first=False).proto
    )


@pytest.mark.parametrize("name", MODES)
def test_reported_errors_are_those_of_the_result(name: str) -> None:
    """One ConvTranspose alone, everything sampled: the error of its own output, and in between that of both parts."""
    model = network(
        "g (float[N, 4, 5, 5] x) => (float[N, 6, 11, 11] y) { y = ConvTranspose<strides = [2, 2], group = 2>(x, w) }",
        w=(4, 3, 3, 3),
    )
    x = images(30, (4, 5, 5))
    result = fitted(model, x, mode=name, rank=0.6, positions=1000)
    (entry,) = replaced(result)
    wanted, found = (outputs(one, {"x": x})["y"] for one in (model, result.proto))
    size = np.linalg.norm(wanted - wanted.mean(axis=(0, 2, 3), keepdims=True))
    assert entry.fitted_error is not None
    assert entry.held_out_error is not None
    low, high = sorted([entry.fitted_error, entry.held_out_error])
    assert 0.98 * low < np.linalg.norm(wanted - found) / size < 1.02 * high


def test_recorded_statistics_do_as_well(tmp_path: Path) -> None:
    options: dict[str, Any] = {"runtime": ONE_THREAD, "force": True}
    fitted(UP, X, mode="spatial", rank=0.5, positions=16, statistics=tmp_path / "s.npz")
    for name in some(MODES, 4):
        result = onnxsep.rewrite(UP, mode=name, rank=0.5, statistics=tmp_path / "s.npz", **options)
        gains = [(entry.svd_error or 0) - (entry.held_out_error or 0) for entry in replaced(result)]
        assert min(gains) >= 0
        assert sum(gain > 0.03 for gain in gains) >= 2, name
        onnx.checker.check_model(result.proto, full_check=True)


def test_a_fitted_bias_is_counted_where_there_was_none() -> None:
    for data in (None, X):
        result = fitted(UP, data, mode="channel", rank=2, positions=8)
        before, after = row(result, "convtranspose_c"), row(fitted(UP, None, mode="channel", rank=2), "convtranspose_c")
        assert (before.parameters_after or 0) - (after.parameters_after or 0) == (0 if data is None else 8)


@pytest.mark.parametrize("dtype", some(["float64", "float16"], 2))
def test_types(dtype: str) -> None:
    kinds = {"float64": onnx.TensorProto.DOUBLE, "float16": onnx.TensorProto.FLOAT16}
    model = onnx.ModelProto.FromString(UP.SerializeToString())
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kinds[dtype]
    result = fitted(model, X.astype(dtype), mode="cp", rank=0.5, positions=16, include_first=False)
    assert {tensor.data_type for tensor in result.proto.graph.initializer} == {kinds[dtype]}
    assert [(entry.held_out_error or 1) < (entry.svd_error or 0) for entry in replaced(result)] == [True] * 3
