"""Sums of rank-one terms: bounds that are known, and the promises of every step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.polyadic import compose, exact_rank, improved, orthogonal_terms, squared_errors

FIXED = settings(deadline=None, derandomize=True, max_examples=60)
SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple)


def by_loops(factors: list[Array]) -> Array:
    """The definition, one term after the other."""
    stack, _, rank = factors[0].shape
    total = np.zeros((stack, *(factor.shape[1] for factor in factors)))
    for number in range(stack):
        for term in range(rank):
            outer = np.ones(())
            for factor in factors:
                outer = np.multiply.outer(outer, factor[number, :, term])
            total[number] += outer
    return total


@pytest.mark.parametrize(("shape", "terms"), [((4, 7, 2), 8), ((3, 3), 3), ((5, 2, 3, 3), 18), ((2, 9, 1, 2), 4)])
def test_exact_rank_is_the_size_over_the_longest_axis(shape: tuple[int, ...], terms: int) -> None:
    assert exact_rank(shape) == terms


@FIXED
@given(shape=SHAPES, stack=st.integers(1, 3), seed=st.integers(0, 1000))
def test_orthogonal_terms(shape: tuple[int, ...], stack: int, seed: int) -> None:
    """Exact in the end; each term's norm is what it takes from the squared error, so that it never rises."""
    tensors = np.random.default_rng(seed).standard_normal((stack, *shape))
    full = exact_rank(shape)
    factors = orthogonal_terms(tensors, full)
    np.testing.assert_allclose(by_loops(factors), tensors, atol=1e-12)
    norms = np.prod([np.linalg.norm(factor, axis=1) for factor in factors], axis=0)  # [stack, terms]
    assert (np.diff(norms, axis=1) <= 1e-12).all()
    for rank in range(1, full + 1):
        fewer = orthogonal_terms(tensors, rank)
        np.testing.assert_allclose(compose(fewer), by_loops(fewer), atol=1e-12)
        left = (norms[:, rank:] ** 2).sum(axis=1)
        np.testing.assert_allclose(squared_errors(tensors, fewer), left, atol=1e-11)


def test_orthogonal_terms_of_matrices_are_their_singular_triplets() -> None:
    matrices = np.random.default_rng(4).standard_normal((3, 5, 4))
    s = np.linalg.svd(matrices, compute_uv=False)
    for rank in range(1, 5):
        left = squared_errors(matrices, orthogonal_terms(matrices, rank))
        np.testing.assert_allclose(left, (s[:, rank:] ** 2).sum(axis=1), atol=1e-12)


@FIXED
@given(shape=SHAPES, stack=st.integers(1, 3), rank=st.integers(1, 8), seed=st.integers(0, 1000))
def test_no_sweep_raises_the_error_of_any_tensor(shape: tuple[int, ...], stack: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = rng.standard_normal((stack, *shape)) * 10.0 ** rng.uniform(-20, 0, (stack, *[1] * len(shape)))
    tensors[0] *= rng.integers(0, 2)  # zeros beside other tensors
    factors = [rng.standard_normal((stack, extent, rank)) for extent in shape]
    given_factors = [factor.copy() for factor in factors]
    last = squared_errors(tensors, factors)
    rounding = 1e-12 * (last + (tensors**2).reshape(stack, -1).sum(axis=1))
    for _ in range(4):
        factors = improved(tensors, factors, 1)
        now = squared_errors(tensors, factors)
        assert np.isfinite(now).all()
        assert (now <= last + rounding).all()
        norms = np.stack([np.linalg.norm(factor, axis=1) for factor in factors])
        np.testing.assert_allclose(norms, np.broadcast_to(norms[0], norms.shape), rtol=1e-9)
        last = now
    for before, after in zip(given_factors, improved(tensors, given_factors, 3), strict=True):
        assert after is not before
        assert not np.shares_memory(before, after)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (5, 8, 3), (4, 5, 3, 2, 3)])
def test_sums_of_few_terms_are_found(shape: tuple[int, ...]) -> None:
    """Random terms of a low rank are unique (Kruskal 1977) and far from each other: the sweeps reach them."""
    rng = np.random.default_rng(9)
    tensors = by_loops([rng.standard_normal((2, extent, 2)) for extent in shape])
    factors = improved(tensors, orthogonal_terms(tensors, 2), 500, tolerance=0.0)
    assert math.sqrt(float((squared_errors(tensors, factors) / (tensors**2).sum()).max())) < 1e-5
