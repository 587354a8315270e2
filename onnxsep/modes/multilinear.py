"""Modes whose weight is a product of factors, and which calibration data can therefore fit jointly.

Such a mode states its product as an einsum, and how its Conv weights become the factors of that einsum and back. The
weight error, the joint fit to data (``onnxsep.algebra.als``) and the balance of the factors follow from that.
"""

import math
import string
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.als import Problem, alternate, balanced, multiply
from onnxsep.algebra.als_rows import RowProblem
from onnxsep.algebra.contraction import contract, work
from onnxsep.algebra.gram import DenseGram, Gram, RowGram
from onnxsep.algebra.linalg import Array, scaled_to_one
from onnxsep.algebra.weight_metric import WeightMetric
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import AddLayer, ConvLayer, Layer, parameters
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import IS_POINTWISE, Factors, Mode, Task

_ROWS = 1_024  # that go through factors at a time
_LARGE = 1_000  # inputs from which on products with the Gram matrix are made in single precision


class Multilinear(Mode):
    """A mode whose weight, of each group, is an einsum of its factors."""

    inits: ClassVar[tuple[str, ...]] = ("svd", "joint")

    def accepts(self, conv: Conv) -> str | None:
        """Refuse 1 x 1 Convs, unless a mode says otherwise."""
        return IS_POINTWISE if max(conv.kernel_shape, default=1) == 1 else None

    @abstractmethod
    def equation(self, conv: Conv) -> str:
        """The product, such as "toi,tik->oik": lower-case letters, the output channel first in the result."""

    @abstractmethod
    def inputs(self, conv: Conv) -> tuple[int, ...]:
        """Sizes of the result's letters after the first; their product is in_channels / group * taps, in that order."""

    @abstractmethod
    def split(self, conv: Conv, factors: Factors) -> list[Array]:
        """The factors of the einsum, each with a leading axis for the groups, from the weights of the Convs."""

    @abstractmethod
    def join(self, conv: Conv, arrays: Sequence[Array]) -> Factors:
        """The inverse of ``split``."""

    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        """The product, in the shape of the weight."""
        arrays = self.split(conv, factors)
        products = [multiply(self.equation(conv), [array[group] for array in arrays]) for group in range(conv.group)]
        return np.stack(products).reshape(conv.weight_shape)

    def apply(self, conv: Conv, factors: Factors, inputs: NDArray[Any]) -> NDArray[Any]:
        """By one factor after the other, where that is less work than by their product."""
        equation, sizes, outputs = self.equation(conv), self.inputs(conv), conv.out_channels // conv.group
        arrays = [array.astype(inputs.dtype) for array in self.split(conv, factors)]
        operands, result = equation.split("->")
        row = next(letter for letter in string.ascii_lowercase if letter not in equation)
        by_factors = f"{operands},{row}{result[1:]}->{row}{result[0]}"
        shapes = tuple(array.shape[1:] for array in arrays)
        each = work(by_factors, (*shapes, (_ROWS, *sizes)))
        if len(inputs) < _ROWS or each > work("oi,ni->no", ((outputs, math.prod(sizes)), (_ROWS, math.prod(sizes)))):
            return super().apply(conv, factors, inputs)
        found = np.empty((len(inputs), conv.group, outputs), inputs.dtype)
        for start in range(0, len(inputs), _ROWS):
            rows = inputs[start : start + _ROWS]
            parts = rows.reshape(len(rows), conv.group, *sizes)
            for group in range(conv.group):
                factors_of = [array[group] for array in arrays]
                found[start : start + _ROWS, group] = contract(by_factors, *factors_of, parts[:, group])
        return found.reshape(len(inputs), -1)

    def from_weights(self, task: Task, rank: Rank) -> Factors:
        """``factorize`` in the metric of ``onnxsep.algebra.weight_metric``, where the inputs are known; then undone.

        Only where one factor alone reads the input channels: in another, the metric cannot be undone. The same is true
        of the taps of each axis, which are left out where several factors read them.
        """
        conv, equation, known = task.conv, self.equation(task.conv), task.inputs
        operands, result = equation.split("->")
        letters = operands.split(",")
        used = [[place for place, term in enumerate(letters) if letter in term] for letter in result]
        if known is None or len(used[0]) + len(used[1]) > 2 or self.is_exact(conv, rank):
            return self.factorize(task, rank)
        weight, exponent = scaled_to_one(task.weight)
        metric = WeightMetric.of(weight, known, conv.group, task.gains)
        tensor = metric.scaled_outputs(weight, 0).reshape(conv.group, -1, *self.inputs(conv))
        parts = _parts(self.inputs(conv), (conv.in_channels // conv.group, *conv.kernel_shape))
        alone = [axis for axis, places in enumerate(used) if axis and len(places) == 1]
        for axis in alone:
            tensor = metric.stretched(tensor, axis + 1, parts[axis - 1])
        scaled = replace(task, weight=tensor.reshape(weight.shape))
        arrays = self.split(conv, self.factorize(scaled, rank))
        for axis in alone:
            (place,) = used[axis]
            within = 1 + letters[place].index(result[axis])
            arrays[place] = metric.stretched(arrays[place], within, parts[axis - 1], back=True)
        (last,) = used[0]
        axis = letters[last].index(result[0])
        pieces = [
            replace(metric, scales=scales).scaled_outputs(arrays[last][group], axis, back=True)
            for group, scales in enumerate(np.split(metric.scales, conv.group))
        ]
        arrays[last] = np.ldexp(np.stack(pieces), exponent)
        groups = [balanced(equation, [array[group] for array in arrays]) for group in range(conv.group)]
        return self.join(conv, [np.stack(found) for found in zip(*groups, strict=True)])

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        """All factors together, from ``task.start`` or the weights' own, by alternating least squares."""
        if init != "joint" or task.statistics is None:
            return super().fit(task, rank, init)
        conv, statistics = task.conv, task.statistics
        start = self.split(conv, task.start or self.factorize(task, rank))
        equation, inputs = self.equation(conv), self.inputs(conv)
        outputs = conv.out_channels // conv.group
        fitted: list[list[Array]] = []
        for group in range(conv.group):
            gram, cross = statistics.grams[group], statistics.cross[group].reshape(outputs, *inputs)
            problem = RowProblem(gram, cross) if isinstance(gram, RowGram) else _problem(gram, cross)
            begin = [array[group] for array in start]
            factors = alternate(equation, begin, problem, sweeps=task.sweeps, told=task.told)
            fitted.append(balanced(equation, factors))
        return self.join(conv, [np.stack(parts) for parts in zip(*fitted, strict=True)])


def _problem(gram: Gram, cross: Array) -> Problem:
    """With the Gram matrix itself, in single precision where it is large."""
    shape = cross.shape[1:] * 2
    if isinstance(gram, DenseGram):
        matrix: NDArray[Any] = gram.single if gram.size >= _LARGE else gram.matrix
        return Problem(matrix.reshape(shape), cross, gram.kept)
    return Problem(gram.dense().reshape(shape), cross)


def _parts(inputs: Sequence[int], axes: Sequence[int]) -> list[list[int]]:
    """Which axes of a kernel each letter of a result counts together: their sizes multiply to its own."""
    found, left = list[list[int]](), list(enumerate(axes))
    for size in inputs:
        mine: list[int] = []
        while math.prod(axes[place] for place in mine) < size:
            mine.append(left.pop(0)[0])
        found.append(mine)
    return found


def half_rank(conv: Conv, layers: Callable[[int], Sequence[Layer]], full: int, step: int) -> int:
    """The largest rank at which the layers have at most half of the Conv's parameters, or ``step``.

    That is what the rank "paper" means where no paper fixes one.

    Args:
        conv: the Conv.
        layers: its replacement at a rank; parameters rise with it.
        full: the largest rank.
        step: ranks are multiples of it.
    """
    low, high = 1, full // step
    while low < high:
        middle = (low + high + 1) // 2
        fits = 2 * parameters(layers(middle * step)) <= conv.parameters
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * step


def kernel_axes(conv: Conv) -> tuple[list[int], list[int]]:
    """The axes along which the kernel is longer than 1, and the others."""
    wide = [axis for axis, size in enumerate(conv.kernel_shape) if size > 1]
    return wide, [axis for axis in range(conv.dims) if axis not in wide]


def axis_name(conv: Conv, axis: int) -> str:
    """What a layer along one axis is called."""
    names = {2: ("vertical", "horizontal"), 3: ("depth", "vertical", "horizontal")}
    return names[conv.dims][axis] if conv.dims in names else f"axis{axis}"


def summed(terms: Sequence[Sequence[ConvLayer]]) -> tuple[Layer, ...]:
    """Parallel chains of Convs, and Adds that sum their outputs, each as soon as there are two, for little memory."""
    layers: list[Layer] = []
    total = ""
    for number, chain in enumerate(terms, start=1):
        layers.extend(chain)
        if number > 1:
            layers.append(AddLayer(f"sum_{number}", (total, chain[-1].name)))
        total = layers[-1].name
    return tuple(layers)
