"""The step of ``onnxsep.algebra.als`` where a Conv has fewer rows of samples than inputs, on the rows themselves.

With X [rows, inputs] and a ridge the objective is

    |X M^T|^2 + ridge |M|^2 - 2 <C, M>

and that of one factor d, with J d = X M(d)^T [rows, outputs] what it predicts, has the normal equations

    (J^T J + ridge F) d = J^T(C)

F is the Gram matrix of the other factors. It is small: as an input or an output that two factors have in common is the
same on both sides, only the indices that are summed inside the product make a matrix. Neither X^T X nor J^T J is ever
formed; conjugate gradients multiply by J and its transpose, in single precision as the samples are. F as the
preconditioner is what the normal equations would be for white inputs: however the other factors are scaled, the
eigenvalues that are left are those of X^T X / ridge + 1, of which few are large, for few rows come with a strong prior.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.als import Improvement, improvement
from onnxsep.algebra.conjugate_gradients import conjugate_gradients
from onnxsep.algebra.contraction import contract, work
from onnxsep.algebra.gram import RowGram
from onnxsep.algebra.linalg import Array

_STEPS = 12
_TOLERANCE = 1e-2  # of the norm of what is left; the next sweep goes on from there
_LARGEST_FEATURES = 2**25  # elements of what is kept for all steps
_LARGEST_WORK = 1.5e11  # as ``work`` counts it, some seconds on one core: a fit that takes more ends with its sweep
_RIDGE = 1e-10  # of the mean diagonal of F
Floats = NDArray[np.float32]


class RowProblem:
    """What the factors are fitted to.

    Args:
        gram: of the inputs.
        cross: [outputs, *inputs].
    """

    def __init__(self, gram: RowGram, cross: Array) -> None:
        self._rows: Floats = gram.rows.astype(np.float32).reshape(-1, *cross.shape[1:])
        self._ridge, self._cross = gram.ridge, cross
        self._work = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether as much has been computed as a fit may take."""
        return self._work > _LARGEST_WORK

    def objective(self, product: Array) -> float:
        """The squared error but for the constant, as ``onnxsep.algebra.als.Problem`` has it."""
        size = math.prod(product.shape[1:])
        predicted = self._rows.reshape(-1, size) @ product.astype(np.float32).reshape(-1, size).T
        seen = float(np.einsum("no,no->", predicted, predicted, dtype=np.float64))
        return seen + float(np.vdot(self._ridge * product - 2 * self._cross, product))

    def improved(self, equation: str, factors: Sequence[Array], position: int) -> Improvement:
        """A factor that is nearer to the solution of its normal equations, all others given."""
        step = _step(equation, position)
        others = [factor for place, factor in enumerate(factors) if place != position]
        features, terms, kept = self._features(step, others)
        forward = f"{','.join((*terms, step.own))}->{step.row}{step.output}"
        backward = f"{','.join((*terms, step.row + step.output))}->{step.own}"
        operands = (features, *(others[number].astype(np.float32) for number in kept))
        blocks = [contract(block.gram, *(others[number] for number in block.members * 2)) for block in step.blocks]
        inverses = [_inverse(block, gram) for block, gram in zip(step.blocks, blocks, strict=True)]

        def times(matrices: Sequence[Array], direction: Array) -> Array:
            for block, matrix in zip(step.blocks, matrices, strict=True):
                direction = contract(block.times, matrix, direction)
            return direction

        shapes = tuple(one.shape for one in operands)
        ends = factors[position].shape, (len(features), len(self._cross))
        cost = sum(work(equation, (*shapes, end)) for equation, end in zip((forward, backward), ends, strict=True))

        def apply(direction: Array) -> Array:
            self._work += cost
            predicted = contract(forward, *operands, direction.astype(np.float32))
            return contract(backward, *operands, predicted) + self._ridge * times(blocks, direction)

        right = contract(step.adjoint, *others, self._cross)
        rest = right - apply(factors[position])
        inverse = partial(times, inverses)
        change, left = conjugate_gradients(apply, inverse, rest, steps=_STEPS, tolerance=_TOLERANCE)
        return improvement(factors[position], right, rest, change, left)

    def _features(self, step: "_Step", others: Sequence[Array]) -> tuple[Floats, list[str], list[int]]:
        """Rows times those factors that do not make them much larger; all terms that are left, and their factors."""
        features, term = self._rows, step.row + step.inputs
        left = list(range(len(others)))
        limit = max(features.size, _LARGEST_FEATURES)
        found = True
        while found:
            found = False
            for number in left:
                rest = [step.others[other] for other in left if other != number]
                wanted = set(step.row + step.output + step.own).union(*rest)
                letters = "".join(letter for letter in dict.fromkeys(term + step.others[number]) if letter in wanted)
                sizes = dict(zip(step.others[number], others[number].shape, strict=True))
                sizes.update(zip(term, features.shape, strict=True))
                if math.prod(sizes[letter] for letter in letters) <= limit:
                    factor = others[number].astype(np.float32)
                    equation = f"{term},{step.others[number]}->{letters}"
                    self._work += work(equation, (features.shape, factor.shape))
                    features = contract(equation, features, factor)
                    term, found = letters, True
                    left.remove(number)
                    break
        return features, [term, *(step.others[number] for number in left)], left


@dataclass(frozen=True)
class _Block:
    """A factor of F, which is the Kronecker product of these."""

    members: tuple[int, ...]  # of the other factors
    gram: str  # these twice -> a matrix over the bonds, for each entry of what is the same on both sides
    times: str  # this, the factor -> the factor
    bonds: int  # how many


@dataclass(frozen=True)
class _Step:
    """The einsums for one factor."""

    own: str
    others: tuple[str, ...]
    row: str  # a letter that is free
    output: str
    inputs: str
    adjoint: str  # the other factors, and something of M's shape -> the factor's shape
    blocks: tuple[_Block, ...]


@cache
def _step(equation: str, position: int) -> _Step:
    left, result = equation.split("->")
    terms = left.split(",")
    own = terms.pop(position)
    blocks = []
    for members in _connected(terms):
        inner = [terms[member] for member in members]
        ours = [letter for letter in own if any(letter in term for term in inner)]
        same, bonds = ("".join(letter for letter in ours if (letter in result) is there) for there in (True, False))
        primed = bonds.upper()
        both = [*inner, *("".join(c if c in result else c.upper() for c in term) for term in inner)]
        inside = "".join(letter.upper() if letter in bonds else letter for letter in own)
        matrix = same + bonds + primed
        blocks.append(_Block(members, f"{','.join(both)}->{matrix}", f"{matrix},{inside}->{own}", len(bonds)))
    row = next(letter for letter in string.ascii_lowercase if letter not in equation)
    adjoint = f"{','.join([*terms, result])}->{own}"
    return _Step(own, tuple(terms), row, result[0], result[1:], adjoint, tuple(blocks))


def _connected(terms: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of terms, none of which shares a letter with another group."""
    groups: list[tuple[set[str], tuple[int, ...]]] = []
    for number, term in enumerate(terms):
        touching = [group for group in groups if group[0] & set(term)]
        groups = [group for group in groups if not group[0] & set(term)]
        letters = set(term).union(*(group[0] for group in touching))
        groups.append((letters, tuple(sorted([number, *(member for group in touching for member in group[1])]))))
    return [members for _, members in groups]


def _inverse(block: _Block, gram: Array) -> Array:
    """Of the matrices over the bonds, each with a small ridge; one of zeros becomes the identity."""
    size = math.prod(gram.shape[gram.ndim - block.bonds :])
    matrices = gram.reshape(-1, size, size)
    mean = np.trace(matrices, axis1=1, axis2=2) / size
    ridge = np.where(mean > 0, _RIDGE * mean, 1.0)
    inverse = np.linalg.inv(matrices + ridge[:, None, None] * np.eye(size))
    inverse = (inverse + np.swapaxes(inverse, 1, 2)) / 2
    return inverse.reshape(gram.shape)
