"""What makes fits quick: orders of contraction, preconditioners, single precision, sweeps that start ahead."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_als import IDS, PRODUCTS, best_for, problem_for

from onnxsep.algebra import als, contraction, gram, polyadic
from onnxsep.algebra.als import Problem, alternate, multiply
from onnxsep.algebra.contraction import Repeated, contract, work
from onnxsep.algebra.normal_equations import normal_equations
from onnxsep.algebra.preconditioner import preconditioner
from onnxsep.calibration import fitting
from onnxsep.calibration.candidates import Candidate, fit_candidates
from onnxsep.calibration.fitting import fit
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.schedule import Tail
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import get_mode
from onnxsep.modes.multilinear import Multilinear

Array = NDArray[Any]
EQUATIONS = ["toi,ToI,ikIK,TIK->tik", "ab,bc,cd,de->ae", "ri,ra,or,oia->r", "ab,b,bc,ac->", "a,b,ab->ba"]


def arrays_of(equation: str, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    sizes = {letter: int(rng.integers(1, 5)) for letter in sorted(set(equation) - set(",->"))}
    return [rng.standard_normal([sizes[letter] for letter in term]) for term in equation.split("->")[0].split(",")]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_with_one_operand_that_changes(equation: str) -> None:
    for seed in range(3):
        arrays = arrays_of(equation, seed)
        for varying in range(len(arrays)):
            rest = [*arrays[:varying], *arrays[varying + 1 :]]
            product = Repeated(equation, rest, varying, arrays[varying].shape, 10)
            for factor in (1.0, -2.0):
                changed = [*arrays[:varying], factor * arrays[varying], *arrays[varying + 1 :]]
                found = product(changed[varying])
                np.testing.assert_allclose(found, np.einsum(equation, *changed), atol=1e-10)
                np.testing.assert_allclose(contract(equation, *changed), found, atol=1e-10)


def cheapest(terms: list[str], result: str, sizes: dict[str, int]) -> float:
    """The least work of all orders, by trying each of them."""

    def elements(letters: str) -> int:
        return math.prod(sizes[letter] for letter in letters)

    if len(terms) == 1:
        return 0.0
    best = math.inf
    for one, other in itertools.combinations(range(len(terms)), 2):
        rest = [term for place, term in enumerate(terms) if place not in (one, other)]
        both = "".join(dict.fromkeys(terms[one] + terms[other]))
        kept = "".join(letter for letter in both if letter in result or any(letter in term for term in rest))
        cost = elements(both) + contraction._TRANSFER * sum(map(elements, (terms[one], terms[other], kept)))
        best = min(best, cost + cheapest([*rest, kept], result, sizes))
    return best


@pytest.mark.parametrize("equation", EQUATIONS)
def test_no_order_takes_less_work(equation: str) -> None:
    terms, result = equation.split("->")[0].split(","), equation.split("->")[1]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sizes = {letter: int(rng.integers(2, 60)) for letter in sorted(set(equation) - set(",->"))}
        shapes = tuple(tuple(sizes[letter] for letter in term) for term in terms)
        assert work(equation, shapes) == pytest.approx(cheapest(terms, result, sizes))


def test_what_does_not_change_is_multiplied_once() -> None:
    """A B x: (A B) x for many x, A (B x) for one."""
    shapes = ((300, 300), (300, 300), (300,))
    once, often = work("ab,bc,c->a", shapes, 2, 1), work("ab,bc,c->a", shapes, 2, 10_000)
    assert once == work("ab,bc,c->a", shapes)
    assert often < 0.6 * 10_000 * once


@pytest.mark.parametrize(("mode", "conv"), PRODUCTS, ids=IDS)
def test_operator_is_the_derivative_of_the_objective(mode: Multilinear, conv: Conv) -> None:
    """H x - b, by differences of the objective."""
    equation, factors, problem = problem_for(mode, conv, "plain", 3)
    rng = np.random.default_rng(0)
    for position, present in enumerate(factors):
        step = normal_equations(equation, position)
        others = [factor for place, factor in enumerate(factors) if place != position]
        slope = contract(step.operator, *others, *others, problem.gram, present)
        slope = slope - contract(step.adjoint, *others, problem.cross)
        direction = rng.standard_normal(present.shape)
        ends = []
        for sign in (1, -1):
            trial = [*factors[:position], present + sign * 1e-4 * direction, *factors[position + 1 :]]
            ends.append(problem.objective(multiply(equation, trial)))
        assert (ends[0] - ends[1]) / 4e-4 == pytest.approx(float(np.vdot(slope, direction)), rel=1e-5, abs=1e-6)


def test_one_step_is_enough_where_channels_do_not_correlate() -> None:
    """The kernels of a depthwise separable Conv: then its preconditioner is the inverse."""
    rng = np.random.default_rng(0)
    terms, outputs, channels, taps = 2, 7, 5, 4
    gram = np.zeros((channels, taps, channels, taps))
    for channel in range(channels):
        rows = rng.standard_normal((30, taps)) * 10.0 ** rng.uniform(-3, 3)
        gram[channel, :, channel] = rows.T @ rows
    pointwise, kernels = rng.standard_normal((terms, outputs, channels)), rng.standard_normal((terms, channels, taps))
    step = normal_equations("toi,tik->oik", 1)
    image = contract(step.operator, pointwise, pointwise, gram, kernels)
    np.testing.assert_allclose(preconditioner(step, [pointwise], gram, {})(image), kernels, rtol=1e-2)


@pytest.mark.parametrize(("mode", "conv"), PRODUCTS, ids=IDS)
@pytest.mark.parametrize("gradients", [False, True])
def test_single_precision_is_as_good(
    mode: Multilinear, conv: Conv, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gradients:
        monkeypatch.setattr(als, "_LARGEST_SYSTEM", 0)
    equation, factors, problem = problem_for(mode, conv, "plain", 2)
    single = Problem(problem.gram.astype(np.float32), problem.cross)
    for position in range(len(factors)):
        value = als._improved(equation, factors, position, single)
        changed = [*factors[:position], value.factor, *factors[position + 1 :]]
        best, start = best_for(equation, factors, position, problem), problem.objective(multiply(equation, factors))
        found = problem.objective(multiply(equation, changed))
        assert found - best <= (0.05 if gradients else 1e-4) * (start - best) + 1e-5 * abs(best)
        assert value.objective == pytest.approx(found, rel=1e-4)


def test_sweeps_that_start_ahead_gain_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """CP of a tensor with terms that are nearly alike, where plain sweeps go in small steps (a swamp)."""
    rng = np.random.default_rng(1)
    rank, sizes = 3, (8, 6, 3)
    base = [rng.standard_normal((1, size)) for size in sizes]
    inputs, taps, outputs = (
        one + 0.4 * rng.standard_normal((rank, size)) for one, size in zip(base, sizes, strict=True)
    )
    target = np.einsum("ri,ra,ro->oia", inputs, taps, outputs)
    gram = np.eye(18 * 8 // 3)[: 8 * 6, : 8 * 6].reshape(8, 6, 8, 6)
    problem = Problem(gram, target)
    start = [rng.standard_normal((rank, 8)), rng.standard_normal((rank, 6)), rng.standard_normal((3, rank))]
    found = []
    for length in (als._LENGTH, 0.0):
        monkeypatch.setattr(als, "_LENGTH", length)
        values = []
        for sweeps in (1, 5, 20, 60):
            factors = alternate("ri,ra,or->oia", start, problem, sweeps=sweeps, tolerance=0)
            values.append(problem.objective(multiply("ri,ra,or->oia", factors)) + float(np.vdot(target, target)))
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
        found.append(values[-1])
    assert found[0] < 0.5 * found[1]


def test_large_tensors_take_other_steps_to_a_lower_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = rng.standard_normal((2, 12, 10, 3, 3))
    start = polyadic.orthogonal_terms(tensors, 20)
    plain = polyadic.squared_errors(tensors, polyadic.improved(tensors, start, 6))
    monkeypatch.setattr(polyadic, "LARGE", 0)
    again = polyadic.orthogonal_terms(tensors, 20)
    for one, other in zip(start, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    last = polyadic.squared_errors(tensors, start)
    for sweeps in (1, 3, 6):
        found = polyadic.squared_errors(tensors, polyadic.improved(tensors, start, sweeps)).sum()
        assert found <= last.sum() * (1 + 1e-6)
        last = np.array([found])
    assert last.sum() < plain.sum() * 1.001


def test_terms_are_the_largest_where_one_matrix_has_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than twice its share: all have to be looked at."""
    monkeypatch.setattr(polyadic, "LARGE", 0)
    rng = np.random.default_rng(0)
    tensors = 1e-3 * rng.standard_normal((1, 12, 10, 3, 3))
    tensors[0, :, :, 1, 1] += rng.standard_normal((12, 10))
    terms = polyadic.orthogonal_terms(tensors, 10)
    left = polyadic.squared_errors(tensors, terms)[0]
    assert left < 1e-3 * float(np.vdot(tensors, tensors))


# ---------------------------------------------------------------- many fits from one gathering


def wanted(conv: Conv) -> tuple[Array, Samples, Tail]:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal(conv.weight_shape)
    rows = (rng.standard_normal((150, weight[0].size)) @ rng.standard_normal((weight[0].size,) * 2)).astype(np.float32)
    targets = (rows @ weight.reshape(len(weight), -1).T).astype(np.float32)
    size = conv.out_channels
    return (
        weight,
        Samples(rows, targets, None, np.arange(150) % 5 == 0),
        Tail(np.ones(size), np.zeros(size), None, np.ones(size), 0.0),
    )


def test_candidates_are_those_of_single_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = Conv(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    weight, samples, tail = wanted(conv)
    ranks: dict[str, list[Rank]] = {
        "depthwise": [(1,), (3,)],
        "cp": [(4,), (9,)],
        "tucker": [(2, 3)],
        "channel": [(2,)],
    }
    candidates = [Candidate(get_mode(name), rank) for name, many in ranks.items() for rank in many]
    made: list[int] = []
    gram_of = gram.gram_of

    def counted(rows: Array) -> Any:
        made.append(1)
        return gram_of(rows)

    monkeypatch.setattr(fitting, "gram_of", counted)
    options: dict[str, Any] = {"old_bias": None, "new_bias": True}
    found = list(fit_candidates(conv, weight, samples, tail, candidates, **options))
    assert len(made) == 1
    assert [place for place, _ in found] == [1, 0, 3, 2, 4, 5]  # from the highest rank to the lowest
    for place, one in found:
        candidate = candidates[place]
        alone = fit(candidate.mode, conv, candidate.rank, weight, samples, tail, init="joint", **options)
        assert one.held_out == alone.held_out
        for left, right in zip(one.factors.weights, alone.factors.weights, strict=True):
            np.testing.assert_array_equal(left, right)
    assert list(fit_candidates(conv, weight, samples, tail, [], **options)) == []
