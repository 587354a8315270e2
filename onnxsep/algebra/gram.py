"""Second-order statistics of what a Conv reads, as matrices that are no larger than their data need.

With rows x of d values, the Gram matrix G is the mean of x x^T. Of n rows with n < d it has rank n at most, and the
rows themselves are smaller: 1,280 rows of 65,536 values are 0.7 GB, their Gram matrix 34 GB. ``RowGram`` keeps the rows
and a multiple of the identity (the prior of a fit); the other operations follow from

    M G = (M X^T) X + ridge M
    G^-1 = (1 - X^T (X X^T + ridge)^-1 X) / ridge        (Woodbury 1950)

with X the rows divided by the root of their number.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array, Whitening, principal_axes, reduced_rank_regression
from onnxsep.algebra.threads import threads_for

_CHUNK = 4096  # rows at a time
_SMALL = 2048  # d up to which the matrix, of 34 MB, is quicker to work with
Indices = NDArray[np.int64]


class Gram(ABC):
    """A symmetric, positive semidefinite matrix [d, d]: the mean of x x^T, and perhaps a ridge."""

    @property
    @abstractmethod
    def size(self) -> int:
        """D."""

    @abstractmethod
    def dense(self) -> Array:
        """The matrix itself, [d, d]."""

    @abstractmethod
    def times(self, matrix: Array) -> Array:
        """M G of M [m, d]."""

    @abstractmethod
    def diagonal(self) -> Array:
        """[d]."""

    @abstractmethod
    def block(self, rows: Indices, columns: Indices) -> Array:
        """Some rows and columns, [len(rows), len(columns)]."""

    @abstractmethod
    def blocks(self, index: Indices) -> Array:
        """The blocks [b, q, q] at the same rows and columns [b, q]."""

    @abstractmethod
    def with_ridge(self, ridge: float, *, own: bool = False) -> "Gram":
        """The same with a number added to the diagonal; with ``own`` this one may be changed, and is needed no more."""

    @abstractmethod
    def with_mean(self, mean: Array) -> "Gram":
        """The same plus m m^T: of centred rows it makes the mean square of the rows as they were."""

    @abstractmethod
    def regression(self, cross: Array, rank: int) -> tuple[Array, Array]:
        """``onnxsep.algebra.linalg.reduced_rank_regression`` for C [n, d] and this G."""

    @property
    def mean_diagonal(self) -> float:
        """The mean of a value's square."""
        return float(self.diagonal().mean()) if self.size else 0.0


@dataclass(frozen=True)
class DenseGram(Gram):
    """The matrix itself."""

    matrix: Array
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What fits to this matrix may use again, see ``onnxsep.algebra.als.Problem``."""

    @property
    def size(self) -> int:
        """See ``Gram``."""
        return len(self.matrix)

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """The same in single precision."""
        return self.matrix.astype(np.float32)

    def dense(self) -> Array:
        """See ``Gram``."""
        return self.matrix

    def times(self, matrix: Array) -> Array:
        """See ``Gram``."""
        product: Array = matrix @ self.matrix
        return product

    def diagonal(self) -> Array:
        """See ``Gram``."""
        return np.diagonal(self.matrix)

    def block(self, rows: Indices, columns: Indices) -> Array:
        """See ``Gram``."""
        return self.matrix[np.ix_(rows, columns)]

    def blocks(self, index: Indices) -> Array:
        """See ``Gram``."""
        return self.matrix[index[:, :, None], index[:, None, :]]

    def with_ridge(self, ridge: float, *, own: bool = False) -> Gram:
        """See ``Gram``."""
        matrix = self.matrix if own else self.matrix.copy()
        index = np.arange(len(matrix))
        matrix[index, index] += ridge
        return DenseGram(matrix)

    def with_mean(self, mean: Array) -> Gram:
        """See ``Gram``."""
        return DenseGram(self.matrix + np.outer(mean, mean))

    def regression(self, cross: Array, rank: int) -> tuple[Array, Array]:
        """See ``Gram``."""
        if Whitening not in self.kept:
            self.kept[Whitening] = Whitening(self.matrix)
        whitening: Whitening = self.kept[Whitening]
        return whitening.regression(cross, rank)


@dataclass(frozen=True)
class RowGram(Gram):
    """X^T X + ridge, of fewer rows than columns.

    Attributes:
        rows: X, [n, d].
        ridge: 0 or more.
    """

    rows: Array
    ridge: float = 0.0

    @property
    def size(self) -> int:
        """See ``Gram``."""
        return int(self.rows.shape[1])

    def dense(self) -> Array:
        """See ``Gram``."""
        matrix: Array = self.rows.T @ self.rows
        index = np.arange(self.size)
        matrix[index, index] += self.ridge
        return matrix

    def times(self, matrix: Array) -> Array:
        """See ``Gram``."""
        product: Array = (matrix @ self.rows.T) @ self.rows
        product += self.ridge * matrix
        return product

    def diagonal(self) -> Array:
        """See ``Gram``."""
        return np.asarray(np.einsum("nd,nd->d", self.rows, self.rows)) + self.ridge

    def block(self, rows: Indices, columns: Indices) -> Array:
        """See ``Gram``."""
        block: Array = self.rows[:, rows].T @ self.rows[:, columns]
        block += self.ridge * (rows[:, None] == columns)
        return block

    def blocks(self, index: Indices) -> Array:
        """See ``Gram``."""
        parts = np.moveaxis(self.rows[:, index], 0, 1)  # [b, n, q]
        blocks: Array = np.swapaxes(parts, 1, 2) @ parts
        blocks += self.ridge * np.eye(index.shape[1])
        return blocks

    def with_ridge(self, ridge: float, *, own: bool = False) -> Gram:
        """See ``Gram``."""
        return replace(self, ridge=self.ridge + ridge)

    def with_mean(self, mean: Array) -> Gram:
        """See ``Gram``."""
        return replace(self, rows=np.concatenate([self.rows, mean[None]]))

    def regression(self, cross: Array, rank: int) -> tuple[Array, Array]:
        """See ``Gram``."""
        if self.ridge <= 0:  # not all directions are seen
            return reduced_rank_regression(cross, self.dense(), rank)
        solved = self._solved(cross)
        seen = solved @ cross.T
        left = principal_axes((seen + seen.T) / 2, rank) if rank < len(cross) else np.eye(len(cross))
        return left, left.T @ solved

    def _solved(self, matrix: Array) -> Array:
        """M G^-1."""
        values, vectors = self._spectrum
        projected = (matrix @ self.rows.T) @ vectors
        inner = (projected / (values + self.ridge)) @ vectors.T
        solved: Array = (matrix - inner @ self.rows) / self.ridge
        return solved

    @cached_property
    def _spectrum(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.rows @ self.rows.T)
        return np.maximum(values, 0.0), vectors


@dataclass(frozen=True)
class Mixed:
    """The mean of x0 x^T, of two kinds of rows, plus a ridge.

    Attributes:
        left: [n, d], rows x0 divided by the root of their number; None where ``right`` is the whole matrix [d, d].
        right: [n, d], rows x in the same way.
        ridge: 0 or more.
    """

    left: Array | None
    right: Array
    ridge: float = 0.0

    @classmethod
    def of(cls, gram: Gram) -> "Mixed":
        """Where both kinds of rows are the same."""
        return cls(gram.rows, gram.rows, gram.ridge) if isinstance(gram, RowGram) else cls(None, gram.dense())

    def dense(self) -> Array:
        """The matrix itself, [d, d]."""
        matrix: Array = self.right.copy() if self.left is None else self.left.T @ self.right
        index = np.arange(len(matrix))
        matrix[index, index] += self.ridge
        return matrix


@dataclass(frozen=True)
class CentredRows:
    """Some rows of samples less their mean, made a few at a time: samples are large, and a copy is as large.

    Attributes:
        samples: [all, d].
        chosen: [n], which of them, in this order.
        mean: [d], what is subtracted.
    """

    samples: NDArray[np.float32]
    chosen: Indices
    mean: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def shape(self) -> tuple[int, int]:
        """[n, d]."""
        return len(self.chosen), self.samples.shape[1]

    def __getitem__(self, some: slice) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self.samples[self.chosen[some]]
        rows -= self.mean
        return rows

    def groups(self, count: int) -> "list[CentredRows]":
        """The columns in so many equal parts."""
        parts = zip(np.split(self.samples, count, axis=1), np.split(self.mean, count), strict=True)
        return [CentredRows(samples, self.chosen, mean) for samples, mean in parts]


def keeps_rows(rows: int, width: int) -> bool:
    """Whether rows take less memory than their Gram matrix, where that is worth it."""
    return rows < width and width > _SMALL


def gram_of(rows: NDArray[np.floating[Any]] | CentredRows) -> Gram:
    """The Gram matrix of rows [n, d], in the form that takes less memory."""
    if keeps_rows(*rows.shape):
        return RowGram(scaled_rows(rows[:]))
    return DenseGram(mean_product(rows, rows))


def scaled_rows(rows: NDArray[np.floating[Any]]) -> Array:
    """Rows whose sum of products is their mean, in double precision."""
    scaled = rows.astype(np.float64)
    scaled /= np.sqrt(len(rows))
    return scaled


def mean_product(
    left: NDArray[np.floating[Any]] | CentredRows, right: NDArray[np.floating[Any]] | CentredRows
) -> Array:
    """The mean over rows of left^T right, [left columns, right columns]; products in single, sums in double."""
    total = np.zeros((left.shape[1], right.shape[1]))
    with threads_for(len(left) * total.size):
        for start in range(0, len(left), _CHUNK):
            first = left[start : start + _CHUNK].astype(np.float32, copy=False)
            # Of a matrix with itself NumPy computes one half only, where it sees that both are the same.
            second = first if right is left else right[start : start + _CHUNK].astype(np.float32, copy=False)
            total += first.T @ second
    total /= max(len(left), 1)
    return total
