"""Sums of rank-one terms (the canonical polyadic decomposition, CP), on stacks of tensors in double precision.

A tensor [n1, ..., nd] is approximated by the sum over r of the outer products of column r of d factors [nk, r]. There
is no closed form, and the smallest number of terms that is exact is not known in general (Kolda and Bader 2009). So:

``orthogonal_terms`` finds terms that are orthogonal to one another. In the basis of the leading singular vectors of all
but the two longest axes, every matrix along these two axes has an SVD; the largest of all triplets make the best sum
of so many of these terms. So its error never rises with the number of terms, and it is zero at ``exact_rank``, the
size of the tensor over its longest axis, an upper bound of the smallest exact number.

``improved`` goes on from there by alternating least squares; every step lowers the error of every tensor, or leaves
it. ``onnxsep.algebra.als`` does the same against calibration data; without them the normal equations are those of the
terms alone (Gram matrices multiplied element by element), which is what makes large weights a matter of seconds.
Large tensors are the matter of ``onnxsep.algebra.polyadic_large``.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array, inverse_or_zero, truncated_svd
from onnxsep.algebra.polyadic_large import LARGE, improved_large

_RIDGE = 1e-10  # of the mean diagonal of the normal equations, on the change of a factor and not on its value
_NOTHING = 1e-280  # a tensor of zeros, beside others


def exact_rank(shape: Sequence[int]) -> int:
    """Terms that are enough for any tensor of this shape."""
    return math.prod(shape) // max(shape)


def compose(factors: Sequence[Array]) -> Array:
    """The tensors [stack, n1, ..., nd] of factors [stack, nk, rank]."""
    rest = _columns(factors[1:])
    product: Array = factors[0] @ np.swapaxes(rest, -1, -2)
    return product.reshape(len(product), *(factor.shape[1] for factor in factors))


def squared_errors(tensors: Array, factors: Sequence[Array]) -> Array:
    """The squared Frobenius norm of what is left of every tensor, [stack]."""
    left: Array = ((tensors - compose(factors)) ** 2).reshape(len(tensors), -1).sum(axis=1)
    return left


def orthogonal_terms(tensors: Array, rank: int) -> list[Array]:
    """The largest of mutually orthogonal rank-one terms, as said above.

    Args:
        tensors: [stack, n1, ..., nd], d at least 2.
        rank: between 1 and ``exact_rank``.

    Returns:
        Factors [stack, nk, rank], the terms in descending order, and of equal norm within each term.
    """
    shape = tensors.shape[1:]
    by_length = sorted(range(len(shape)), key=lambda axis: shape[axis])
    *others, middle, longest = by_length
    others.sort()
    bases: dict[int, Array] = {}
    rotated = tensors
    for axis in others:
        unfolding = np.moveaxis(tensors, axis + 1, 1).reshape(len(tensors), shape[axis], -1)
        bases[axis] = truncated_svd(unfolding, shape[axis]).u
        turned = np.moveaxis(rotated, axis + 1, -1)
        rows = turned.reshape(len(tensors), -1, shape[axis]) @ bases[axis]
        rotated = np.moveaxis(rows.reshape(turned.shape), -1, axis + 1)
    matrices = np.moveaxis(rotated, [middle + 1, longest + 1], [-2, -1])
    matrices = matrices.reshape(len(tensors), -1, shape[middle], shape[longest])
    count = shape[middle]
    if tensors[0].size >= LARGE:  # hardly any matrix has twice its share among the largest
        count = min(count, math.ceil(2 * rank / matrices.shape[1]))
    u, s, vt, place, column = _largest(matrices, count, rank)
    if count < shape[middle] and (column == count - 1).any():
        u, s, vt, place, column = _largest(matrices, shape[middle], rank)
    row = np.arange(len(s))[:, None]
    factors = {middle: u[row, place, :, column], longest: vt[row, place, column]}  # [stack, rank, n]
    size = s[row, place, column] ** (1 / len(shape))
    for axis in reversed(others):  # the place counts through their directions, the last axis fastest
        place, index = np.divmod(place, shape[axis])
        factors[axis] = np.swapaxes(bases[axis], 1, 2)[row, index]
    return [np.swapaxes(factors[axis], 1, 2) * size[:, None, :] for axis in range(len(shape))]


def _largest(matrices: Array, count: int, rank: int) -> tuple[Array, Array, Array, NDArray[Any], NDArray[Any]]:
    """SVDs of matrices [stack, m, ...], and of each stack the places in m and the columns of the largest triplets."""
    u, s, vt = truncated_svd(matrices, count)
    chosen = np.argsort(-s.reshape(len(s), -1), axis=1, kind="stable")[:, :rank]
    return u, s, vt, chosen // count, chosen % count


def improved(tensors: Array, factors: Sequence[Array], sweeps: int, tolerance: float = 1e-5) -> list[Array]:
    """Alternating least squares, until a sweep gains less than ``tolerance`` of the squared norm of all tensors.

    Args:
        tensors: [stack, n1, ..., nd], of a scale at which squares neither overflow nor vanish.
        factors: the start, [stack, nk, rank].
        sweeps: at most so many rounds over all factors.
        tolerance: as said above.

    Returns:
        Factors of equal norm within each term; no tensor's error is above that of the start.
    """
    if tensors[0].size >= LARGE:
        pairs = zip(tensors, *factors, strict=True)
        found = [improved_large(tensor, start, sweeps, tolerance) for tensor, *start in pairs]
        return _balanced([np.stack(parts) for parts in zip(*found, strict=True)])
    flat = tensors.reshape(len(tensors), tensors.shape[1], -1)
    total = float(np.vdot(tensors, tensors))
    current, last = list(factors), math.inf
    for _ in range(sweeps):
        current, explained = _sweep(flat, tensors.shape, current)
        left = total - explained
        if last - left <= tolerance * total:
            break
        last = left
    return _balanced(current)


def _sweep(flat: Array, shape: tuple[int, ...], factors: Sequence[Array]) -> tuple[list[Array], float]:
    """Solve for every factor in turn, the first one last; gives them, and the squared norm that they explain."""
    current = list(factors)
    grams = [_gram(factor) for factor in current]
    # Contracted with the first factor, which is the costly part, the tensors serve all other factors.
    partial = (np.swapaxes(current[0], 1, 2) @ flat).reshape(len(flat), -1, *shape[2:])
    for position in [*range(1, len(current)), 0]:
        seen = _contract(partial, current, position) if position else flat @ _columns(current[1:])
        normal = _product([*grams[:position], *grams[position + 1 :]])
        current[position] = current[position] + _solved(normal, seen - current[position] @ normal)
        grams[position] = _gram(current[position])
    crossed = np.einsum("snr,snr->", seen, current[0], dtype=np.float64)
    return current, 2 * float(crossed) - float(_product(grams).sum(dtype=np.float64))


def _columns(factors: Sequence[Array]) -> Array:
    """Products of the entries of every term: [stack, n2 * n3 * ..., rank] (Khatri and Rao)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, :, None, :] * factor[:, None, :, :]).reshape(len(product), -1, product.shape[-1])
    return product


def _contract(partial: Array, factors: Sequence[Array], position: int) -> Array:
    """[stack, rank, n2, n3, ...] times all factors but the first one and that at ``position``: [stack, n, rank]."""
    for axis in reversed(range(1, len(factors))):
        if axis != position:
            weights = np.swapaxes(factors[axis], 1, 2)  # [stack, rank, n]
            partial = np.moveaxis(partial, axis + 1, -1)
            shape = partial.shape[2:-1]
            rows = partial.reshape(*partial.shape[:2], -1, partial.shape[-1])
            partial = (rows @ weights[..., None])[..., 0].reshape(*partial.shape[:2], *shape)
    return np.swapaxes(partial, 1, 2)


def _gram(factor: Array) -> Array:
    """[stack, n, rank] -> [stack, rank, rank]."""
    gram: Array = np.swapaxes(factor, 1, 2) @ factor
    return gram


def _product(grams: Sequence[Array]) -> Array:
    """Element by element: the Gram matrix of the outer products of several factors' columns."""
    product: Array = grams[0].copy()
    for gram in grams[1:]:
        product *= gram
    return product


def _solved(normal: Array, residual: Array) -> Array:
    """The change d of a factor, d (H + ridge) = residual, for every tensor."""
    mean = np.trace(normal, axis1=1, axis2=2) / normal.shape[-1]
    index = np.arange(normal.shape[-1])
    shifted = normal.copy()
    shifted[:, index, index] += np.where(mean > _NOTHING, mean * _RIDGE, 1.0)[:, None]
    change: Array = np.linalg.solve(shifted, np.swapaxes(residual, 1, 2))
    return np.swapaxes(change, 1, 2)


def _balanced(factors: Sequence[Array]) -> list[Array]:
    """The same terms, of equal norm in every factor."""
    norms = np.stack([np.linalg.norm(factor, axis=1) for factor in factors])  # [d, stack, rank]
    mean = np.exp(np.log(np.where(norms > 0, norms, 1.0)).mean(axis=0))
    mean = np.where((norms > 0).all(axis=0), mean, 0.0)
    return [factor * (mean * inverse_or_zero(norm))[:, None, :] for factor, norm in zip(factors, norms, strict=True)]
