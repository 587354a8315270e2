"""Sums of rank-one terms for large tensors, by alternating least squares in single precision.

``onnxsep.algebra.polyadic`` says what such a sum is. Orthogonal terms, from which small tensors start, are (nearly) a
stationary point: a sweep from there gains little, the next ones slowly more. A large tensor pays for each, some
products of its size with all terms, so this starts elsewhere: the two long factors of every term stay, the short ones
(the taps) get noise of the same size. Nine sweeps come as low as eleven from the orthogonal terms (seven do for random
tensors, and not for trained ones); what ends above the start is not taken.

A sweep starts ahead of where the one before has ended, in the direction of what that has changed, as
``onnxsep.algebra.als.alternate`` explains; one that does not come out lower is taken back.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.cholesky import LARGE as LARGE_MATRIX
from onnxsep.algebra.cholesky import Cholesky
from onnxsep.algebra.linalg import Array

LARGE = 2**20  # elements of a tensor from which on this is worth it
_SWEEPS = 9
_AHEAD, _SHORTER = 1.0, 2.0  # of the step ahead
_RIDGE = 1e-6  # of the mean diagonal of the normal equations, on the change of a factor and not on its value
_NOTHING = 1e-30  # a tensor of zeros
Floats = NDArray[np.float32]


def improved_large(tensor: Array, factors: Sequence[Array], sweeps: int, tolerance: float) -> list[Array]:
    """Alternating least squares for one tensor, as ``onnxsep.algebra.polyadic.improved`` has them.

    Args:
        tensor: [n1, ..., nd], d at least 2; n1 and n2 are the long axes.
        factors: the start, [nk, rank].
        sweeps: at most so many rounds over all factors.
        tolerance: of the squared norm, that a sweep gains at least.

    Returns:
        Factors in double precision; the error is not above that of the start.
    """
    flat = tensor.reshape(len(tensor), -1).astype(np.float32)
    total = float(np.vdot(flat, flat))
    given = [factor.astype(np.float32) for factor in factors]
    best = total - _explained(flat, given)
    current = earlier = [*given[:2], *_noisy(given[2:])]
    last, length, better = math.inf, _AHEAD, given
    for number in range(min(sweeps, _SWEEPS)):
        start = current
        if number > 1:
            start = [one + np.float32(length) * (one - other) for one, other in zip(current, earlier, strict=True)]
        found, explained = _sweep(flat, start)
        left = total - explained
        if start is not current and not left < last:
            length /= _SHORTER
            earlier = current  # the next sweep starts where the last good one has ended
            continue
        current, earlier = found, current
        if left < best:
            best, better = left, current
        if last - left <= tolerance * total:
            break
        last = left
    return [factor.astype(np.float64) for factor in better]


def _noisy(factors: Sequence[Floats]) -> list[Floats]:
    """With noise of the size that every column has."""
    rng = np.random.default_rng(0)
    sizes = [np.sqrt(np.mean(factor**2, axis=0)) for factor in factors]
    noise = [size * rng.standard_normal(factor.shape, np.float32) for factor, size in zip(factors, sizes, strict=True)]
    return [factor + added for factor, added in zip(factors, noise, strict=True)]


def _explained(flat: Floats, factors: Sequence[Floats]) -> float:
    """The squared norm that factors explain, 2 <T, M> - <M, M>."""
    core = _core(_partial(flat, factors[0], len(factors[1])), factors[1])
    crossed = float(np.vdot(core, _columns(factors[2:]).T))
    return 2 * crossed - float(_product([_gram(factor) for factor in factors]).sum(dtype=np.float64))


def _sweep(flat: Floats, factors: Sequence[Floats]) -> tuple[list[Floats], float]:
    """Solve for every factor in turn, the first one last; gives them, and the squared norm that they explain."""
    current = list(factors)
    grams = [_gram(factor) for factor in current]

    def improve(position: int, seen: Floats) -> None:
        normal = _product([*grams[:position], *grams[position + 1 :]])
        current[position] = _solved(normal, seen, current[position])
        grams[position] = _gram(current[position])

    # Contracted with the first factor, which is one of two costly products, the tensor serves all other factors.
    partial = _partial(flat, current[0], len(current[1]))
    improve(1, (partial @ _columns(current[2:]).T[:, :, None])[:, :, 0].T)
    core = _core(partial, current[1])
    taps = [len(factor) for factor in current[2:]]
    for position in range(2, len(current)):
        before, after = _columns(current[2:position]), _columns(current[position + 1 :])
        left = core.reshape(len(core), len(before), taps[position - 2], len(after))
        improve(position, np.einsum("rbka,br,ar->kr", left, before, after))
    columns = (current[1][:, None, :] * _columns(current[2:])).reshape(-1, len(core))
    seen = flat @ columns
    improve(0, seen)
    crossed = np.einsum("nr,nr->", seen, current[0], dtype=np.float64)
    return current, 2 * float(crossed) - float(_product(grams).sum(dtype=np.float64))


def _partial(flat: Floats, factor: Floats, second: int) -> Floats:
    """The tensor times its first factor: [rank, n2, n3 * ...]."""
    partial: Floats = (factor.T @ flat).reshape(factor.shape[1], second, -1)
    return partial


def _core(partial: Floats, factor: Floats) -> Floats:
    """The same times the second one: [rank, n3 * ...]."""
    core: Floats = (factor.T[:, None, :] @ partial)[:, 0]
    return core


def _columns(factors: Sequence[Floats]) -> Floats:
    """Products of the entries of every term, [n * ..., rank] (Khatri and Rao); of no factors, ones that broadcast."""
    product = np.ones((1, factors[0].shape[1] if factors else 1), np.float32)
    for factor in factors:
        product = (product[:, None] * factor).reshape(-1, factor.shape[1])
    return product


def _gram(factor: Floats) -> Floats:
    gram: Floats = factor.T @ factor
    return gram


def _product(grams: Sequence[Floats]) -> Floats:
    """Element by element: the Gram matrix of the outer products of several factors' columns."""
    product: Floats = grams[0].copy()
    for gram in grams[1:]:
        product *= gram
    return product


def _solved(normal: Floats, seen: Floats, present: Floats) -> Floats:
    """A factor F, F H = S, with a ridge on its change (above what single precision rounds); H is overwritten."""
    mean = float(np.trace(normal)) / len(normal)
    ridge = np.float32(mean * _RIDGE if mean > _NOTHING else 1.0)
    normal[np.diag_indices(len(normal))] += ridge
    right = (seen + ridge * present).T
    found: Floats
    try:
        if len(normal) >= LARGE_MATRIX:
            found = Cholesky(normal.copy()).solve(right).T
            return found
        lower = np.linalg.cholesky(normal)
    except np.linalg.LinAlgError:  # not positive, by rounding
        found = np.linalg.solve(normal.astype(np.float64), right).T.astype(np.float32)
        return found
    from scipy.linalg import cho_solve  # it takes long to import

    found = cho_solve((lower, True), right, check_finite=False).T
    return found
