"""Einsums of large arrays: in the order of least work, every product by the matrix product of BLAS.

NumPy's einsum leaves products with an index that both operands and the result have to loops of its own, which are many
times slower, and its search for an order is greedy. Here the order is the best one: with so few operands as factors
make (eight for a step of CP), dynamic programming over their subsets finds it in milliseconds (Pfeifer, Haegeman and
Verstraete 2014).

Where one operand changes and the others do not (the direction of conjugate gradients, in products with the normal
equations) ``Repeated`` contracts the others among themselves, once, as far as that saves work.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shapes = tuple[tuple[int, ...], ...]
Tree = Any  # the place of an operand, or a pair of trees
Labelled = tuple[str, Array]  # letters of the axes, and the array
Orders = dict[bool, Array]  # an array as BLAS takes it, as the first or as the second of a product
_TRANSFER = 64  # multiplications in the time that one element takes from memory, in another order often
_LARGEST = 2**26  # elements of an intermediate result, unless an operand or the result is larger
_NONE = -1  # of the operands changes
_SLICED = 2**23  # elements of an operand from which on products with it are made in parts
_PART = 32  # indices of one
_ARRANGED = 2**25  # elements of an operand, of its part, that is kept in other orders too


def contract(equation: str, *operands: Array) -> Array:
    """The einsum of an equation with an arrow, in which no operand has a letter twice."""
    terms, result = _terms(equation)
    tree = _order(equation, tuple(array.shape for array in operands), _NONE, 1)[0]
    return _arranged(_evaluated(tree, list(zip(terms, operands, strict=True)), _wanted(equation)), result)


def work(equation: str, shapes: Shapes, varying: int = _NONE, repeats: int = 1) -> float:
    """Multiplications that ``contract`` takes for operands of these shapes, and what reading and writing costs.

    With an operand that varies it is that of ``Repeated`` and so many calls.
    """
    return repeats * _order(equation, shapes, varying, repeats)[1]


class Repeated:
    """An einsum of which one operand changes from call to call.

    Args:
        equation: as for ``contract``.
        operands: all but the one that changes, in their order.
        varying: the place of that one.
        shape: its shape.
        repeats: about how many calls there will be.
        lasting: the place among ``operands`` of one that stays the same in other einsums too, and what is kept of it
            for these, from one to the next.
    """

    def __init__(
        self,
        equation: str,
        operands: Sequence[Array],
        varying: int,
        shape: tuple[int, ...],
        repeats: int,
        lasting: tuple[int, dict[Any, Any]] | None = None,
    ) -> None:
        terms, self._result = _terms(equation)
        arrays = [*operands[:varying], np.broadcast_to(np.float32(0), shape), *operands[varying:]]
        tree = _order(equation, tuple(array.shape for array in arrays), varying, repeats)[0]
        self._wanted = _wanted(equation)
        leaves = list(zip(terms, arrays, strict=True))
        self._kept: list[Labelled] = []  # what does not change
        self._term, self._number = terms[varying], varying
        self._shape, self._axis = self._sliced(leaves)
        place, stored = lasting or (_NONE, {})
        self._lasting = place if place < varying or place == _NONE else place + 1
        self._stored = stored.setdefault((equation, tree, self._axis), {}) if lasting else {}
        once: dict[Tree, int] = {}
        self._parts: list[tuple[slice, Any]] = []
        for part in _slices(self._shape, self._axis):
            some = [(term, self._slice(term, array, part)) for term, array in leaves]
            self._parts.append((part, self._folded(tree, some, varying, once, part.start)))

    def __call__(self, operand: Array) -> Array:
        """The einsum with this operand."""
        done: dict[Tree, Any] = {}
        if len(self._parts) == 1:
            return _arranged(self._value(self._parts[0][1], operand, done), self._result)
        result: Array | None = None
        for part, tree in self._parts:
            found = _arranged(self._value(tree, operand, done), self._result)
            result = np.empty(self._shape, found.dtype) if result is None else result
            result[(slice(None),) * self._axis + (part,)] = found
        assert result is not None
        return result

    def _sliced(self, leaves: list[Labelled]) -> tuple[tuple[int, ...], int]:
        """The shape of the result, and the axis along which it is made a part at a time; -1: as a whole.

        What is made in between is as large as a large operand, and stays in the processor's cache if it is made in
        parts; the changing operand must not have the letter, or it would be another product.
        """
        sizes = {letter: size for term, array in leaves for letter, size in zip(term, array.shape, strict=True)}
        shape = tuple(sizes[letter] for letter in self._result)
        large = max(leaves, key=lambda leaf: leaf[1].size if leaf[0] != self._term else 0)
        for axis, letter in enumerate(self._result):
            if large[1].size >= _SLICED and letter in large[0][:1] and letter not in self._term:
                return shape, axis
        return shape, -1

    def _slice(self, term: str, array: Array, part: slice) -> Array:
        if self._axis < 0 or self._result[self._axis] not in term:
            return array
        return array[(slice(None),) * term.index(self._result[self._axis]) + (part,)]

    def _folded(
        self, tree: Tree, leaves: list[Labelled], varying: int, once: dict[Tree, int], start: int | None
    ) -> Any:
        """The tree with the places of what is kept as numbers, and None for what changes."""
        if tree == varying:
            return None
        members = _members(tree)
        whole = self._axis < 0 or not any(self._result[self._axis] in leaves[member][0] for member in members)
        if varying not in members:
            if not whole or tree not in once:
                self._kept.append(_evaluated(tree, leaves, self._wanted))
                once[tree] = len(self._kept) - 1
            return once[tree]
        left, right = (self._folded(part, leaves, varying, once, start) for part in tree)
        arranged: Orders = {}
        if self._lasting in tree and leaves[self._lasting][1].size <= _ARRANGED:
            arranged = self._stored.setdefault((tree, start), arranged)
        return left, right, self._wanted(members), arranged, tree if whole else None

    def _value(self, tree: Any, operand: Array, done: dict[Tree, Any]) -> Labelled:
        """Of a folded tree; ``done`` has what all parts of the result share."""
        if tree is None:
            return self._term, operand
        if isinstance(tree, int):
            return self._kept[tree]
        left, right, wanted, arranged, whole = tree
        if whole in done:
            shared: Labelled = done[whole]
            return shared
        one, other = (self._value(side, operand, done) for side in (left, right))
        kept = [self._orders(side, arranged, done) for side in (left, right)]
        found = _product(*one, *other, wanted, kept)
        if whole is not None:
            done[whole] = found
        return found

    def _orders(self, side: Any, arranged: Orders, done: dict[Tree, Any]) -> Orders | None:
        """What is kept of one side of a product: for all calls, or, if all parts share it, for this call."""
        if isinstance(side, int):
            return arranged
        whole = side if side is None else side[-1]
        if len(self._parts) == 1 or (whole is None and side is not None):
            return None
        orders: Orders = done.setdefault(("orders", whole), {})
        return orders


def _slices(shape: tuple[int, ...], axis: int) -> list[slice]:
    if axis < 0:
        return [slice(None)]
    return [slice(start, start + _PART) for start in range(0, shape[axis], _PART)]


def _terms(equation: str) -> tuple[list[str], str]:
    left, result = equation.split("->")
    return left.split(","), result


def _members(tree: Tree) -> frozenset[int]:
    """The places of the operands in a tree."""
    return frozenset((tree,)) if isinstance(tree, int) else _members(tree[0]) | _members(tree[1])


def _wanted(equation: str) -> Callable[[frozenset[int]], frozenset[str]]:
    """For places of operands the letters of their product that the result or another operand has."""
    terms, result = _terms(equation)

    def wanted(members: frozenset[int]) -> frozenset[str]:
        return frozenset(result).union(*(term for place, term in enumerate(terms) if place not in members))

    return wanted


def _evaluated(tree: Tree, leaves: list[Labelled], wanted: Callable[[frozenset[int]], frozenset[str]]) -> Labelled:
    if isinstance(tree, int):
        return leaves[tree]
    left, right = (_evaluated(part, leaves, wanted) for part in tree)
    return _product(*left, *right, wanted(_members(tree)))


def _arranged(labelled: Labelled, result: str) -> Array:
    array: Array = np.einsum(f"{labelled[0]}->{result}", labelled[1])
    return array


@cache
def _order(equation: str, shapes: Shapes, varying: int, repeats: int) -> tuple[Tree, float]:
    """The tree of products with the least work for each of some calls, and that work.

    Products of which no operand changes are made once, for all calls.
    """
    limit = max(_LARGEST, *(math.prod(shape) for shape in shapes))
    found = _search(equation, shapes, varying, repeats, limit)
    return found if found[1] < math.inf else _search(equation, shapes, varying, repeats, math.inf)


def _search(equation: str, shapes: Shapes, varying: int, repeats: int, limit: float) -> tuple[Tree, float]:
    terms, result = _terms(equation)
    count = len(terms)
    letters = sorted(set(equation) - set(",->"))
    bit = {letter: 1 << place for place, letter in enumerate(letters)}
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        sizes.update(zip(term, shape, strict=True))
    masks = [sum(bit[letter] for letter in set(term)) for term in terms]
    products: dict[int, int] = {}

    def elements(mask: int) -> int:
        if mask not in products:
            products[mask] = math.prod(sizes[letter] for letter in letters if mask & bit[letter])
        return products[mask]

    whole = (1 << count) - 1
    kept = [0] * (whole + 1)  # letters of the product of a subset
    best: list[tuple[float, Tree]] = [(math.inf, None)] * (whole + 1)
    for subset in range(1, whole + 1):
        inside = outside = 0
        for place, mask in enumerate(masks):
            if subset >> place & 1:
                inside |= mask
            else:
                outside |= mask
        kept[subset] = inside & (outside | sum(bit[letter] for letter in set(result)))
        if not subset & (subset - 1):
            place = subset.bit_length() - 1
            kept[subset] = masks[place]
            best[subset] = 0.0, place
            continue
        if elements(kept[subset]) > limit and subset != whole:
            continue
        share = 1.0 if varying < 0 or subset >> varying & 1 else 1.0 / repeats
        moved = elements(kept[subset])
        lowest = subset & -subset
        part = (subset - 1) & subset
        while part:
            other = subset ^ part
            if part & lowest and best[part][0] + best[other][0] < best[subset][0]:
                cost = elements(kept[part] | kept[other])
                cost += _TRANSFER * (moved + elements(kept[part]) + elements(kept[other]))
                total = best[part][0] + best[other][0] + share * cost
                if total < best[subset][0]:
                    best[subset] = total, (best[part][1], best[other][1])
            part = (part - 1) & subset
    least, tree = best[whole]
    return tree, least


def _product(
    left: str,
    first: Array,
    right: str,
    second: Array,
    wanted: frozenset[str],
    kept: Sequence[Orders | None] = (None, None),
) -> Labelled:
    """The product of two arrays with these letters, summed over those that nothing else wants.

    For either ``kept`` has what was made of it before, so that BLAS can multiply it; what is made now is put there.
    """
    shared = set(left) & set(right)
    first, left = _summed(first, left, shared | wanted)
    second, right = _summed(second, right, shared | wanted)
    if second.size > first.size:  # the letters that are summed stand as in the larger one, which is not copied then
        left, first, right, second = right, second, left, first
        kept = kept[::-1]
    batch = [letter for letter in left if letter in shared and letter in wanted]
    inner = [letter for letter in left if letter in shared and letter not in wanted]
    rows, columns = ([letter for letter in term if letter not in shared] for term in (left, right))
    sizes = {**dict(zip(left, first.shape, strict=True)), **dict(zip(right, second.shape, strict=True))}

    def matrices(array: Array, term: str, *parts: list[str]) -> Array:
        turned = array.transpose([term.index(letter) for part in parts for letter in part])
        shape = [sizes[letter] for letter in parts[0]]
        matrix: Array = turned.reshape(*shape, *(math.prod(sizes[letter] for letter in part) for part in parts[1:]))
        return matrix

    def ready(larger: bool, array: Array, term: str, *parts: list[str]) -> Array:
        orders = kept[not larger]
        if orders is None:
            return _regular(matrices(array, term, *parts), inner)
        if larger not in orders:
            orders[larger] = _regular(matrices(array, term, *parts), inner)
        return orders[larger]

    one, other = ready(True, first, left, batch, rows, inner), ready(False, second, right, batch, inner, columns)
    product = one @ other if inner else one * other
    letters = [*batch, *rows, *columns]
    return "".join(letters), product.reshape([sizes[letter] for letter in letters])


def _summed(array: Array, term: str, kept: set[str] | frozenset[str]) -> tuple[Array, str]:
    """The array summed over letters that nothing else has."""
    axes = tuple(axis for axis, letter in enumerate(term) if letter not in kept)
    return (array.sum(axis=axes), "".join(letter for letter in term if letter in kept)) if axes else (array, term)


def _regular(array: Array, inner: Sequence[str]) -> Array:
    """Matrices that BLAS takes, for NumPy multiplies others by a loop of its own."""
    item = array.itemsize
    return array if not inner or item in array.strides[-2:] else np.ascontiguousarray(array)
