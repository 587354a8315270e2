"""Cholesky's factors of large matrices, block by block.

SciPy's functions hold Python's global lock from the beginning to the end, for a matrix of 5,000 rows some seconds in
which nothing else goes on: no Ctrl-C, no line of progress. Here nearly all the work is NumPy's products of blocks,
which release it. Below ``LARGE`` rows theirs take no time that anybody waits for.
"""

import numpy as np

from onnxsep.algebra.linalg import Array

LARGE = 1024
_BLOCK = 256


class Cholesky:
    """L with L L^T = A, lower triangular.

    Args:
        matrix: A [n, n], symmetric; it is overwritten.

    Raises:
        LinAlgError: it is not positive definite.
    """

    def __init__(self, matrix: Array) -> None:
        self._lower = matrix
        self._blocks = [slice(start, start + _BLOCK) for start in range(0, len(matrix), _BLOCK)]
        self._inverses: list[Array] = []  # of the blocks on the diagonal
        for block in self._blocks:
            rest = slice(block.stop, None)
            corner = np.linalg.cholesky(matrix[block, block])
            self._inverses.append(np.tril(np.linalg.inv(corner)))
            matrix[block, block] = corner
            panel = matrix[rest, block] @ self._inverses[-1].T
            matrix[rest, block] = panel
            for start in range(block.stop, len(matrix), 4 * _BLOCK):  # only what is below the diagonal
                part = slice(start, start + 4 * _BLOCK)
                matrix[start:, part] -= panel[start - block.stop :] @ panel[start - block.stop :][: 4 * _BLOCK].T

    def solve(self, right: Array) -> Array:
        """A^-1 B of B [n, m]."""
        solved: Array = right.copy()
        pairs = list(zip(self._blocks, self._inverses, strict=True))
        for block, inverse in pairs:
            solved[block] = inverse @ (solved[block] - self._lower[block, : block.start] @ solved[: block.start])
        for block, inverse in reversed(pairs):
            below = slice(block.stop, None)
            solved[block] = inverse.T @ (solved[block] - self._lower[below, block].T @ solved[below])
        return solved

    def inverse(self) -> Array:
        """A^-1."""
        lower = np.zeros_like(self._lower)  # L^-1
        for block, inverse in zip(self._blocks, self._inverses, strict=True):
            before = slice(block.start)
            lower[block, before] = -inverse @ (self._lower[block, before] @ lower[before, before])
            lower[block, block] = inverse
        product: Array = lower.T @ lower
        return product
