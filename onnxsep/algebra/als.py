"""Alternating least squares for any product of factors, on plain arrays in double precision.

A replacement computes M x, where M [outputs, *inputs] is a product of factors, written as an einsum: a depthwise
separable Conv of T terms is "toi,tik->oik". Given second-order statistics of what the Conv reads, G = X X^T, and of
what it should compute, C = Y X^T, the factors minimise

    ||Y - M X||^2 = ||Y||^2 - 2 <C, M> + <M G, M>

which is quadratic in each factor alone. A sweep solves for one factor after the other; every step lowers the objective
or leaves it. With G = I and C = W this is the nearest product to the weight itself, and with one latent index it is the
reduced-rank regression of paper 002 solved for all channels together.

A step solves for the change of the factor and not for its value, with a ridge on the change that is far below the
accuracy of the statistics: directions that the statistics do not see keep what they had. Where the normal equations
are too large to form, or it would take longer (the first factor of a spatial pair has inputs * k * rank unknowns), some
preconditioned conjugate gradients take their place. ``onnxsep.algebra.normal_equations`` has the equations.

Large Gram matrices are given in single precision, as the samples are: every product with them takes half of the time
and memory. Unknowns and residuals are in double precision, and a residual is computed anew in each step.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.conjugate_gradients import conjugate_gradients
from onnxsep.algebra.contraction import Repeated, contract, work
from onnxsep.algebra.formed_equations import by_blocks, formed
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.normal_equations import Step, normal_equations
from onnxsep.algebra.preconditioner import preconditioner
from onnxsep.algebra.threads import threads_for

_LARGEST_SYSTEM = 6_000  # unknowns of normal equations that are formed


_LARGEST_BATCH = 40_000_000  # elements of a stack of them, one for each output


_MOVED = 4  # times the multiplications, what such steps cost where most of that is reading from memory


_CG_STEPS = 12


_CG_TOLERANCE = 0.1  # of what is left; the next sweep goes on from there


_EXPECTED = 6  # steps that are expected


_LENGTH, _LONGER, _SHORTER, _LONGEST = 1.0, 1.4, 3.0, 4.0  # of the step ahead, see ``alternate``


_LARGE = 2**17  # elements of a factor from which on products are made by BLAS


_BALANCING = 30  # rounds over all pairs of factors


_EVEN = 1.1  # scales this near to one end it


class Improvement(NamedTuple):
    """A factor, and the objective with it and with the one before."""

    factor: Array
    objective: float
    before: float


class Fitted(Protocol):
    """What factors are fitted to."""

    @property
    def exhausted(self) -> bool:
        """Whether as much has been computed as a fit may take."""

    def improved(self, equation: str, factors: Sequence[Array], position: int) -> Improvement:
        """A factor that is nearer to the solution of its normal equations, all others given."""


@dataclass(frozen=True)
class Problem:
    """What the factors are fitted to, by second-order statistics.

    Attributes:
        gram: [*inputs, *inputs], symmetric, positive semidefinite; in single precision, or double.
        cross: [outputs, *inputs].
        kept: what may be used again for another problem with the same Gram matrix and equation.
    """

    gram: NDArray[Any]
    cross: Array
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def objective(self, product: Array) -> float:
        """<M G, M> - 2 <C, M>: the squared error but for the constant ||Y||^2."""
        return float(np.vdot(self.times_gram(product) - 2 * self.cross, product))

    @property
    def exhausted(self) -> bool:
        """Never: the cost of a sweep does not grow with the samples."""
        return False

    def improved(self, equation: str, factors: Sequence[Array], position: int) -> Improvement:
        """The factor that solves its normal equations, all others given, or comes nearer to it."""
        return _improved(equation, list(factors), position, self)

    def times_gram(self, product: Array) -> Array:
        """M G, in the shape of M."""
        size = math.prod(self.cross.shape[1:])
        matrix = product.reshape(-1, size).astype(self.gram.dtype, copy=False)
        result: Array = (matrix @ self.gram.reshape(size, size)).astype(np.float64, copy=False)
        return result.reshape(product.shape)


def multiply(equation: str, factors: Sequence[Array]) -> Array:
    """The product of the factors."""
    if max(factor.size for factor in factors) >= _LARGE:  # NumPy leaves such products to loops of its own
        product: Array = contract(equation, *factors)
        return product
    return _einsum(equation, *factors)


def alternate(
    equation: str,
    factors: Sequence[Array],
    problem: Fitted,
    *,
    sweeps: int = 30,
    tolerance: float = 1e-4,
    told: Callable[[int, int], None] | None = None,
) -> list[Array]:
    """Improve the factors, one after the other, until a sweep gains less than ``tolerance`` of the objective.

    A sweep starts ahead of where the one before has ended, in the direction of what that has changed (Bro 1998, and
    Rajih, Comon and Harshman 2008), where its first factor then comes out lower than it was: sweeps change factors
    that depend on each other in small steps of one direction, and this takes about half as many.

    Args:
        equation: an einsum of lower-case letters; the first letter of its result is the output channel, and each
            factor has every letter once.
        factors: the start.
        problem: what to fit to.
        sweeps: at most so many rounds over all factors.
        tolerance: relative to what the product explains, ||M||_G^2.
        told: of each sweep that begins, counted from 1, and how many there may be.

    Returns:
        New factors of the same shapes; the objective is never above that of the start, but for rounding.
    """
    current = [np.array(factor, dtype=np.float64) for factor in factors]
    order = list(reversed(range(len(current))))  # the last factor, nearest to the output, gains most
    value, length, earlier = math.inf, _LENGTH, current
    for number in range(sweeps):
        if told is not None:
            told(number + 1, sweeps)
        start, lower = list(current), value
        ahead = [one + length * (one - other) for one, other in zip(current, earlier, strict=True)]
        for position in order:
            if number > 1 and position == order[0]:
                found = problem.improved(equation, ahead, position)
                if found.objective < value:
                    current, length = ahead, min(length * _LONGER, _LONGEST)
                else:
                    length, found = length / _SHORTER, problem.improved(equation, current, position)
            else:
                found = problem.improved(equation, current, position)
            current[position], lower = found.factor, found.objective
            value = found.before if value == math.inf else value
        if not lower <= value:  # by rounding, where nothing is left to gain
            return start
        if problem.exhausted or value - lower <= tolerance * abs(lower):
            break
        value, earlier = lower, start
    return current


def balanced(equation: str, factors: Sequence[Array]) -> list[Array]:
    """The same product with factors of (nearly) equal norm along every index that two of them share."""
    current = [np.array(factor, dtype=np.float64) for factor in factors]
    terms = equation.split("->")[0].split(",")
    pairs = [
        (first, second, "".join(letter for letter in terms[first] if letter in terms[second]))
        for first, second in itertools.combinations(range(len(terms)), 2)
    ]
    pairs = [pair for pair in pairs if pair[2]]
    for _ in range(_BALANCING):
        largest = 1.0
        for first, second, shared in pairs:
            left, right = (
                np.sqrt(_einsum(f"{terms[which]},{terms[which]}->{shared}", current[which], current[which]))
                for which in (first, second)
            )
            scale = np.ones_like(left)
            np.divide(right, left, out=scale, where=(left > 0) & (right > 0))
            scale = np.sqrt(scale)
            current[first] = _einsum(f"{terms[first]},{shared}->{terms[first]}", current[first], scale)
            current[second] = _einsum(f"{terms[second]},{shared}->{terms[second]}", current[second], 1 / scale)
            largest = max(largest, float(scale.max()), 1 / float(scale.min()))
        if len(pairs) == 1 or largest < _EVEN:  # one pair is even at once, several change each other
            break
    return current


def _improved(equation: str, factors: list[Array], position: int, problem: Problem) -> Improvement:
    """The factor that solves its normal equations, or comes nearer to it."""
    step = normal_equations(equation, position)
    present = factors[position]
    exact = [factor for place, factor in enumerate(factors) if place != position]
    others = [factor.astype(problem.gram.dtype, copy=False) for factor in exact]
    right = contract(step.adjoint, *exact, problem.cross)
    operands = [*others, *others, problem.gram]
    if len(step.blocks) > 1:
        cost = sum(work(one.equation, tuple(operands[member].shape for member in one.operands)) for one in step.blocks)
        with threads_for(cost):
            apply, solve = by_blocks(step, operands)
    elif _is_formed(step, operands, present.shape, equation):
        with threads_for(work(step.normal, tuple(operand.shape for operand in operands))):
            apply, solve = formed(step, operands, present.shape)
    else:
        return _nearer(step, operands, present, right, problem.kept)
    rest = right - apply(present)
    return improvement(present, right, rest, solve(rest), np.zeros_like(rest))


def _nearer(
    step: Step, operands: list[NDArray[Any]], present: Array, right: Array, kept: dict[Any, Any]
) -> Improvement:
    """By conjugate gradients."""
    others, gram = operands[: len(operands) // 2], operands[-1]
    shapes = (*(operand.shape for operand in operands), present.shape)
    with threads_for(work(step.operator, shapes, len(operands), _EXPECTED) / _MOVED):
        repeated = Repeated(step.operator, operands, len(operands), present.shape, _EXPECTED, (len(operands) - 1, kept))
        apply = partial(_product, repeated, gram.dtype)
        inverse = preconditioner(step, others, gram, kept)
        first = right - apply(present)
        change, rest = conjugate_gradients(apply, inverse, first, steps=_CG_STEPS, tolerance=_CG_TOLERANCE)
    return improvement(present, right, first, change, rest)


def improvement(present: Array, right: Array, rest: Array, change: Array, left: Array) -> Improvement:
    """A change of a factor: with H x = b - rest the objective is <H x, x> - 2 <b, x>.

    Args:
        present: the factor as it was.
        right: b.
        rest: b - H x, as it was.
        change: of the factor.
        left: b - H x, as it is.
    """
    factor = present + change
    return Improvement(factor, -float(np.vdot(factor, right + left)), -float(np.vdot(present, right + rest)))


def _product(repeated: Repeated, kind: Any, factor: Array) -> Array:
    return repeated(factor.astype(kind, copy=False)).astype(np.float64, copy=False)


def _is_formed(step: Step, operands: Sequence[Array], shape: tuple[int, ...], equation: str) -> bool:
    """Whether the normal equations are small enough to be formed, and solved sooner than by conjugate gradients."""
    sizes = dict(zip(step.own, shape, strict=True))
    unknowns = math.prod(sizes[letter] for letter in step.unknowns)
    batch = sizes[step.per_output] if step.per_output else 1
    if unknowns > _LARGEST_SYSTEM or batch * unknowns**2 > _LARGEST_BATCH:
        return False
    shapes = tuple(operand.shape for operand in operands)
    columns = math.prod(shape) // unknowns // batch
    solving = batch * (unknowns**3 / 3 + 2 * unknowns**2 * columns)  # in double precision
    by_steps = work(step.operator, (*shapes, shape), len(shapes), _EXPECTED)
    return work(step.normal, shapes) + solving <= by_steps


_paths: dict[tuple[Any, ...], list[Any]] = {}


def _einsum(equation: str, *operands: Array) -> Array:
    """Einsum with a contraction order that is searched once for each combination of shapes."""
    key = (equation, *(operand.shape for operand in operands))
    if key not in _paths:
        _paths[key] = np.einsum_path(equation, *operands, optimize="greedy")[0]
    result: Array = np.einsum(equation, *operands, optimize=_paths[key])
    return result
