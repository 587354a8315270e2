"""Low-rank approximation of matrices, on plain arrays in double precision.

Every function works on a stack of matrices ``[..., m, n]`` (a Conv has one matrix per group or per input channel) and
minimises the Frobenius norm of the difference; by Eckart and Young (1936) the truncated SVD does.

The SVD is taken from the eigenvectors of the Gram matrix of the smaller side, which costs about a third of a plain
SVD. Squaring loses small singular values (below 1e-8 of the largest), but not the product: with U orthonormal to
machine precision, U U^T M equals the projection whatever the eigenvalues were, so the result is exact at full rank.
Matrices whose squares would overflow or vanish (float64 weights beyond 1e75 or below 1e-75) are scaled before.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_SAFE = 1e150  # sums of squares between 1 / _SAFE and _SAFE are far from the limits of a double, 1e308 and 1e-308


class SVD(NamedTuple):
    """Leading singular triplets of a stack of matrices, in descending order."""

    u: Array  # [..., m, r], orthonormal columns
    s: Array  # [..., r]
    vt: Array  # [..., r, n], orthonormal rows; of the longer of m and n, a vector is zero where its singular value is


def truncated_svd(matrices: Array, rank: int) -> SVD:
    """The ``rank`` leading singular triplets of every matrix of a stack.

    The sign of each pair of vectors is fixed (the entry of largest magnitude in ``u`` is positive), so that results do
    not depend on the linear algebra library.

    Args:
        matrices: [..., m, n], finite.
        rank: between 1 and min(m, n).
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        v, s, ut = truncated_svd(np.swapaxes(matrices, -1, -2), rank)
        u, vt = np.swapaxes(ut, -1, -2), np.swapaxes(v, -1, -2)
        sign = _signs(u)
        return SVD(u * sign[..., None, :], s, vt * sign[..., :, None])
    matrices, exponent, gram = _scaled_gram(matrices)
    u = _leading_eigenvectors(gram, rank)
    u = u * _signs(u)[..., None, :]
    projection = np.swapaxes(u, -1, -2) @ matrices
    s = np.linalg.norm(projection, axis=-1)
    vt = np.divide(projection, s[..., None], out=np.zeros_like(projection), where=s[..., None] > 0)
    return SVD(u, np.ldexp(s, exponent[..., None]), vt)


def squared_singular_values(matrices: Array) -> Array:
    """The squared singular values of every matrix, [..., min(m, n)], in descending order.

    They overflow for matrices beyond 1e150, and vanish below 1e-150: scale such ones before.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = np.swapaxes(matrices, -1, -2)
    eigenvalues = np.linalg.eigvalsh(matrices @ np.swapaxes(matrices, -1, -2))
    squared: Array = np.maximum(eigenvalues[..., ::-1], 0.0)
    return squared


def inverse_or_zero(values: Array) -> Array:
    """1 / values, and 0 where a value is 0: the scale of a direction that nothing passes through."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def relative_error(original: Array, approximation: Array) -> float:
    """||original - approximation|| / ||original|| in the Frobenius norm; 0 where both are zero."""
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(original))
    if not 1 / _SAFE < norm * norm < _SAFE:
        exponent = np.frexp(np.max(np.abs(original), initial=0.0))[1]
        original, approximation = np.ldexp(original, -exponent), np.ldexp(approximation, -exponent)
        norm = float(np.linalg.norm(original))
    difference = float(np.linalg.norm(original - approximation))
    if norm == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / norm


def _scaled_gram(matrices: Array) -> tuple[Array, NDArray[np.int32], Array]:
    """The stack, scaled by powers of two where its squares need it; their exponents [...]; and the Gram matrices."""
    with np.errstate(over="ignore", invalid="ignore"):
        gram = matrices @ np.swapaxes(matrices, -1, -2)
        squared_norm = np.trace(gram, axis1=-2, axis2=-1)
    exponent = np.zeros(squared_norm.shape, np.int32)
    if not np.all((squared_norm > 1 / _SAFE) & (squared_norm < _SAFE)):
        exponent = np.frexp(np.max(np.abs(matrices), axis=(-2, -1)))[1]
        matrices = np.ldexp(matrices, -exponent[..., None, None])
        gram = matrices @ np.swapaxes(matrices, -1, -2)
    return matrices, exponent, gram


def _leading_eigenvectors(gram: Array, rank: int) -> Array:
    """Eigenvectors [..., m, rank] of the largest eigenvalues of symmetric matrices, largest first."""
    m = gram.shape[-1]
    if gram.size == m * m and m >= 1024 and 3 * rank <= m:
        # A third of one large spectrum: the subset driver takes 0.8 of the time; below that size it is no faster.
        from scipy.linalg import eigh  # it takes 0.15 s to import, and only large spectra need it

        matrix = gram.reshape(m, m)
        vectors: Array = eigh(matrix, subset_by_index=[m - rank, m - 1], check_finite=False)[1]
        return vectors[:, ::-1].reshape(*gram.shape[:-1], rank)
    return np.linalg.eigh(gram)[1][..., ::-1][..., :rank]


def _signs(u: Array) -> Array:
    """+1 or -1 for each column of [..., m, r]: the sign of its entry of largest magnitude."""
    largest = np.take_along_axis(u, np.argmax(np.abs(u), axis=-2, keepdims=True), axis=-2)[..., 0, :]
    return np.where(largest < 0, -1.0, 1.0)
