"""Low-rank approximation against numpy's own SVD."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsep.algebra.linalg import (
    SVD,
    Array,
    inverse_or_zero,
    principal_axes,
    reduced_rank_regression,
    relative_error,
    scale_product,
    scaled_to_one,
    squared_singular_values,
    truncated_svd,
)

FIXED = settings(deadline=None, derandomize=True, max_examples=150)
# The Gram matrix squares the singular values, so squared errors are exact to a few units of double precision of the
# squared norm, and errors themselves to the root of that.
SQUARED = 1e-13
TINY = 1e-7


def product(svd: SVD) -> Array:
    return (svd.u * svd.s[..., None, :]) @ svd.vt


def discarded(matrices: Array, rank: int) -> Array:
    """Squared error of the best approximation of each matrix, by LAPACK's SVD of the matrix itself."""
    s = np.linalg.svd(matrices, compute_uv=False)
    return np.asarray((s[..., rank:] ** 2).sum(axis=-1))


def with_singular_values(values: list[float], m: int, n: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((m, m)))[0][:, : len(values)]
    v = np.linalg.qr(rng.standard_normal((n, n)))[0][:, : len(values)]
    return np.asarray((u * np.array(values)) @ v.T)


@FIXED
@given(
    batch=st.sampled_from([(), (3,), (2, 3), (1, 1)]),
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    inner=st.integers(0, 9),
    exponent=st.sampled_from([0, 0, 0, -1, 9, -30, 30, -90, 90, -200, 200, -300, 300]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_truncation_leaves_the_discarded_singular_values(
    batch: tuple[int, ...], m: int, n: int, inner: int, exponent: int, share: float, seed: int
) -> None:
    """``inner`` below min(m, n) makes the matrices rank-deficient, and 0 makes them zero."""
    rng = np.random.default_rng(seed)
    plain = rng.standard_normal((*batch, m, inner)) @ rng.standard_normal((*batch, inner, n))
    rank = 1 + round(share * (min(m, n) - 1))
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        svd = truncated_svd(plain * 10.0**exponent, rank)
    assert svd.u.shape == (*batch, m, rank)
    assert svd.s.shape == (*batch, rank)
    assert svd.vt.shape == (*batch, rank, n)
    s = svd.s / 10.0**exponent
    difference = plain - (svd.u * s[..., None, :]) @ svd.vt
    norm = np.linalg.norm(plain, axis=(-2, -1))
    squared = np.sum(difference**2, axis=(-2, -1))
    assert (np.abs(squared - discarded(plain, rank)) <= SQUARED * norm**2).all()
    assert (np.abs(s - np.linalg.svd(plain, compute_uv=False)[..., :rank]) <= TINY * norm[..., None]).all()
    assert (np.diff(s, axis=-1) <= TINY * norm[..., None]).all()


@FIXED
@given(
    batch=st.sampled_from([(), (4,)]),
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_vectors_are_orthonormal_and_their_signs_fixed(batch: tuple[int, ...], m: int, n: int, seed: int) -> None:
    matrices = np.random.default_rng(seed).standard_normal((*batch, m, n))
    rank = min(m, n)
    u, s, vt = truncated_svd(matrices, rank)
    eye = np.broadcast_to(np.eye(rank), (*batch, rank, rank))
    # Orthonormal to double precision on the Gram side; the other side loses what the smallest singular value costs.
    loss = float(s.max() / s.min()) * 1e-14
    np.testing.assert_allclose(np.swapaxes(u, -1, -2) @ u, eye, atol=1e-13 if m <= n else loss)
    np.testing.assert_allclose(vt @ np.swapaxes(vt, -1, -2), eye, atol=1e-13 if m > n else loss)
    largest = np.take_along_axis(u, np.abs(u).argmax(axis=-2)[..., None, :], axis=-2)
    assert (largest > 0).all()
    # The sign must not depend on what the eigensolver happened to return: it goes to the right side.
    opposite = truncated_svd(-matrices, rank)
    np.testing.assert_array_equal(opposite.u, u)
    np.testing.assert_array_equal(opposite.vt, -vt)


@pytest.mark.parametrize(("m", "n"), [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0 + 1e-15, 1.0 - 1e-13, 1e-3, 1e-3 * (1 + 1e-14)],
        [5.0, 1e-7, 1e-9, 1e-12, 1e-16],
        [3.0, 3.0, 0.0, 0.0, 0.0],
    ],
)
def test_equal_and_vanishing_singular_values(m: int, n: int, values: list[float]) -> None:
    matrix = with_singular_values(values, m, n, seed=3)
    squared = np.sort(np.square(values))[::-1]
    for rank in range(1, min(m, n) + 1):
        error = float(np.sum((matrix - product(truncated_svd(matrix, rank))) ** 2))
        assert abs(error - squared[rank:].sum()) < SQUARED * squared.sum()
    exact = product(truncated_svd(matrix, min(m, n)))
    assert relative_error(matrix, exact) < 1e-14


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 5, 5), (1, 1)])
def test_zero_matrices_give_zero_without_warnings(shape: tuple[int, ...]) -> None:
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        svd = truncated_svd(np.zeros(shape), min(shape[-2:]))
    assert not svd.s.any()
    assert np.isfinite(svd.u).all()
    assert np.isfinite(svd.vt).all()
    np.testing.assert_array_equal(product(svd), np.zeros(shape))


def test_one_stack_may_hold_matrices_of_any_size() -> None:
    """One dead channel, one of denormal numbers, and one huge one beside a common one: each is exact on its own."""
    rng = np.random.default_rng(5)
    scales = [0.0, 1e-310, 1e-200, 1.0, 1e200]
    stack = np.stack([rng.standard_normal((4, 9)) * scale for scale in scales])
    for rank in (1, 4):
        svd = truncated_svd(stack, rank)
        for number, scale in enumerate(scales[1:], start=1):
            plain = stack[number] / scale
            error = np.sum((plain - (svd.u[number] * (svd.s[number] / scale)) @ svd.vt[number]) ** 2)
            assert abs(error - discarded(plain, rank)) < SQUARED * np.sum(plain**2)


@pytest.mark.parametrize("shape", [(1024, 1100), (1, 1100, 1024)])
def test_large_matrices_take_a_part_of_the_spectrum(shape: tuple[int, ...]) -> None:
    """From 1024 rows on another driver computes only the leading third."""
    matrix = np.random.default_rng(7).standard_normal(shape)
    svd = truncated_svd(matrix, 300)
    assert svd.u.shape == (*shape[:-1], 300)
    s = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(svd.s, s[..., :300], rtol=1e-10)
    squared = np.sum((matrix - product(svd)) ** 2)
    assert squared == pytest.approx(float(np.sum(s[..., 300:] ** 2)), rel=1e-10)


def test_large_matrices_of_low_rank() -> None:
    """All but two eigenvalues of the Gram matrix are zero: the driver for a part of the spectrum must bear that."""
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((1024, 2)) @ rng.standard_normal((2, 1030))
    svd = truncated_svd(matrix, 300)
    assert relative_error(matrix, product(svd)) < 1e-13
    np.testing.assert_allclose(svd.u.T @ svd.u, np.eye(300), atol=1e-11)


@FIXED
@given(
    batch=st.sampled_from([(), (3,)]),
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    inner=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_squared_singular_values(batch: tuple[int, ...], m: int, n: int, inner: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrices = rng.standard_normal((*batch, m, inner)) @ rng.standard_normal((*batch, inner, n))
    squared = squared_singular_values(matrices)
    expected = np.linalg.svd(matrices, compute_uv=False) ** 2
    np.testing.assert_allclose(squared, expected, atol=SQUARED * float(expected.max()))
    assert (squared >= 0).all()
    assert (np.diff(squared, axis=-1) <= 0).all()


def test_relative_error() -> None:
    original = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(original, original) == 0.0
    assert relative_error(original, np.array([[3.0, 0.0], [0.0, 0.0]])) == pytest.approx(4 / 5)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.zeros(3), np.ones(3)) == float("inf")
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        assert relative_error(original * scale, original * scale * 0.75) == pytest.approx(0.25)


def test_inverse_or_zero() -> None:
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        np.testing.assert_array_equal(inverse_or_zero(np.array([[2.0, 0.0], [0.0, 0.25]])), [[0.5, 0.0], [0.0, 4.0]])


def mean_squares(cross: Array, gram: Array, map_: Array) -> float:
    """tr(M G M^T) - 2 tr(C M^T)."""
    return float(np.vdot(map_ @ gram - 2 * cross, map_))


@FIXED
@given(
    n=st.integers(1, 7), d=st.integers(1, 7), columns=st.integers(1, 30), data=st.data(), seed=st.integers(0, 10_000)
)
def test_reduced_rank_regression_against_the_sample(
    n: int, d: int, columns: int, data: st.DataObject, seed: int
) -> None:
    """Fit the targets without a limit, then keep the leading singular vectors of the fitted values."""
    rng = np.random.default_rng(seed)
    rank = data.draw(st.integers(1, min(n, d)))
    x, y = rng.standard_normal((d, columns)), rng.standard_normal((n, columns))
    x *= 10.0 ** rng.uniform(-8, 4, (d, 1))  # dim and bright inputs
    x[rng.random(d) < 0.2] = 0  # dead ones
    fitted = y @ np.linalg.pinv(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300), rcond=1e-5)
    fitted = fitted @ (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300))
    s = np.linalg.svd(fitted, compute_uv=False)
    best = float((y**2).sum() - (s[:rank] ** 2).sum())
    u, rows = reduced_rank_regression(y @ x.T, x @ x.T, rank)
    assert u.shape == (n, rank)
    assert rows.shape == (rank, d)
    assert np.isfinite(rows).all()
    assert (rows[:, (x == 0).all(axis=1)] == 0).all()
    error = float(((y - u @ rows @ x) ** 2).sum())
    assert error == pytest.approx(best, rel=1e-5, abs=1e-6 * float((y**2).sum()))


def test_reduced_rank_regression_beats_every_random_map() -> None:
    """Brute force: no map of that rank near it or anywhere else has a smaller error."""
    rng = np.random.default_rng(2)
    root, cross = rng.standard_normal((2, 5, 9)), rng.standard_normal((2, 4, 5))
    gram = root @ np.swapaxes(root, 1, 2)
    u, rows = reduced_rank_regression(cross, gram, 2)
    np.testing.assert_allclose(np.swapaxes(u, 1, 2) @ u, np.broadcast_to(np.eye(2), (2, 2, 2)), atol=1e-12)
    for number in range(2):
        best = mean_squares(cross[number], gram[number], u[number] @ rows[number])
        for scale in (1e-3, 0.1, 1.0):
            for _ in range(200):
                left = u[number] + scale * rng.standard_normal((4, 2))
                right = rows[number] + scale * rng.standard_normal((2, 5))
                assert mean_squares(cross[number], gram[number], left @ right) > best


def test_reduced_rank_regression_of_white_inputs_is_the_truncated_svd() -> None:
    matrices = np.random.default_rng(6).standard_normal((3, 4, 7))
    for rank in range(1, 5):
        u, rows = reduced_rank_regression(matrices, np.broadcast_to(np.eye(7), (3, 7, 7)), rank)
        np.testing.assert_allclose(u @ rows, product(truncated_svd(matrices, rank)), atol=1e-12)


def test_principal_axes() -> None:
    root = np.random.default_rng(7).standard_normal((2, 5, 8))
    covariance = root @ np.swapaxes(root, 1, 2)
    axes = principal_axes(covariance, 3)
    np.testing.assert_allclose(np.abs(np.swapaxes(axes, 1, 2) @ truncated_svd(root, 3).u), [np.eye(3)] * 2, atol=1e-9)
    largest = np.take_along_axis(axes, np.argmax(np.abs(axes), axis=1)[:, None], axis=1)
    assert (largest > 0).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-7, 1.0, 1e300])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_scales_are_shared_among_factors(scale: float, count: int) -> None:
    array = np.array([0.3, -0.7, 0.0]) * scale
    scaled, exponent = scaled_to_one(array)
    assert 0.5 <= np.abs(scaled).max() < 1
    factors = scale_product([scaled] + [np.ones(1)] * (count - 1), exponent)
    whole = factors[0]
    for factor in factors[1:]:
        assert 2.0**-350 < np.abs(factor).max() < 2.0**350 or count == 1
        whole = whole * factor
    np.testing.assert_array_equal(whole, array)


def test_zeros_have_no_scale() -> None:
    scaled, exponent = scaled_to_one(np.zeros((2, 3)))
    assert exponent == 0
    assert not scaled.any()
