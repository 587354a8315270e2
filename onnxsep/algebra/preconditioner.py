"""Approximate inverses of the normal equations of one factor, as ``onnxsep.algebra.normal_equations`` explains them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxsep.algebra.cholesky import LARGE, Cholesky
from onnxsep.algebra.contraction import contract
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.normal_equations import Step, Trace

_LARGEST = 4_096  # rows of a matrix that is inverted; of a larger one the diagonal is
_LARGE = 256  # rows of one that is inverted once for all sweeps: it hardly changes, and any will do
_RIDGE = 1e-6  # of the mean diagonal


def preconditioner(step: Step, others: Sequence[Array], gram: Array, kept: dict[Any, Any]) -> Callable[[Array], Array]:
    """(A (x) B)^-1, of the trace of H, for each entry of the batch.

    Args:
        step: of the factor.
        others: the other factors.
        gram: [*inputs, *inputs].
        kept: inverses of large matrices, from one call to the next one with the same Gram matrix.
    """
    inverses, whole = [_inverse(step, step.free, others, gram, kept)[0]], None
    if step.bonds.letters:
        inverse, whole = _inverse(step, step.bonds, others, gram, kept)
        inverses.append(inverse)
    if whole is not None and step.batch:
        inverses.append((step.batch, whole))
    primed = step.own
    terms = [letters for letters, _ in inverses]
    for letters in terms:
        primed = "".join(letter.upper() if letter.upper() in letters else letter for letter in primed)
    equation = f"{','.join(terms)},{primed}->{step.own}"

    def apply(rest: Array) -> Array:
        return contract(equation, *(array for _, array in inverses), rest.astype(gram.dtype, copy=False)).astype(
            np.float64, copy=False
        )

    return apply


def _inverse(
    step: Step, trace: Trace, others: Sequence[Array], gram: Array, kept: dict[Any, Any]
) -> tuple[tuple[str, Array], Array]:
    """The letters and the array of an inverse, which may be that of a diagonal; and the trace, for the batch."""
    key = (step.adjoint, trace.letters)
    if key in kept:
        return kept[key], np.ones(())
    batch = len(step.batch)
    matrix = contract(trace.equation, *others, *others, np.einsum(f"{trace.tied}->{trace.gram}", gram))
    shape = matrix.shape[: batch + len(trace.letters)]
    size = math.prod(shape[batch:])
    matrix = matrix.reshape(-1, size, size)
    diagonal = np.maximum(np.diagonal(matrix, axis1=1, axis2=2), 0)
    mean = diagonal.mean(axis=1)
    ridge = np.where(mean > 0, mean * _RIDGE, 1).astype(matrix.dtype)
    found = None
    if 1 < size <= _LARGEST:
        found = _inverted((matrix + np.swapaxes(matrix, 1, 2)) / 2, ridge)
    if found is None:
        result = step.batch + trace.letters, (1 / (diagonal + ridge[:, None])).reshape(shape)
    else:
        result = step.batch + trace.letters + trace.letters.upper(), found.reshape(*shape, *shape[batch:])
    if size >= _LARGE and not batch and trace == step.free:
        kept[key] = result
    return result, diagonal.sum(axis=1).reshape(shape[:batch])


def _inverted(matrices: Array, ridge: Array) -> Array | None:
    """The inverses of positive definite matrices [b, n, n] with a ridge [b]; None where one is none, by rounding."""
    index = np.arange(matrices.shape[1])
    matrices[:, index, index] += ridge[:, None]
    try:
        if len(index) >= LARGE:
            return np.stack([Cholesky(matrix).inverse() for matrix in matrices])
        np.linalg.cholesky(matrices)  # the inverse alone would not tell
        found = np.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        return None
    symmetric: Array = (found + np.swapaxes(found, 1, 2)) / 2
    return symmetric
