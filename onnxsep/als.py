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
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from onnxsep.gram import Gram, RowGram
from onnxsep.linalg import Array

_LARGEST_SYSTEM = 2_400  # unknowns of normal equations that are formed; beyond, conjugate gradients are cheaper
_LARGEST_PART = 2**24  # elements of what rows multiply, at a time
_LARGEST_SUM = 2**21  # elements of it, where only a diagonal is wanted
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
        gram: [*inputs, *inputs], symmetric, positive semidefinite; or the same as ``Gram``.
        cross: [outputs, *inputs].
    """

    gram: Array | Gram
    cross: Array

    def objective(self, product: Array) -> float:
        """<M G, M> - 2 <C, M>: the squared error but for the constant ||Y||^2."""
        return float(np.vdot(self.times_gram(product) - 2 * self.cross, product))

    def times_gram(self, product: Array) -> Array:
        """M G, in the shape of M."""
        size = math.prod(self.cross.shape[1:])
        rows = product.reshape(-1, size)
        if isinstance(self.gram, Gram):
            return self.gram.times(rows).reshape(product.shape)
        return (rows @ self.gram.reshape(size, size)).reshape(product.shape)

    @property
    def by_rows(self) -> bool:
        """Whether there are fewer rows than inputs, and the Gram matrix is never formed."""
        return isinstance(self.gram, RowGram)

    @property
    def moments(self) -> tuple[Array, ...]:
        """The operands of einsums that stand for the Gram matrix: [*inputs, *inputs], or [rows, *inputs] twice."""
        inputs = self.cross.shape[1:]
        if isinstance(self.gram, RowGram):
            rows = self.gram.rows.reshape(-1, *inputs)
            return rows, rows
        dense = self.gram.dense() if isinstance(self.gram, Gram) else self.gram
        return (dense.reshape(*inputs, *inputs),)

    @property
    def ridge(self) -> float:
        """What comes to the diagonal of the product of the rows."""
        return self.gram.ridge if isinstance(self.gram, RowGram) else 0.0


def multiply(equation: str, factors: Sequence[Array]) -> Array:
    """The product of the factors."""
    return _einsum(equation, *factors)


def alternate(
    equation: str, factors: Sequence[Array], problem: Problem, *, sweeps: int = 30, tolerance: float = 1e-4
) -> list[Array]:
    """Improve the factors, one after the other, until a sweep gains less than ``tolerance`` of the objective.

    Args:
        equation: an einsum of lower-case letters; the first letter of its result is the output channel, and each
            factor has every letter once.
        factors: the start.
        problem: what to fit.
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
            current[position] = _improved(equation, current, position, problem)
        product = multiply(equation, current)
        lower = problem.objective(product)
        if not lower <= value:  # by rounding, where nothing is left to gain
            return before
        if value - lower <= tolerance * abs(lower):
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


@dataclass(frozen=True)
class _Step:
    """The einsums of one factor's normal equations H d = r."""

    product: str  # all factors -> M
    adjoint: str  # the other factors, and something of M's shape -> the factor's shape
    normal: "_Block"  # the others, the others again, G -> H
    blocks: tuple["_Block", ...]  # H is the Kronecker product of these, if there is more than one
    diagonal: "_Block"  # the same -> the diagonal of H
    unknowns: str  # the factor's letters, but for the output where it only selects the row
    per_output: str  # the output's letter where each output has a system of its own
    shared: bool  # every output has the same system


@dataclass(frozen=True)
class _Block:
    """An einsum of some of the other factors, of the same again and of G, and the unknowns among its letters."""

    operands: tuple[int, ...]
    equation: str
    unknowns: str
    ridge: str = ""  # the same for a G that is the identity, "" where G has no part in it
    identities: str = ""  # letters of the identities, or of the ones, that this takes
    products: str = ""  # the others once, rows -> what each row has to multiply; "" where G is a matrix
    summed: bool = False  # whether H also sums over the outputs, which the products have then
    factors: tuple[int, ...] = ()  # these others


def _blocks(operands: Sequence[str], moments: int, unknowns: str, product: str) -> tuple[_Block, ...]:
    """Divide the operands into groups that share no letter; their Kronecker product is much cheaper to invert."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, operand in enumerate(operands):
        touching = [group for group in groups if group[0] & set(operand)]
        groups = [group for group in groups if not group[0] & set(operand)]
        letters = set(operand).union(*(group[0] for group in touching))
        groups.append((letters, sorted([number, *(member for group in touching for member in group[1])])))
    blocks = []
    for letters, members in groups:
        own = "".join(letter for letter in unknowns if letter in letters)
        blocks.append(_block(operands, members, moments, own + own.upper(), own, product))
    return tuple(blocks)


def _block(
    operands: Sequence[str], members: Sequence[int], moments: int, result: str, unknowns: str, product: str
) -> _Block:
    """The einsum of these operands, the last ``moments`` of which are G, or its rows twice."""
    equation = ",".join(operands[member] for member in members) + "->" + result
    output, inputs = product[0], product[1:]
    factors = [member for member in members if member < len(operands) - moments]
    if len(factors) == len(members):
        return _Block(tuple(members), equation, unknowns)
    # With the identity for G both copies of an input are the same; of an unknown, both letters are in the result.
    same = {letter.upper(): letter for letter in inputs if letter not in unknowns}
    terms = ["".join(same.get(letter, letter) for letter in operands[member]) for member in factors]
    own = "".join(letter for letter in inputs if letter in unknowns)
    both = [letter + letter.upper() * (letter.upper() in result) for letter in own]
    ridge = ",".join([*terms, *both]) + "->" + result
    once = tuple(member for member in factors if member < (len(operands) - moments) // 2)
    if moments == 1:
        return _Block(tuple(members), equation, unknowns, ridge, own)
    row = operands[-2][0]
    products = ",".join([*(operands[member] for member in once), operands[-2]])
    summed = output not in result and any(output in operands[member] for member in once)
    products += "->" + (output if output in result else "") + row + (output if summed else "") + unknowns
    return _Block(tuple(members), equation, unknowns, ridge, own, products, summed, once)


@cache
def _step(equation: str, position: int, by_rows: bool = False) -> _Step:
    left, result = equation.split("->")
    terms = left.split(",")
    output, inputs = result[0], result[1:]
    own = terms[position]
    others = [term for place, term in enumerate(terms) if place != position]
    selects = output in own
    mixed = selects and any(output in term for term in others)
    unknowns = own.replace(output, "")

    def primed(letters: str) -> str:
        return "".join(letter if letter == output else letter.upper() for letter in letters)

    # The letters of the factor that the others do not have are delta functions between input and unknown: as both
    # bear the same letter, they need no operand.
    row = next(letter for letter in string.ascii_lowercase if letter not in equation)

    def moments(second: str) -> list[str]:
        return [row + inputs, row + second] if by_rows else [inputs + second]

    count = len(moments(""))
    operands = [*others, *map(primed, others), *moments(primed(inputs))]
    per_output = output if mixed else ""
    halves = unknowns + primed(unknowns)
    twice = [*others, *(_halfprimed(term, unknowns, output) for term in others)]
    twice += moments(_halfprimed(inputs, unknowns, output))
    everything = range(len(operands))
    return _Step(
        product=equation,
        adjoint=",".join([*others, result]) + "->" + own,
        normal=_block(operands, everything, count, per_output + halves, unknowns, result),
        blocks=() if mixed else _blocks(operands, count, unknowns, result),
        diagonal=_block(twice, everything, count, per_output + unknowns, unknowns, result),
        unknowns=unknowns,
        per_output=per_output,
        shared=selects and not mixed,
    )


def _halfprimed(letters: str, unknowns: str, output: str) -> str:
    """The second copy of an operand on the diagonal: letters of the unknowns are the same in both copies."""
    return "".join(letter if letter in unknowns or letter == output else letter.upper() for letter in letters)


def _improved(equation: str, factors: list[Array], position: int, problem: Problem) -> Array:
    """The factor that solves its normal equations, or comes nearer to it."""
    step = _step(equation, position, problem.by_rows)
    own = equation.split("->")[0].split(",")[position]
    sizes = dict(zip(own, factors[position].shape, strict=True))
    output = equation.split("->")[1][0]
    unknowns = math.prod(sizes[letter] for letter in step.unknowns)
    batch = problem.cross.shape[0] if step.per_output else 1
    others = [factor for place, factor in enumerate(factors) if place != position]
    slope = problem.cross - problem.times_gram(multiply(equation, factors))
    residual = _einsum(step.adjoint, *others, slope)
    if problem.by_rows:  # products with the rows are cheap, normal equations of them are not
        return factors[position] + _conjugate_gradients(step, others, factors, position, residual, problem)
    if len(step.blocks) > 1:
        return factors[position] + _solve_blocks(step.blocks, others, problem, own, residual)
    if unknowns > _LARGEST_SYSTEM or batch * unknowns**2 > _LARGEST_BATCH:
        return factors[position] + _conjugate_gradients(step, others, factors, position, residual, problem)
    normal = _evaluated(step.normal, others, problem, sizes)
    if step.per_output or step.shared:  # rows of outputs: [o, unknowns]
        axis = own.index(output)
        rows = np.moveaxis(residual, axis, 0)
        solved = _solve(normal.reshape(-1, unknowns, unknowns), rows.reshape(rows.shape[0], unknowns))
        change = np.moveaxis(solved.reshape(rows.shape), 0, axis)
    else:
        change = _solve(normal.reshape(1, unknowns, unknowns), residual.reshape(1, unknowns)).reshape(residual.shape)
    return factors[position] + change


def _evaluated(block: _Block, others: Sequence[Array], problem: Problem, sizes: Mapping[str, int]) -> Array:
    """The einsum of a block."""
    factors = (*others, *others)
    operands = (*factors, *problem.moments)
    if block.products:
        value = _summed_rows(block, [others[member] for member in block.factors], problem)
    else:
        value = _einsum(block.equation, *(operands[member] for member in block.operands))
    if block.ridge and problem.ridge:
        used = [factors[member] for member in block.operands if member < len(factors)]
        whole = any(letter + letter.upper() in block.ridge.split("->")[0].split(",") for letter in block.identities)
        ends = [np.eye(sizes[letter]) if whole else np.ones(sizes[letter]) for letter in block.identities]
        value = value + problem.ridge * _einsum(block.ridge, *used, *ends)
    return value


def _summed_rows(block: _Block, factors: Sequence[Array], problem: Problem) -> Array:
    """The einsum of a block but for its ridge, some rows at a time."""
    rows, result = problem.moments[0], block.equation.split("->")[1]
    whole = any(letter.isupper() for letter in result)
    size = _size(block.products, factors, rows)
    if not whole and size > _LARGEST_SUM:  # the diagonal only speeds up what is exact without it
        step = -(-size // _LARGEST_SUM)
        rows = rows[::step] * np.sqrt(len(rows) / len(rows[::step]))
        size //= step
    count = max(1, _LARGEST_PART * len(rows) // max(1, size))
    total: Array | float = 0.0
    shape: tuple[int, ...] = ()
    for start in range(0, len(rows), count):
        part = _einsum(block.products, *factors, rows[start : start + count])
        front, ends = part.shape[: part.ndim - len(block.unknowns)], part.shape[part.ndim - len(block.unknowns) :]
        front = front[: len(front) - 1 - block.summed]
        shape = (*front, *ends, *(ends if whole else ()))
        flat = part.reshape(*front, -1, math.prod(ends))
        total = total + (np.swapaxes(flat, -1, -2) @ flat if whole else (flat * flat).sum(axis=-2))
    return np.asarray(total).reshape(shape)


def _size(equation: str, factors: Sequence[Array], rows: Array) -> int:
    """Elements of an einsum's result."""
    left, result = equation.split("->")
    sizes: dict[str, int] = {}
    for term, array in zip(left.split(","), [*factors, rows], strict=True):
        sizes.update(zip(term, array.shape, strict=True))
    return math.prod(sizes[letter] for letter in result)


def _solve_blocks(
    blocks: Sequence[_Block], others: Sequence[Array], problem: Problem, own: str, residual: Array
) -> Array:
    """Solve (H1 x H2 x ...) d = r, one block after the other."""
    change = residual
    sizes = dict(zip(own, residual.shape, strict=True))
    for block in blocks:
        normal = _evaluated(block, others, problem, sizes)
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
    step: _Step, others: list[Array], factors: list[Array], position: int, residual: Array, problem: Problem
) -> Array:
    """Some preconditioned steps (Hestenes and Stiefel 1952) for H d = r; each lowers the objective."""
    own = step.product.split("->")[0].split(",")[position]
    sizes = dict(zip(own, residual.shape, strict=True))
    diagonal = _evaluated(step.diagonal, others, problem, sizes)
    if step.shared:  # the same for every output
        diagonal = np.expand_dims(diagonal, own.index(step.product.split("->")[1][0]))
    elif step.per_output:
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
