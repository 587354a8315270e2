"""Normal equations of one factor as matrices, and their solution."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from onnxsep.algebra.cholesky import LARGE, Cholesky
from onnxsep.algebra.contraction import contract
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.normal_equations import Block, Step

_RIDGE = {"d": 1e-10, "f": 1e-7}  # of the mean diagonal of the normal equations, in double and single precision

Functions = tuple[Callable[[Array], Array], Callable[[Array], Array]]  # H times an array, and its inverse


def formed(step: Step, operands: Sequence[Array], shape: tuple[int, ...]) -> Functions:
    """H as a matrix, or one for each output."""
    sizes = dict(zip(step.own, shape, strict=True))
    unknowns = math.prod(sizes[letter] for letter in step.unknowns)
    normal = contract(step.normal, *operands).reshape(-1, unknowns, unknowns)
    ridge = _RIDGE[normal.dtype.char]
    normal = normal.astype(np.float64)
    normal = (normal + np.swapaxes(normal, 1, 2)) / 2
    rows = bool(step.per_output or step.shared)  # the output selects the row
    axis = step.own.index(next(letter for letter in step.own if letter not in step.unknowns)) if rows else 0

    def along(function: Callable[[Array], Array], array: Array) -> Array:
        turned = np.moveaxis(array, axis, 0) if rows else array[None]
        result = function(turned.reshape(len(turned), unknowns)).reshape(turned.shape)
        return np.moveaxis(result, 0, axis) if rows else result[0]

    def times(right: Array) -> Array:
        product: Array = right @ normal[0] if len(normal) == 1 else (right[:, None] @ normal)[:, 0]
        return product

    return partial(along, times), partial(along, partial(_solve, normal, ridge=ridge))


def by_blocks(step: Step, operands: Sequence[Array]) -> Functions:
    """H = H1 (x) H2 (x) ..., one after the other."""
    matrices = [contract(block.equation, *(operands[member] for member in block.operands)) for block in step.blocks]
    kind = np.result_type(*matrices).char

    def along(block: Block, function: Callable[[Array], Array], array: Array) -> Array:
        axes = [step.own.index(letter) for letter in block.unknowns]
        last = list(range(-len(axes), 0))
        rows = np.moveaxis(array, axes, last)
        size = math.prod(rows.shape[-len(axes) :])
        return np.moveaxis(function(rows.reshape(-1, size)).reshape(rows.shape), last, axes)

    def apply(array: Array) -> Array:
        for block, matrix in zip(step.blocks, matrices, strict=True):
            array = along(block, partial(_times, _square(matrix)), array) if block.unknowns else array * float(matrix)
        return array

    def solve(array: Array) -> Array:
        for block, matrix in zip(step.blocks, matrices, strict=True):
            if block.unknowns:
                array = along(block, partial(_solve, _square(matrix)[None], ridge=_RIDGE[kind]), array)
            else:
                array = array / float(matrix) if matrix > 0 else np.zeros_like(array)
        return array

    return apply, solve


def _square(matrix: Array) -> Array:
    size = math.isqrt(matrix.size)
    square = matrix.reshape(size, size).astype(np.float64)
    symmetric: Array = (square + square.T) / 2
    return symmetric


def _times(matrix: Array, right: Array) -> Array:
    product: Array = right @ matrix
    return product


def _solve(normal: Array, right: Array, *, ridge: float) -> Array:
    """Solve H d = r for every row of ``right`` [o, u], with one H for all or one for each, and a small ridge."""
    mean = np.trace(normal, axis1=-2, axis2=-1) / normal.shape[-1]
    shift = np.where(mean > 0, mean * ridge, 1.0)
    index = np.arange(normal.shape[-1])
    given, normal = normal, normal.copy()
    normal[:, index, index] += shift[:, None]
    solved: Array
    from scipy.linalg import cho_factor, cho_solve  # it takes long to import, and only fits to data need it

    try:
        if len(normal) == 1 and normal.shape[-1] >= LARGE:
            solved = Cholesky(normal[0]).solve(right.T).T
            return solved
        if len(normal) == 1:
            factor = cho_factor(normal[0], lower=True, overwrite_a=True, check_finite=False)
            solved = cho_solve(factor, right.T, check_finite=False).T
            return solved
        solved = np.asarray(np.linalg.solve(normal, right[..., None])[..., 0], np.float64)
        return solved
    except np.linalg.LinAlgError:  # not positive by rounding: the least-norm solution
        normal = given if len(normal) == 1 and normal.shape[-1] >= LARGE else normal  # which is overwritten
        solved = (np.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]
        return solved
