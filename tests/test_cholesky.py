"""Factors of large matrices, block by block, and threads of the linear algebra."""

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from onnxsep.algebra.cholesky import Cholesky
from onnxsep.algebra.gram import CentredRows, DenseGram, RowGram, gram_of, mean_product
from onnxsep.algebra.threads import many_threads, one_thread

rng = np.random.default_rng(0)


def positive(size: int) -> NDArray[np.float64]:
    rows = rng.standard_normal((size, 2 * size + 1))
    return np.asarray(rows @ rows.T / size + 0.1 * np.eye(size))


@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 800])
@pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-11), (np.float32, 2e-3)])
def test_solutions_and_inverses(size: int, kind: type, tolerance: float) -> None:
    matrix, wanted = positive(size), rng.standard_normal((size, 5))
    factor = Cholesky(matrix.astype(kind))
    found, inverse = factor.solve((matrix @ wanted).astype(kind)), factor.inverse()
    assert found.dtype == inverse.dtype == kind
    assert np.abs(found - wanted).max() < tolerance
    assert np.abs(inverse @ matrix - np.eye(size)).max() < tolerance


@pytest.mark.parametrize("place", [0, 255, 256, 699])
def test_what_is_not_positive_definite_is_refused(place: int) -> None:
    matrix = positive(700)
    matrix[place, place] = -1
    with pytest.raises(np.linalg.LinAlgError):
        Cholesky(matrix)


def threads() -> list[int]:
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_one_thread_but_for_large_products() -> None:
    with threadpool_limits(3, user_api="blas"):
        before = threads()
        with many_threads():
            assert threads() == before
        with one_thread():
            assert set(threads()) == {1}
            with one_thread(), many_threads():
                assert threads() == before
            with pytest.raises(ZeroDivisionError), many_threads():
                raise ZeroDivisionError
            assert set(threads()) == {1}
        assert threads() == before


def test_centred_rows_are_those_of_a_copy() -> None:
    samples = rng.standard_normal((9000, 12)).astype(np.float32) + 5
    chosen = np.flatnonzero(rng.random(9000) < 0.9)
    mean = samples[chosen].mean(axis=0)
    copy = samples[chosen] - mean
    rows = CentredRows(samples, chosen, mean)
    assert rows.shape == copy.shape
    assert np.array_equal(mean_product(rows, rows), mean_product(copy, copy))
    for number, part in enumerate(rows.groups(3)):
        own = copy[:, 4 * number : 4 * number + 4]
        assert np.array_equal(part[:], own)
        assert np.allclose(mean_product(own, part), own.T.astype(np.float64) @ own / len(own), atol=1e-5)


def test_the_smaller_of_rows_and_matrix_is_kept() -> None:
    wide = rng.standard_normal((10, 2100)).astype(np.float32)
    kept = gram_of(CentredRows(wide, np.arange(1, 9), np.zeros(2100, np.float32)))
    assert isinstance(kept, RowGram)
    assert kept.rows.shape == (8, 2100)
    assert isinstance(gram_of(wide[:, :20]), DenseGram)


@pytest.mark.parametrize("own", [False, True])
def test_a_ridge_is_added_once(own: bool) -> None:
    matrix = np.eye(3)
    gram = DenseGram(matrix)
    assert np.array_equal(gram.with_ridge(2.0, own=own).dense(), 3 * np.eye(3))
    assert np.array_equal(matrix, 3 * np.eye(3) if own else np.eye(3))
