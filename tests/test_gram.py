"""Fits to fewer rows than inputs: the same results as with the Gram matrix, which is never formed."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxsep
from onnxsep.algebra.gram import DenseGram, Mixed, RowGram, gram_of, scaled_rows
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import Statistics
from onnxsep.calibration.statistics_file import load_statistics
from onnxsep.errors import CalibrationError
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.modes.base import Task, conv_modes, get_mode
from onnxsep.running.runtime import RuntimeOptions

ROWS = 40


def conv(kernel: tuple[int, ...], *, group: int = 1, inputs: int = 12, outputs: int = 10) -> Conv:
    dims = len(kernel)
    pads = tuple(size // 2 for size in kernel) * 2
    ones = (1,) * dims
    return Conv(inputs, outputs, kernel, strides=ones, pads=pads, dilations=ones, group=group, bias=True)


def both(one: Conv, seed: int = 0) -> tuple[Array, Statistics, Statistics]:
    """A weight, and statistics of the same rows by rows and as matrices, the prior of few rows included."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(one.weight_shape)
    size = weight[0].size
    assert size > ROWS
    mix = rng.standard_normal((one.group, size, size)) / np.sqrt(size)
    originals = rng.standard_normal((one.group, ROWS, size)) @ mix
    rows = originals + 0.1 * rng.standard_normal(originals.shape)
    outputs = originals @ np.swapaxes(weight.reshape(one.group, -1, size), 1, 2)
    cross = np.swapaxes(outputs, 1, 2) @ rows / ROWS
    scaled = [scaled_rows(part) for part in rows]
    before = [scaled_rows(part) for part in originals]
    prior = size / ROWS
    short = Statistics(
        [RowGram(part) for part in scaled], cross, [Mixed(*pair) for pair in zip(before, scaled, strict=True)]
    )
    grams = np.stack([part.T @ part for part in scaled])
    mixed = np.stack([left.T @ right for left, right in zip(before, scaled, strict=True)])
    return weight, short.with_prior(weight, prior), Statistics(grams, cross, mixed).with_prior(weight, prior)


KERNELS = [
    conv((3, 3)),
    conv((3,), inputs=30),
    conv((7, 7), inputs=4, group=2),
    conv((1, 1), inputs=60),
    conv((2, 3, 3)),
]
CLOSED = {(name, init) for name in ("channel", "pointwise") for init in ("response", "joint")}
CLOSED |= {("depthwise", "response"), ("depthwise", "compensated"), ("lean", "joint")}
CASES = [
    pytest.param(name, init, one, id=f"{name} {init} {'x'.join(map(str, one.kernel_shape))}")
    for name, mode in conv_modes().items()
    for init in mode.inits
    for one in KERNELS
    if init != "svd" and mode.accepts(one) is None and (name, init) in CLOSED
]


@pytest.mark.parametrize(("name", "init", "one"), CASES)
def test_closed_forms_are_alike(name: str, init: str, one: Conv) -> None:
    mode = get_mode(name)
    weight, short, dense = both(one)
    rank: tuple[int, ...] = ()
    while (axis := mode.rank_axis(one, rank)) is not None:
        rank = (*rank, axis.clamp(max(axis.step, axis.full // 2)))
    start = mode.factorize(Task(one, weight), rank)
    found = [
        mode.reconstruct(one, mode.fit(Task(one, weight, given, start=start, sweeps=4), rank, init))
        for given in (short, dense)
    ]
    assert np.linalg.norm(found[0] - found[1]) <= 1e-6 * np.linalg.norm(found[1])


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_all_operations(ridge: float) -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((5, 9))
    by_rows = RowGram(rows).with_ridge(ridge)
    matrix = rows.T @ rows + ridge * np.eye(9)
    dense = DenseGram(rows.T @ rows).with_ridge(ridge)
    index, columns = np.array([[0, 3], [8, 5]]), np.array([2, 8, 0])
    mean, other = rng.standard_normal(9), rng.standard_normal((4, 9))
    for gram in (by_rows, dense):
        assert np.allclose(gram.dense(), matrix)
        assert np.allclose(gram.times(other), other @ matrix)
        assert np.allclose(gram.diagonal(), np.diag(matrix))
        assert gram.mean_diagonal == pytest.approx(np.trace(matrix) / 9)
        assert np.allclose(gram.block(index[0], columns), matrix[np.ix_(index[0], columns)])
        assert np.allclose(gram.blocks(index), [matrix[np.ix_(part, part)] for part in index])
        assert np.allclose(gram.with_mean(mean).dense(), matrix + np.outer(mean, mean))
        left, right = gram.regression(other, 4)
        assert np.allclose(left @ right, other @ np.linalg.pinv(matrix), atol=1e-6) or not ridge
        assert np.allclose(left.T @ left, np.eye(4))


def test_form_that_takes_less_memory() -> None:
    rng = np.random.default_rng(2)
    few, many = rng.standard_normal((7, 2100)), rng.standard_normal((8, 8))
    assert isinstance(gram_of(few), RowGram)
    assert isinstance(gram_of(many), DenseGram)
    for rows in (few, many):
        assert np.allclose(gram_of(rows).dense(), rows.T @ rows / len(rows), atol=1e-6)


# ---------------------------------------------------------------- whole fits


def model(channels: int, kernel: int) -> onnx.ModelProto:
    """Two 1-D Convs, the second a wide one."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 40] x) => (float[N, 6, 40] y) {{
      a = Conv<pads = [1, 1]>(x, w)
      b = Relu(a)
      c = Conv<pads = [{kernel // 2}, {kernel // 2}]>(b, v)
      y = Relu(c)
    }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    for name, shape in (("w", (channels, 3, 3)), ("v", (6, channels, kernel))):
        values = (rng.standard_normal(shape) / np.sqrt(shape[1] * shape[2])).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


DATA = {"x": np.random.default_rng(4).standard_normal((8, 3, 40)).astype(np.float32)}
Fitted = Callable[..., Any]


def rewritten(proto: onnx.ModelProto | Model, **options: Any) -> Any:
    chosen: dict[str, Any] = {"mode": "channel", "rank": 0.5, "positions": 8, "data": DATA, **options}
    return onnxsep.rewrite(proto, runtime=RuntimeOptions(threads=1), verify="none", **chosen)


@pytest.mark.parametrize("mode", ["channel", "lean"])
def test_no_matrix_is_larger_than_the_data_need(mode: str) -> None:
    """64 rows of 7,936 values: the Gram matrix would have 500 MB."""
    options: dict[str, Any] = {} if mode in ("channel", "tucker") else {"rank": "paper"}
    tracemalloc.start()
    try:
        report = rewritten(model(256, 31), mode=mode, include_first=False, **options).report
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (row,) = [row for row in report.convs if row.status == "replaced"]
    assert row.output_error is not None or "calibration" in type(report).model_fields
    assert peak < 250e6


def test_statistics_keep_the_rows(tmp_path: Any) -> None:
    """The same fit from the file as from the data, where the first replaced Conv reads what it always reads."""
    file = tmp_path / "s.npz"
    onnx.save(model(160, 15), tmp_path / "m.onnx")
    source = onnxsep.load(tmp_path / "m.onnx")
    rewritten(source, statistics=file)
    assert file.stat().st_size < 3e6  # two covariances of 2,400 x 2,400 would have 46 MB
    found = load_statistics(file, source)
    assert all(isinstance(gram, RowGram) for gram in list(found.sites.values())[1].fit.centred)
    report = rewritten(source, data=None, statistics=file).report
    assert report.totals.replaced == 1


def test_one_conv_that_cannot_be_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the factors of its weight, the report says why, and the other one is fitted."""
    mode = get_mode("channel")
    plain = type(mode).fit

    def fit(self: Any, task: Task, rank: Any, init: str) -> Any:
        if task.conv.in_channels == 3:
            raise MemoryError
        return plain(self, task, rank, init)

    monkeypatch.setattr(type(mode), "fit", fit)
    proto = model(16, 5)
    result = rewritten(proto, include_first=True, force=True, rank=2)
    first, second = result.report.convs
    assert first.status == second.status == "replaced"
    assert any("not enough memory" in note for note in first.notes)
    assert not any("not enough memory" in note for note in second.notes)
    alone = rewritten(proto, include_first=True, force=True, rank=2, data=None)
    assert first.weight_error == pytest.approx(alone.report.convs[0].weight_error)
    monkeypatch.setattr(type(mode), "fit", lambda *given: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(CalibrationError, match=r"no Conv can be fitted: there is not enough memory.*fewer samples"):
        rewritten(proto, include_first=True, force=True, rank=2)
