"""Alternating least squares on fewer rows than inputs: the same as with the Gram matrix, in every mode."""

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxsep
from onnxsep.algebra import als_rows, gram
from onnxsep.algebra.als import Improvement, Problem, alternate, multiply
from onnxsep.algebra.als_rows import RowProblem
from onnxsep.algebra.contraction import contract, work
from onnxsep.algebra.gram import RowGram, scaled_rows
from onnxsep.algebra.linalg import Array
from onnxsep.layers.conv import Conv
from onnxsep.modes.base import Task, conv_modes, get_mode
from onnxsep.modes.multilinear import Multilinear
from onnxsep.running.runtime import RuntimeOptions

ROWS = 30


def conv(kernel: tuple[int, ...], inputs: int, outputs: int) -> Conv:
    ones = (1,) * len(kernel)
    return Conv(inputs, outputs, kernel, ones, tuple(size // 2 for size in kernel) * 2, ones)


CONVS = [conv((3, 3), 6, 5), conv((7,), 8, 4), conv((2, 2, 3), 4, 4), conv((1, 1), 40, 5)]
PRODUCTS = [
    pytest.param(mode, one, id=f"{mode.name}-{'x'.join(map(str, one.kernel_shape))}")
    for mode in conv_modes().values()
    for one in CONVS
    if isinstance(mode, Multilinear) and mode.accepts(one) is None
]


def problems(mode: Multilinear, one: Conv, ridge: float) -> tuple[str, list[Array], RowProblem, Problem]:
    """The equation, a start, and the same problem twice."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(one.weight_shape)
    size = weight[0].size
    assert size > ROWS
    rows = rng.standard_normal((ROWS, size)) @ rng.standard_normal((size, size)) / np.sqrt(size)
    matrix = weight.reshape(len(weight), size)
    scaled = RowGram(scaled_rows(rows), ridge)
    cross = matrix @ scaled.dense() + 0.3 * rng.standard_normal((len(weight), ROWS)) @ scaled.rows
    rank: tuple[int, ...] = ()
    while (axis := mode.rank_axis(one, rank)) is not None:
        rank = (*rank, axis.clamp(max(axis.step, min(4, axis.full // 2))))
    start = [array[0] for array in mode.split(one, mode.factorize(Task(one, weight), rank))]
    inputs = mode.inputs(one)
    cross = cross.reshape(-1, *inputs)
    dense = Problem(scaled.dense().reshape(*inputs, *inputs), cross)
    return mode.equation(one), start, RowProblem(scaled, cross), dense


@pytest.mark.parametrize(("mode", "one"), PRODUCTS)
@pytest.mark.parametrize("ridge", [2.0, 0.01])
def test_every_step_solves_the_normal_equations(
    mode: Multilinear, one: Conv, ridge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(als_rows, "_STEPS", 600)
    monkeypatch.setattr(als_rows, "_TOLERANCE", 1e-6)
    equation, start, by_rows, dense = problems(mode, one, ridge)
    before = dense.objective(multiply(equation, start))
    assert by_rows.objective(multiply(equation, start)) == pytest.approx(before, rel=1e-5)
    for position in range(len(start)):
        values = []
        for problem in (by_rows, dense):
            trial = [*start]
            trial[position] = problem.improved(equation, start, position).factor
            values.append(dense.objective(multiply(equation, trial)))
        assert values[0] - values[1] <= 1e-4 * (before - values[1]) + 1e-7 * abs(before)


@pytest.mark.parametrize(("mode", "one"), PRODUCTS)
def test_the_few_steps_of_a_sweep_end_as_low(mode: Multilinear, one: Conv) -> None:
    equation, start, by_rows, dense = problems(mode, one, 0.1)
    ends = [dense.objective(multiply(equation, alternate(equation, start, which))) for which in (by_rows, dense)]
    before = dense.objective(multiply(equation, start))
    assert ends[0] < before
    assert ends[0] - ends[1] <= 0.05 * (before - ends[1])


def test_a_fit_ends_when_its_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = get_mode("tucker")
    assert isinstance(mode, Multilinear)
    equation, start, by_rows, dense = problems(mode, CONVS[0], 2.0)
    monkeypatch.setattr(als_rows, "_LARGEST_WORK", 1)
    once = alternate(equation, start, by_rows)
    again = alternate(equation, start, by_rows, sweeps=1)
    assert all((one == other).all() for one, other in zip(once, again, strict=True))
    assert dense.objective(multiply(equation, once)) < dense.objective(multiply(equation, start))


def test_factors_of_zeros_stay_finite() -> None:
    mode = get_mode("cp")
    assert isinstance(mode, Multilinear)
    equation, start, by_rows, _ = problems(mode, CONVS[0], 2.0)
    found = alternate(equation, [np.zeros_like(factor) for factor in start], by_rows)
    assert all(np.isfinite(factor).all() for factor in found)


@pytest.mark.parametrize(
    "equation",
    [
        "nik,toi,tik->no",
        "no,nik,toi->tik",
        "nab,cd->dbnac",
        "ab->ba",
        "abc,c->ba",
        "abz,bc->ac",
        "oiK,KT,Toi->Ti",
        ",ab->ab",
        "nik,ri,srk,os->no",
        "ab,bc,cd,da->",
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_contractions(equation: str, kind: Any) -> None:
    rng = np.random.default_rng(1)
    sizes = {letter: 2 + number % 5 for number, letter in enumerate(sorted(set(equation) - set(",->")))}
    terms = equation.split("->")[0].split(",")
    operands = [rng.standard_normal([sizes[letter] for letter in term]).astype(kind) for term in terms]
    found = contract(equation, *operands)
    assert found.dtype == kind
    np.testing.assert_allclose(found, np.einsum(equation, *operands), rtol=1e-3, atol=1e-4)


def test_work_counts_multiplications() -> None:
    product = work("ab,bc->ac", ((2000, 3000), (3000, 4000)))
    assert 2000 * 3000 * 4000 < product < 1.5 * 2000 * 3000 * 4000
    # rows by the matrix, then by the other: never the two matrices first
    assert work("nd,de,ef->nf", ((2, 5000), (5000, 5000), (5000, 5000))) < 0.1 * 5000**3


# ---------------------------------------------------------------- whole fits


def model(dims: int) -> onnx.ModelProto:
    """Two Convs, the second with 12 * 3**dims inputs."""
    kernel, size = [3] * dims, [6 if dims > 1 else 20] * dims
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, {", ".join(map(str, size))}] x) => (y) {{
      a = Conv<pads = {[1] * 2 * dims}>(x, w)
      b = Relu(a)
      c = Conv<pads = {[1] * 2 * dims}>(b, v)
      y = Relu(c)
    }}"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    for name, shape in (("w", (12, 3, *kernel)), ("v", (8, 12, *kernel))):
        values = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


DATA = {
    dims: {"x": np.random.default_rng(4).standard_normal((10, 3, *size)).astype(np.float32)}
    for dims, size in ((1, (20,)), (2, (6, 6)))
}


def rewritten(dims: int, mode: str, **options: Any) -> Any:
    runtime = RuntimeOptions(threads=1)
    chosen: dict[str, Any] = {"positions": 3, "force": True, "verify": "none", "runtime": runtime, **options}
    return onnxsep.rewrite(model(dims), mode=mode, data=DATA[dims], **chosen)


WHOLE = [
    (dims, mode.name)
    for mode in conv_modes().values()
    for dims in (1, 2)
    if "joint" in mode.inits and mode.accepts(conv((3,) * dims, 12, 8)) is None
]


@pytest.mark.parametrize(("dims", "mode"), WHOLE)
def test_held_out_errors_are_alike(dims: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = []
    for small in (0, 10**6):
        monkeypatch.setattr(gram, "_SMALL", small)
        report = rewritten(dims, mode).report
        (row,) = [row for row in report.convs if row.status == "replaced"]
        assert row.held_out_error is not None
        errors.append(row.held_out_error)
    assert errors[0] <= 1.01 * errors[1] + 1e-6


@pytest.mark.parametrize("error", [MemoryError, np.linalg.LinAlgError])
def test_a_conv_that_cannot_be_fitted_keeps_the_factors_of_its_weight(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "_SMALL", 0)
    plain = RowProblem.improved

    def improved(self: RowProblem, equation: str, factors: list[Array], position: int) -> Improvement:
        if factors[0].shape[1] == 8:  # outputs of the second Conv
            raise error("no way")
        return plain(self, equation, factors, position)

    monkeypatch.setattr(RowProblem, "improved", improved)
    first, second = rewritten(2, "depthwise", include_first=True).report.convs
    assert first.status == second.status == "replaced"
    assert any("cannot be fitted" in note for note in second.notes)
    assert not any("cannot be fitted" in note for note in first.notes)
    monkeypatch.undo()
    without = onnxsep.rewrite(model(2), mode="depthwise", include_first=True, force=True, verify="none").report
    assert second.weight_error == pytest.approx(without.convs[1].weight_error)
    assert first.held_out_error is not None
    assert second.held_out_error is None
