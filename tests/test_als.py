"""Alternating least squares, on the products of every installed mode, and the closed forms of paper 002."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_models import load_script
from numpy.typing import NDArray
from random_examples import some
from scipy.optimize import minimize
from test_modes import ranks_at

from onnxsep.algebra import als
from onnxsep.algebra.als import Problem, alternate, balanced, multiply
from onnxsep.algebra.linalg import reduced_rank_regression
from onnxsep.algebra.statistics import Statistics
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Mode, Task, conv_modes, get_mode
from onnxsep.modes.multilinear import Multilinear

Array = NDArray[np.float64]
ROOT = Path(__file__).resolve().parents[1]
CONVS = [
    Conv(3, 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    Conv(2, 3, (2, 2, 2), (1, 1, 1), (0,) * 6, (1, 1, 1)),
    Conv(4, 6, (3, 2), (1, 1), (0, 0, 0, 0), (1, 1), group=2),
    Conv(4, 5, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
]
MODES = {name: mode for name, mode in conv_modes().items() if "joint" in mode.inits}
PRODUCTS: list[tuple[Multilinear, Conv]] = [
    (mode, conv)
    for mode in MODES.values()
    if isinstance(mode, Multilinear)
    for conv in CONVS
    if mode.accepts(conv) is None
]
IDS = [f"{mode.name}-{conv.kernel_shape}" for mode, conv in PRODUCTS]


def gram(kind: str, size: int, rng: np.random.Generator) -> Array:
    """A positive semidefinite matrix."""
    if kind == "zero":
        return np.zeros((size, size))
    rows = rng.standard_normal(({"singular": max(1, size // 3)}.get(kind, 3 * size), size))
    if kind == "ill-conditioned":
        rows = rows * np.logspace(0, -7, size)
    if kind == "dead channels":
        rows[:, : size // 2] = 0
    return np.asarray(rows.T @ rows / len(rows))


def problem_for(mode: Multilinear, conv: Conv, kind: str, seed: int) -> tuple[str, list[Array], Problem]:
    """The equation, a start, and what to fit, of the first group."""
    rng = np.random.default_rng(seed)
    rank = ranks_at(mode, conv, 2)
    weight = rng.standard_normal(conv.weight_shape)
    start = mode.split(conv, mode.factorize(Task(conv, weight), rank))
    inputs, outputs = mode.inputs(conv), conv.out_channels // conv.group
    size = int(np.prod(inputs))
    matrix = gram(kind, size, rng)
    cross = weight.reshape(conv.group, outputs, size)[0] @ matrix + 0.1 * rng.standard_normal((outputs, size)) @ matrix
    return (
        mode.equation(conv),
        [array[0] for array in start],
        Problem(matrix.reshape(*inputs, *inputs), cross.reshape(outputs, *inputs)),
    )


def best_for(equation: str, factors: Sequence[Array], position: int, problem: Problem) -> float:
    """The smallest objective that a change of one factor can give, by brute force: one column for each unknown."""
    trial = [np.array(factor) for factor in factors]
    size = int(np.prod(problem.cross.shape[1:]))
    columns = []
    for number in range(factors[position].size):
        unit = np.zeros(factors[position].size)
        unit[number] = 1
        trial[position] = unit.reshape(factors[position].shape)
        columns.append(np.einsum(equation, *trial).reshape(-1, size))
    stack = np.stack(columns)
    assert isinstance(problem.gram, np.ndarray)
    matrix = problem.gram.reshape(size, size)
    normal = np.einsum("aod,de,boe->ab", stack, matrix, stack)
    right = np.einsum("aod,od->a", stack, problem.cross.reshape(-1, size))
    solved = np.linalg.pinv(normal, rcond=1e-11, hermitian=True) @ right
    return float(solved @ normal @ solved - 2 * solved @ right)


@pytest.mark.parametrize(("mode", "conv"), PRODUCTS, ids=IDS)
@pytest.mark.parametrize("kind", ["plain", "singular", "dead channels"])
@pytest.mark.parametrize("gradients", [False, True])
def test_every_step_finds_the_best_factor(
    kind: str, mode: Multilinear, conv: Conv, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The normal equations, their Kronecker blocks, and conjugate gradients."""
    equation, factors, problem = problem_for(mode, conv, kind, 1)
    if gradients:
        monkeypatch.setattr(als, "_LARGEST_SYSTEM", 0)
        monkeypatch.setattr(als, "_CG_STEPS", 400)
        monkeypatch.setattr(als, "_CG_TOLERANCE", 1e-13)
    for position in range(len(factors)):
        improved, value, before = als._improved(equation, factors, position, problem)
        assert improved.shape == factors[position].shape
        changed = [*factors[:position], improved, *factors[position + 1 :]]
        best = best_for(equation, factors, position, problem)
        assert problem.objective(multiply(equation, changed)) == pytest.approx(best, rel=1e-6)
        assert value == pytest.approx(best, rel=1e-6)
        assert before == pytest.approx(problem.objective(multiply(equation, factors)), rel=1e-9, abs=1e-12)


KINDS = ["plain", "singular", "ill-conditioned", "dead channels", "zero"]


@pytest.mark.parametrize(("product", "kind", "gradients"), some(itertools.product(PRODUCTS, KINDS, [False, True]), 3))
def test_objective_never_rises(
    product: tuple[Multilinear, Conv], kind: str, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, conv = product
    if gradients:
        monkeypatch.setattr(als, "_LARGEST_SYSTEM", 0)
    for seed in range(2):
        equation, factors, problem = problem_for(mode, conv, kind, seed)
        before = [factor.copy() for factor in factors]
        values = [problem.objective(multiply(equation, factors))]
        for _ in range(4):
            factors = alternate(equation, factors, problem, sweeps=1)
            values.append(problem.objective(multiply(equation, factors)))
            assert all(np.isfinite(factor).all() for factor in factors)
        rounding = 1e-13 * max(map(abs, values))
        assert all(later <= earlier + rounding for earlier, later in itertools.pairwise(values)), values
        if kind != "zero":
            assert values[-1] < values[0]
        assert all(
            (one == other).all() for one, other in zip(before, problem_for(mode, conv, kind, seed)[1], strict=True)
        )


@pytest.mark.parametrize(("mode", "conv"), PRODUCTS, ids=IDS)
def test_balancing_keeps_the_product(mode: Multilinear, conv: Conv) -> None:
    equation, factors, _ = problem_for(mode, conv, "plain", 4)
    rng = np.random.default_rng(0)
    factors = [factor * 10.0 ** rng.uniform(-6, 6) for factor in factors]
    even = balanced(equation, factors)
    expected = multiply(equation, factors)
    assert np.allclose(multiply(equation, even), expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    spread = [np.linalg.norm(factor) for factor in even]
    # Equal along what two share; as a whole they differ only where one has more such indices than another.
    assert max(spread) / min(spread) < 3 < max(map(np.linalg.norm, factors)) / min(map(np.linalg.norm, factors))


def test_balancing_gives_two_factors_equal_norms_along_what_they_share() -> None:
    rng = np.random.default_rng(0)
    left, right = balanced("or,rd->od", [rng.standard_normal((5, 3)) * [1e-8, 1, 1e8], rng.standard_normal((3, 7))])
    assert np.allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1))
    zero = balanced("or,rd->od", [np.zeros((5, 3)), right])
    assert not zero[0].any()
    assert np.isfinite(zero[1]).all()


@pytest.mark.parametrize("kind", ["plain", "ill-conditioned", "singular", "dead channels"])
@pytest.mark.parametrize("rank", [1, 2])
def test_reduced_rank_regression_is_the_best_map(kind: str, rank: int) -> None:
    """No other map of that rank is better: gradient descent from many starts finds none."""
    rng = np.random.default_rng(3)
    matrix = gram(kind, 4, rng)
    cross = rng.standard_normal((3, 4)) @ matrix
    left, right = reduced_rank_regression(cross, matrix, rank)
    assert np.allclose(left.T @ left, np.eye(rank))
    problem = Problem(matrix, cross)

    def objective(flat: Array) -> float:
        return problem.objective(flat[: 3 * rank].reshape(3, rank) @ flat[3 * rank :].reshape(rank, 4))

    found = min(minimize(objective, rng.standard_normal(7 * rank)).fun for _ in range(6))
    value = problem.objective(left @ right)
    assert value <= found + 1e-7 * abs(found)
    assert value == pytest.approx(found, rel=1e-3)


def rows_and_targets(conv: Conv, weight: Array, rows: int, seed: int) -> tuple[Array, Array, Array]:
    """X0 of the original network, X of the rewritten one, both centred, and Y = W X0; columns are samples."""
    rng = np.random.default_rng(seed)
    size = weight[0].size
    mixing = rng.standard_normal((size, size))
    x0 = mixing @ rng.standard_normal((size, rows))
    x0 -= x0.mean(axis=1, keepdims=True)
    x = x0 + 0.3 * rng.standard_normal(x0.shape)
    x -= x.mean(axis=1, keepdims=True)
    return x0, x, weight.reshape(conv.out_channels, size) @ x0


def low_rank(target: Array, x: Array, rank: int) -> Array:
    """The prediction of the best map of a rank from x to the target, on samples: project, then truncate."""
    fitted = np.linalg.lstsq(x.T, target.T, rcond=None)[0].T @ x
    u, s, vt = np.linalg.svd(fitted, full_matrices=False)
    return np.asarray(u[:, :rank] * s[:rank] @ vt[:rank])


@pytest.mark.parametrize("terms", [1, 2])
def test_compensated_errors_telescope(terms: int) -> None:
    """Algorithm 2 of paper 002, followed on samples: each channel's target holds the errors of those before."""
    conv, rows = Conv(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), 400
    weight = np.random.default_rng(0).standard_normal(conv.weight_shape)
    x0, x, y = rows_and_targets(conv, weight, rows, 1)
    given = Statistics((x @ x.T)[None] / rows, (y @ x.T)[None] / rows, (x0 @ x.T)[None] / rows)
    mode = get_mode("depthwise")
    factors = mode.fit(Task(conv, weight, given), (terms,), "compensated")
    dense = np.asarray(mode.reconstruct(conv, factors)).reshape(6, 4, 9)
    error = np.zeros_like(y)
    for channel in range(4):
        part = slice(9 * channel, 9 * channel + 9)
        target = weight.reshape(6, 4, 9)[:, channel] @ x0[part] + error
        predicted = dense[:, channel] @ x[part]
        assert np.allclose(predicted, low_rank(target, x[part], terms), atol=1e-8 * np.abs(target).max())
        error = target - predicted
    assert np.allclose(y - dense.reshape(6, -1) @ x, error)


def test_response_takes_the_leading_directions_of_the_responses() -> None:
    """Algorithm 1 of paper 002, on samples."""
    conv, rows = Conv(3, 5, (3, 2), (1, 1), (0, 0, 0, 0), (1, 1)), 200
    weight = np.random.default_rng(0).standard_normal(conv.weight_shape)
    x, _, y = rows_and_targets(conv, weight, rows, 2)
    mode = get_mode("depthwise")
    given = Statistics((x @ x.T)[None] / rows, (y @ x.T)[None] / rows)
    dense = mode.reconstruct(conv, mode.fit(Task(conv, weight, given), (1,), "response")).reshape(5, 3, 6)
    for channel in range(3):
        responses = weight.reshape(5, 3, 6)[:, channel] @ x[6 * channel : 6 * channel + 6]
        u, s, vt = np.linalg.svd(responses, full_matrices=False)
        assert np.allclose(dense[:, channel] @ x[6 * channel : 6 * channel + 6], s[0] * np.outer(u[:, 0], vt[0]))


@pytest.fixture(scope="module")
def table2() -> Any:
    return load_script(ROOT / "benchmarks" / "table2.py")


def test_table_2_of_paper_002(table2: Any) -> None:
    """Against an independent implementation's values, the means of ten seeds."""
    runs = [table2.errors(seed) for seed in (0, 1)]
    own = {name: np.mean([run[name][0] for run in runs]) for name in runs[0]}
    fresh = {name: np.mean([run[name][1] for run in runs]) for name in runs[0]}
    expected = {
        "Algorithm 1": 0.9134,
        "Algorithm 2": 0.9064,
        "channel, 13 in between": 0.8923,
        "channel, 14 in between": 0.8845,
        "channel, 15 in between": 0.8768,
    }
    for name, value in expected.items():
        assert abs(own[name] - value) < 0.002, name
    assert own["joint"] < 0.901
    # With independent channels compensation fits the noise of its sample.
    assert abs(fresh["Algorithm 1"] - 0.914) < 0.002
    assert abs(fresh["Algorithm 2"] - 0.921) < 0.002


EXACT_WEIGHT_CONVS = [conv for conv in CONVS if conv.group == 1]


def fits(mode: Mode, conv: Conv, rank: Rank, weight: Array, statistics: Statistics, init: str) -> Array:
    start = mode.factorize(Task(conv, weight), rank)
    factors = mode.fit(Task(conv, weight, statistics, start=start), rank, init)
    assert all(np.isfinite(array).all() for array in factors.weights)
    return np.asarray(mode.reconstruct(conv, factors))


@pytest.mark.parametrize("name", sorted(MODES))
def test_prior_is_the_weight_where_there_are_no_data(name: str) -> None:
    """An all-zero Gram matrix: no fit is worse than the weights' own factors, in the norm of the weight."""
    mode = MODES[name]
    for conv in (conv for conv in CONVS if mode.accepts(conv) is None):
        weight = np.random.default_rng(2).standard_normal(conv.weight_shape)
        size = weight[0].size
        empty = Statistics(
            np.zeros((conv.group, size, size)), np.zeros((conv.group, conv.out_channels // conv.group, size))
        )
        rank = ranks_at(mode, conv, 2)
        own = np.asarray(mode.reconstruct(conv, mode.factorize(Task(conv, weight), rank)))
        for init in (init for init in mode.inits if init != "svd"):
            found = fits(mode, conv, rank, weight, empty.with_prior(weight, 1e-3), init)
            lost, own_lost = (np.linalg.norm(weight - dense) for dense in (found, own))
            if name in ("depthwise", "channel", "pointwise", "lean"):  # a closed form, and so the only best one
                assert np.allclose(found, own, atol=1e-6), init
            assert lost <= own_lost * (1 + 1e-9), init


@pytest.mark.parametrize("name", sorted(MODES))
@pytest.mark.parametrize("kind", ["singular", "dead channels", "ill-conditioned"])
def test_dead_inputs_keep_the_weight(name: str, kind: str) -> None:
    """At full rank with data that do not see all inputs, the fit is the weight itself: nothing contradicts it."""
    mode = MODES[name]
    for conv in (conv for conv in EXACT_WEIGHT_CONVS if mode.accepts(conv) is None):
        rng = np.random.default_rng(2)
        weight = rng.standard_normal(conv.weight_shape)
        matrix = gram(kind, weight[0].size, rng)
        given = Statistics(matrix[None], (weight.reshape(conv.out_channels, -1) @ matrix)[None])
        rank: Rank = ()
        while (axis := mode.rank_axis(conv, rank)) is not None:
            rank += (axis.full,)
        if not mode.is_exact(conv, rank):
            continue
        for init in (init for init in mode.inits if init != "svd"):
            found = fits(mode, conv, rank, weight, given.with_prior(weight, 1e-3), init)
            assert np.allclose(found, weight, atol=1e-5), (init, np.abs(found - weight).max())


def test_prior_of_grouped_convs_is_relative_to_each_group() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1))
    grams = np.stack([np.zeros((3, 3)), 1e6 * np.eye(3)])
    given = Statistics(grams, np.zeros((2, 2, 3)), grams.copy()).with_prior(weight, 0.5)
    matrices = weight.reshape(2, 2, 3)
    assert np.allclose(given.gram, [np.eye(3), 1.5e6 * np.eye(3)])
    assert np.allclose(given.cross, [matrices[0], 0.5e6 * matrices[1]])
    assert given.mixed is not None
    assert np.allclose(given.mixed, given.gram)
    assert not grams[0].any()


def test_nearly_equal_singular_values_are_no_trouble() -> None:
    """Of equal terms any will do; the result is finite, and no worse than the start."""
    conv = Conv(4, 4, (2, 2), (1, 1), (0, 0, 0, 0), (1, 1))
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0][:4]
    weight = (rotation * (1 + 1e-15 * rng.standard_normal((4, 1)))).reshape(conv.weight_shape)
    given = Statistics(np.eye(16)[None], weight.reshape(1, 4, 16))
    for mode in MODES.values():
        if mode.accepts(conv) is None:
            rank = ranks_at(mode, conv, 1)
            own = np.asarray(mode.reconstruct(conv, mode.factorize(Task(conv, weight), rank)))
            for init in (init for init in mode.inits if init != "svd"):
                found = fits(mode, conv, rank, weight, given, init)
                limit = np.linalg.norm(weight - own) * (1 + 1e-6)
                assert init == "compensated" or np.linalg.norm(weight - found) <= limit, (mode.name, init)
