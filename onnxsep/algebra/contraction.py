"""Einsums of large arrays: in the order of least work, every product by the matrix product of BLAS.

NumPy's einsum leaves products with an index that both operands and the result have to loops of its own, which are many
times slower.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_TRANSFER = 64  # multiplications in the time that one element takes from memory, in another order often
_SEARCHED = 6  # operands up to which all orders are tried: their number grows like a factorial
_LARGEST = 2**26  # elements of an intermediate result, unless an operand or the result is larger


def contract(equation: str, *operands: Array) -> Array:
    """The einsum of an equation with an arrow, in which no operand has a letter twice."""
    left, result = equation.split("->")
    terms, arrays = left.split(","), list(operands)
    for first, second in _path(equation, tuple(array.shape for array in arrays)):  # first < second
        others = [term for place, term in enumerate(terms) if place not in (first, second)]
        wanted = set(result).union(*others)
        term, array = _product(terms[first], arrays[first], terms[second], arrays[second], wanted)
        for place in (second, first):
            del terms[place], arrays[place]
        terms.append(term)
        arrays.append(array)
    product: Array = np.einsum(f"{terms[0]}->{result}", arrays[0])
    return product


@cache
def work(equation: str, shapes: tuple[tuple[int, ...], ...]) -> int:
    """Multiplications that ``contract`` takes for operands of these shapes, and what reading and writing costs."""
    left, result = equation.split("->")
    terms, total = left.split(","), 0
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }

    def elements(letters: str | set[str]) -> int:
        return math.prod(sizes[letter] for letter in letters)

    for first, second in _path(equation, shapes):
        one, other = terms[first], terms[second]
        del terms[second], terms[first]
        kept = "".join(sorted((set(one) | set(other)) & set(result).union(*terms)))
        total += elements(set(one) | set(other)) + _TRANSFER * sum(map(elements, (one, other, kept)))
        terms.append(kept)
    return total


@cache
def _path(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """Pairs of operands; the result of each goes to the end of the list."""
    empty = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    limit = max(_LARGEST, *(array.size for array in empty))
    search = "optimal" if len(shapes) <= _SEARCHED else "greedy"
    for chosen in ((search, limit), search):
        path = np.einsum_path(equation, *empty, optimize=chosen)[0][1:]
        if all(len(step) <= 2 for step in path):  # within the limit it may find no pairs
            break
    return tuple((min(step), max(step)) for step in path if len(step) == 2)


def _product(left: str, first: Array, right: str, second: Array, wanted: set[str]) -> tuple[str, Array]:
    """The product of two arrays with these letters, summed over those that nothing else wants."""
    shared = set(left) & set(right)
    first, left = _summed(first, left, shared | wanted)
    second, right = _summed(second, right, shared | wanted)
    if second.size > first.size:  # the letters that are summed stand as in the larger one, which is not copied then
        left, first, right, second = right, second, left, first
    batch = [letter for letter in left if letter in shared and letter in wanted]
    inner = [letter for letter in left if letter in shared and letter not in wanted]
    rows, columns = ([letter for letter in term if letter not in shared] for term in (left, right))
    sizes = {**dict(zip(left, first.shape, strict=True)), **dict(zip(right, second.shape, strict=True))}

    def matrices(array: Array, term: str, *parts: list[str]) -> Array:
        turned = array.transpose([term.index(letter) for part in parts for letter in part])
        shape = [sizes[letter] for letter in parts[0]]
        return _regular(turned.reshape(*shape, *(math.prod(sizes[letter] for letter in part) for part in parts[1:])))

    product = matrices(first, left, batch, rows, inner) @ matrices(second, right, batch, inner, columns)
    letters = [*batch, *rows, *columns]
    return "".join(letters), product.reshape([sizes[letter] for letter in letters])


def _summed(array: Array, term: str, kept: set[str]) -> tuple[Array, str]:
    """The array summed over letters that nothing else has."""
    axes = tuple(axis for axis, letter in enumerate(term) if letter not in kept)
    return (array.sum(axis=axes), "".join(letter for letter in term if letter in kept)) if axes else (array, term)


def _regular(array: Array) -> Array:
    """Matrices that BLAS takes, for NumPy multiplies others by a loop of its own."""
    item = array.itemsize
    return array if item in array.strides[-2:] else np.ascontiguousarray(array)
