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
are too large to form (the first factor of a spatial pair has inputs * k * rank unknowns), conjugate gradients take
their place; they use products with G alone.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxsep.algebra.als_rows import RowProblem
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.normal_equations import Block, Step, normal_equations

_LARGEST_SYSTEM = 2_400  # unknowns of normal equations that are formed; beyond, conjugate gradients are cheaper


_LARGEST_BATCH = 40_000_000  # elements of a stack of them, one for each output


_CG_STEPS = 12


_CG_TOLERANCE = 1e-4


_BALANCING = 30  # rounds over all pairs of factors


_EVEN = 1.1  # scales this near to one end it


_RIDGE = 1e-10  # of the mean diagonal of the normal equations


@dataclass(frozen=True)
class Problem:
    """What the factors are fitted to.

    Attributes:
        gram: [*inputs, *inputs], symmetric, positive semidefinite.
        cross: [outputs, *inputs].
    """

    gram: Array
    cross: Array

    def objective(self, product: Array) -> float:
        """<M G, M> - 2 <C, M>: the squared error but for the constant ||Y||^2."""
        return float(np.vdot(self.times_gram(product) - 2 * self.cross, product))

    @property
    def exhausted(self) -> bool:
        """Never: the cost of a sweep does not grow with the samples."""
        return False

    def improved(self, equation: str, factors: Sequence[Array], position: int) -> Array:
        """The factor that solves its normal equations, all others given, or comes nearer to it."""
        return _improved(equation, list(factors), position, self)

    def times_gram(self, product: Array) -> Array:
        """M G, in the shape of M."""
        size = math.prod(self.cross.shape[1:])
        return (product.reshape(-1, size) @ self.gram.reshape(size, size)).reshape(product.shape)


def multiply(equation: str, factors: Sequence[Array]) -> Array:
    """The product of the factors."""
    return _einsum(equation, *factors)


def alternate(
    equation: str, factors: Sequence[Array], problem: Problem | RowProblem, *, sweeps: int = 30, tolerance: float = 1e-4
) -> list[Array]:
    """Improve the factors, one after the other, until a sweep gains less than ``tolerance`` of the objective.

    Args:
        equation: an einsum of lower-case letters; the first letter of its result is the output channel, and each
            factor has every letter once.
        factors: the start.
        problem: what to fit to.
        sweeps: at most so many rounds over all factors.
        tolerance: relative to what the product explains, ||M||_G^2.

    Returns:
        New factors of the same shapes; the objective is never above that of the start.
    """
    current = [np.array(factor, dtype=np.float64) for factor in factors]
    value = problem.objective(multiply(equation, current))
    for _ in range(sweeps):
        before = list(current)
        for position in reversed(range(len(current))):  # the last factor, nearest to the output, gains most
            current[position] = problem.improved(equation, current, position)
        product = multiply(equation, current)
        lower = problem.objective(product)
        if not lower <= value:  # by rounding, where nothing is left to gain
            return before
        if problem.exhausted or value - lower <= tolerance * abs(lower):
            break
        value = lower
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


def _improved(equation: str, factors: list[Array], position: int, problem: Problem) -> Array:
    """The factor that solves its normal equations, or comes nearer to it."""
    step = normal_equations(equation, position)
    own = equation.split("->")[0].split(",")[position]
    sizes = dict(zip(own, factors[position].shape, strict=True))
    output = equation.split("->")[1][0]
    unknowns = math.prod(sizes[letter] for letter in step.unknowns)
    batch = problem.cross.shape[0] if step.per_output else 1
    others = [factor for place, factor in enumerate(factors) if place != position]
    slope = problem.cross - problem.times_gram(multiply(equation, factors))
    residual = _einsum(step.adjoint, *others, slope)
    if len(step.blocks) > 1:
        operands = (*others, *others, problem.gram)
        return factors[position] + _solve_blocks(step.blocks, operands, own, residual)
    if unknowns > _LARGEST_SYSTEM or batch * unknowns**2 > _LARGEST_BATCH:
        return factors[position] + _conjugate_gradients(step, others, factors, position, residual, problem)
    normal = _einsum(step.normal, *others, *others, problem.gram)
    if step.per_output or step.shared:  # rows of outputs: [o, unknowns]
        axis = own.index(output)
        rows = np.moveaxis(residual, axis, 0)
        solved = _solve(normal.reshape(-1, unknowns, unknowns), rows.reshape(rows.shape[0], unknowns))
        change = np.moveaxis(solved.reshape(rows.shape), 0, axis)
    else:
        change = _solve(normal.reshape(1, unknowns, unknowns), residual.reshape(1, unknowns)).reshape(residual.shape)
    return factors[position] + change


def _solve_blocks(blocks: Sequence[Block], operands: Sequence[Array], own: str, residual: Array) -> Array:
    """Solve (H1 x H2 x ...) d = r, one block after the other."""
    change = residual
    for block in blocks:
        normal = _einsum(block.equation, *(operands[member] for member in block.operands))
        if not block.unknowns:  # a number
            change = change / normal if normal > 0 else np.zeros_like(change)
            continue
        axes = [own.index(letter) for letter in block.unknowns]
        last = list(range(-len(axes), 0))
        rows = np.moveaxis(change, axes, last)
        size = math.prod(rows.shape[-len(axes) :])
        solved = _solve(normal.reshape(1, size, size), rows.reshape(-1, size))
        change = np.moveaxis(solved.reshape(rows.shape), last, axes)
    return change


def _solve(normal: Array, right: Array) -> Array:
    """Solve H d = r for every row of ``right`` [o, u], with one H for all or one for each, and a small ridge."""
    normal = (normal + np.swapaxes(normal, -1, -2)) / 2
    mean = np.trace(normal, axis1=-2, axis2=-1) / normal.shape[-1]
    ridge = np.where(mean > 0, mean * _RIDGE, 1.0)
    index = np.arange(normal.shape[-1])
    normal[:, index, index] += ridge[:, None]
    solved: Array
    from scipy.linalg import cho_factor, cho_solve  # it takes long to import, and only fits to data need it

    try:
        if len(normal) == 1:
            factor = cho_factor(normal[0], lower=True, check_finite=False)
            solved = cho_solve(factor, right.T, check_finite=False).T
            return solved
        solved = np.asarray(np.linalg.solve(normal, right[..., None])[..., 0], np.float64)
        return solved
    except np.linalg.LinAlgError:  # not positive by rounding: the least-norm solution
        solved = (np.linalg.pinv(normal, hermitian=True) @ right[..., None])[..., 0]
        return solved


def _conjugate_gradients(
    step: Step, others: list[Array], factors: list[Array], position: int, residual: Array, problem: Problem
) -> Array:
    """Some preconditioned steps (Hestenes and Stiefel 1952) for H d = r; each lowers the objective."""
    diagonal = _einsum(step.diagonal, *others, *others, problem.gram)
    if step.shared:  # the same for every output
        own = step.product.split("->")[0].split(",")[position]
        diagonal = np.expand_dims(diagonal, own.index(step.product.split("->")[1][0]))
    elif step.per_output:
        own = step.product.split("->")[0].split(",")[position]
        diagonal = np.moveaxis(diagonal, 0, own.index(step.per_output))
    mean = float(diagonal.mean())
    inverse = 1 / (diagonal + (mean * 1e-6 if mean > 0 else 1.0))
    trial = list(factors)

    def apply(direction: Array) -> Array:
        trial[position] = direction
        return _einsum(step.adjoint, *others, problem.times_gram(multiply(step.product, trial)))

    change = np.zeros_like(residual)
    rest = residual.copy()
    scaled = inverse * rest
    direction = scaled
    energy = start = float(np.vdot(rest, scaled))
    for _ in range(_CG_STEPS):
        if energy <= _CG_TOLERANCE**2 * start or energy == 0.0:
            break
        image = apply(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= 0.0:
            break
        length = energy / curvature
        change += length * direction
        rest -= length * image
        scaled = inverse * rest
        before, energy = energy, float(np.vdot(rest, scaled))
        direction = scaled + (energy / before) * direction
    return change


_paths: dict[tuple[Any, ...], list[Any]] = {}


def _einsum(equation: str, *operands: Array) -> Array:
    """Einsum with a contraction order that is searched once for each combination of shapes."""
    key = (equation, *(operand.shape for operand in operands))
    if key not in _paths:
        _paths[key] = np.einsum_path(equation, *operands, optimize="greedy")[0]
    result: Array = np.einsum(equation, *operands, optimize=_paths[key])
    return result
