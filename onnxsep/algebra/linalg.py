"""Low-rank approximation of matrices, on plain arrays in double precision.

Every function works on a stack of matrices ``[..., m, n]`` (a Conv has one matrix per group or per input channel) and
minimises the Frobenius norm of the difference; by Eckart and Young (1936) the truncated SVD does.

The SVD is taken from the eigenvectors of the Gram matrix of the smaller side, which costs about a third of a plain
SVD. Squaring loses small singular values (below 1e-8 of the largest), but not the product: with U orthonormal to
machine precision, U U^T M equals the projection whatever the eigenvalues were, so the result is exact at full rank.
What it would lose are the vectors of the longer side that belong to small singular values: where such are asked for
(matrices whose rank is lower than that), the plain SVD is taken, so that all vectors are orthonormal.
Matrices whose squares would overflow or vanish (float64 weights beyond 1e75 or below 1e-75) are scaled before.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.threads import threads_for

Array = NDArray[np.float64]
# Of the largest singular value: vectors of smaller ones lose half of their digits in the Gram matrix.
_LOST = 1e-4
_SAFE = 1e150  # sums of squares between 1 / _SAFE and _SAFE are far from the limits of a double, 1e308 and 1e-308


class SVD(NamedTuple):
    """Leading singular triplets of a stack of matrices, in descending order."""

    u: Array  # [..., m, r], orthonormal columns
    s: Array  # [..., r]
    vt: Array  # [..., r, n], orthonormal rows


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
    lost = s.min(axis=-1) <= _LOST * s.max(axis=-1)
    if lost.any():
        u[lost], s[lost], vt[lost] = _plain_svd(matrices[lost], rank)
    return SVD(u, np.ldexp(s, exponent[..., None]), vt)


def _plain_svd(matrices: Array, rank: int) -> SVD:
    """The SVD of the matrices themselves: slower, and orthonormal on either side whatever the singular values are."""
    u, s, vt = np.linalg.svd(matrices, full_matrices=False)
    sign = _signs(u[..., :rank])
    return SVD(u[..., :rank] * sign[..., None, :], s[..., :rank], vt[..., :rank, :] * sign[..., None])


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


def principal_axes(covariance: Array, rank: int) -> Array:
    """Eigenvectors [..., n, rank] of the largest eigenvalues of symmetric matrices [..., n, n], with fixed signs."""
    axes = _leading_eigenvectors(covariance, rank)
    return axes * _signs(axes)[..., None, :]


def reduced_rank_regression(cross: Array, gram: Array, rank: int) -> tuple[Array, Array]:
    """The map M of a given rank that computes y from x with the least squared error.

    Minimises the mean of |y - M x|^2, which is tr(M G M^T) - 2 tr(C M^T) but for a constant. Without a limit the best
    map is B = C G^-1; with one it is U U^T B, where U holds the leading eigenvectors of B G B^T = C G^-1 C^T (Izenman
    1975, with the identity as the weight of the outputs). With G the identity it is the truncated SVD of C.

    Args:
        cross: C, the means of y x^T, [..., n, d].
        gram: G, the means of x x^T, [..., d, d], symmetric, positive semidefinite. Directions that hold less than
            about 1e-12 of what their inputs hold alone are taken as not seen: there the map is the smallest one.
        rank: between 1 and min(n, d).

    Returns:
        U [..., n, rank] with orthonormal columns, and U^T B [..., rank, d].
    """
    lead, (n, d) = cross.shape[:-2], cross.shape[-2:]
    pairs = [
        Whitening(g).regression(c, rank) for c, g in zip(cross.reshape(-1, n, d), gram.reshape(-1, d, d), strict=True)
    ]
    left, right = (np.stack(parts) for parts in zip(*pairs, strict=True))
    return left.reshape(*lead, n, rank), right.reshape(*lead, rank, d)


_FLOPS = 4e9  # of a piece, a fraction of a second
_UNSEEN = 1e-12  # of the diagonal, which is scaled to one


class Whitening:
    """What turns inputs into white ones, and back.

    Args:
        gram: G [d, d], as for ``reduced_rank_regression``.
    """

    def __init__(self, gram: Array) -> None:
        # Inputs of unit mean square: that nearly minimises the condition number (van der Sluis 1969), and then a dim
        # channel is as good as a bright one.
        self._scale = inverse_or_zero(np.sqrt(np.maximum(np.diagonal(gram), 0.0)))
        gram = gram * self._scale[:, None] * self._scale
        self._lower: Array | None = None
        try:
            with threads_for(len(gram) ** 3 / 3):
                lower = np.asarray(np.linalg.cholesky(gram), np.float64)
            if np.diagonal(lower).min() ** 2 < _UNSEEN:
                raise np.linalg.LinAlgError
            self._lower = lower
        except np.linalg.LinAlgError:  # some directions are not seen, such as those of dead channels
            values, vectors = np.linalg.eigh(gram)
            seen = values > max(_UNSEEN, len(values) * np.finfo(np.float64).eps) * values[-1]
            self._whiten = vectors * np.sqrt(inverse_or_zero(np.where(seen, values, 0.0)))

    def regression(self, cross: Array, rank: int) -> tuple[Array, Array]:
        """One matrix of ``reduced_rank_regression``: whiten the inputs, take the SVD, and undo the whitening."""
        scaled = cross * self._scale
        if self._lower is None:
            white = scaled @ self._whiten
            u = truncated_svd(white, rank).u
            return u, (u.T @ white) @ self._whiten.T * self._scale
        white = solve_lower(self._lower, scaled.T).T
        u = truncated_svd(white, rank).u
        return u, solve_lower(self._lower, (u.T @ white).T, transposed=True).T * self._scale


def solve_lower(lower: Array, right: Array, *, transposed: bool = False) -> Array:
    """L^-1 R, or L^-T R, of a lower triangular L [n, n] and R [n, m]."""
    from scipy.linalg import solve_triangular  # it takes 0.15 s to import, and only fits to data need it

    # In pieces: it holds Python's global lock, and a signal would have to wait.
    step = max(16, int(_FLOPS / max(lower.size, 1)))
    trans = "T" if transposed else "N"
    parts = [right[:, start : start + step] for start in range(0, right.shape[1], step)]
    solved = [solve_triangular(lower, part, lower=True, trans=trans, check_finite=False) for part in parts]
    return np.concatenate(solved, axis=1)


def scaled_to_one(array: Array) -> tuple[Array, int]:
    """The array times a power of two, of largest magnitude between 1/2 and 1, and the exponent that undoes it."""
    exponent = int(np.frexp(np.max(np.abs(array), initial=0.0))[1])
    return np.ldexp(array, -exponent), exponent


def scale_product(factors: Sequence[Array], exponent: int) -> list[Array]:
    """Factors whose product is 2**exponent times that of the given ones, each scaled alike."""
    share, rest = divmod(exponent, len(factors))
    return [np.ldexp(factor, share + (position < rest)) for position, factor in enumerate(factors)]


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
    # Not scipy's driver for a part of the spectrum: it takes 0.8 of the time and holds Python's global lock for it, so
    # that no signal is obeyed and no other Conv gets on.
    return np.linalg.eigh(gram)[1][..., ::-1][..., :rank]


def _signs(u: Array) -> Array:
    """+1 or -1 for each column of [..., m, r]: the sign of its entry of largest magnitude."""
    largest = np.take_along_axis(u, np.argmax(np.abs(u), axis=-2, keepdims=True), axis=-2)[..., 0, :]
    return np.where(largest < 0, -1.0, 1.0)
