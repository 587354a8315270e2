"""Fitting two Convs in a row once more, the first one for what comes out behind the second.

Conv by Conv each is fitted to its own output, but an error of the first costs what the second makes of it. With u2 the
second one's output before its activation, u2' that of the rewritten network and e the difference that counts (nothing
where both are clipped, see ``onnxsep.calibration.fitting``), the loss is the sum of |e|^2 / 2 over whole maps. Its
slope at the first Conv's output u1' is g = W2'^T e, a transposed convolution, and nothing where u1' is clipped. Nearby

    |e + W2' d|^2 = |e|^2 + 2 <g, d> + |W2' d|^2,   |W2' d|^2 about the sum over positions of d^T (gamma Q) d

with Q the sum over taps of W2'^T W2' between channels. This is a bound where gamma is the number of taps; errors of
neighbours are never that much alike, 2 works, and where it does not, 4 is tried next. The right side is least at
d = -(gamma Q)^-1 g. So the first Conv is fitted to the target u1' + d at its sampled positions; then the second one to
its own target again, reading what the first one now delivers. To let the errors of the outputs count by Q in the first
fit, as the bound would have it, was tried on ResNet-20: it changes nothing.

A round is kept if the error behind the second Conv does not rise on held-out images, and that of the first does not
rise above that of its weights' own factors. The first one's own error does rise: it has another target. It is measured
again, so that what is reported is true of the factors that are stored; what counts is the error behind the second.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.fitting import Fit, Fitter
from onnxsep.calibration.frontier import Frontier, Kept
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.sampling import Floats, gather_outputs
from onnxsep.calibration.schedule import Step, Tail
from onnxsep.calibration.slopes import Convolution, behind, clipped, lost
from onnxsep.calibration.walk import Walk
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.layers.conv import Conv
from onnxsep.modes.base import Task
from onnxsep.running.runtime import RuntimeOptions

_GAMMA = 2.0
_EVEN = 0.1  # of the mean weight of an output, added to all: what hardly counts may still not become anything
_FIRST = 2  # fits of the first Conv in a round, each with a new slope
_SECOND = 2  # of the second one, each with a new target
_SWEEPS = 2  # in each of these fits
_ELEMENTS = 2**24  # of the largest map that is worked on at a time


@dataclass(frozen=True)
class Half:
    """One of the two Convs, and how it was fitted.

    Attributes:
        step: where it stands.
        replacement: as planned.
        tail: what was fitted, which may be less than ``step.tail``.
        weight: [out_channels, in_channels, *kernel_shape], the original.
        old_bias: [out_channels], its own.
        prior: pull towards a weight.
        fit: the present factors, as they are stored.
    """

    step: Step
    replacement: ConvReplacement
    tail: Tail
    weight: Array
    old_bias: Array | None
    prior: float
    fit: Fit

    @property
    def conv(self) -> Conv:
        """Its geometry."""
        return self.step.site.conv

    @property
    def bias(self) -> Array:
        """[out_channels], the present one."""
        present = self.old_bias if self.fit.bias is None else self.fit.bias
        return np.zeros(self.conv.out_channels) if present is None else present

    @property
    def dense(self) -> Array:
        """The weight that the present factors make."""
        return self.replacement.mode.reconstruct(self.conv, self.fit.factors)

    def fitter(self, samples: Samples) -> "Refitter":
        """For these samples."""
        row = self.replacement
        return Refitter(
            row.mode, self.conv, row.rank, self.weight, samples, self.tail, self.old_bias, row.new_bias, self.prior
        )


class Refitter(Fitter):
    """Improves given factors."""

    def improve(self, fit: Fit, toward: Array, target: Floats | None = None) -> Fit:
        """Some sweeps from the present factors.

        Args:
            fit: these.
            toward: the weight that the prior pulls to.
            target: [rows, out_channels]; the Conv's own by default.
        """
        if target is None:
            target = self._target(self._predict(fit.factors, fit.bias))
        self._weight = toward
        statistics = self._statistics(target)
        task = Task(self._conv, toward, statistics=statistics, start=fit.factors, sweeps=_SWEEPS)
        factors = self._mode.fit(task, self._rank, "joint")
        bias = self._bias(factors, target)
        return replace(fit, factors=factors, bias=bias, held_out=self._candidate(factors, bias).held_out)

    def measured(self, fit: Fit) -> Fit:
        """The same factors with their errors on these samples."""
        predicted = self._predict(fit.factors, fit.bias)
        held_out, fitted = (self._error(predicted[rows], rows) for rows in (self._held, self._fit_rows))
        return replace(fit, held_out=held_out, fitted=fitted)


class Pair:
    """Two Convs in a row, at the point where the walk has reached the second one.

    Args:
        first: the one in front; its input is still live.
        second: the only reader of what the first one's tail ends in.
        walk: the original network.
        rewritten: the other one; changed only in what the second Conv reads.
        sample: gives the samples of a half as they are now.
        runtime: how to run convolutions.
    """

    def __init__(
        self,
        first: Half,
        second: Half,
        walk: Walk,
        rewritten: Frontier,
        sample: Callable[[Half], Samples],
        runtime: RuntimeOptions,
    ) -> None:
        self._first, self._second, self._walk, self._rewritten, self._sample = first, second, walk, rewritten, sample
        self._inputs = [walk.nodes[half.step.site.place[1]].input[0] for half in (first, second)]
        self._positions = [rows.positions for rows in walk.rows(first.step.site)]
        self._convs = [Convolution(half.conv, runtime) for half in (first, second)]

    def refine(self, rounds: int) -> tuple[Fit, Fit] | None:
        """Both fits, improved; None where nothing was found."""
        first, second, gamma = self._first, self._second, _GAMMA
        fitter = first.fitter(self._sample(first))
        best = second.fit.held_out
        found: tuple[Fit, Fit] | None = None
        for _ in range(rounds):
            kept = first, second
            for _ in range(_FIRST):
                target = self._wanted(first, second, gamma)
                if target is None:
                    return found
                first = replace(first, fit=fitter.improve(first.fit, first.dense, target))
            if not np.isfinite(first.fit.held_out):
                break
            before = self._deliver(first)
            other = second.fitter(self._sample(second))
            for _ in range(_SECOND):
                second = replace(second, fit=other.improve(second.fit, second.weight))
            if not (second.fit.held_out <= best and first.fit.held_out <= first.fit.before):
                for batch, value in enumerate(before):
                    self._rewritten.put(batch, self._inputs[1], value)
                (first, second), gamma = kept, 2 * gamma
                continue
            best = second.fit.held_out
            found = fitter.measured(first.fit), other.measured(second.fit)
        return found

    def _wanted(self, first: Half, second: Half, gamma: float) -> Floats | None:
        """The first Conv's target at its sampled positions; None where there is none."""
        dense = second.dense
        effective = dense * second.tail.scale.reshape(-1, *(1,) * (dense.ndim - 1))
        columns = np.moveaxis(effective, 1, 0).reshape(second.conv.in_channels, -1)
        mix = columns @ columns.T
        even = _EVEN * float(np.trace(mix)) / len(mix)
        if not (np.isfinite(even) and even > 0):
            return None
        mix = mix + even * np.eye(len(mix))
        usable = first.tail.heard
        scale = np.where(usable, first.tail.scale, 1.0)
        outputs, slopes = (np.concatenate(part) for part in zip(*self._slopes(first, second, effective), strict=True))
        change = slopes.astype(np.float64) @ np.linalg.inv(gamma * mix) / scale * usable
        target: Floats = (outputs - change).astype(np.float32)
        return target if np.isfinite(target).all() else None

    def _slopes(self, first: Half, second: Half, effective: Array) -> Iterator[tuple[Floats, Floats]]:
        """The first Conv's outputs, and the slope of the loss at its tail's end, at sampled positions."""
        old = np.zeros(second.conv.out_channels) if second.old_bias is None else second.old_bias
        dense = first.dense, second.dense
        for batch, positions in enumerate(self._positions):
            inputs = self._rewritten.value(batch, self._inputs[0])
            original = self._walk.frontier.value(batch, self._inputs[1])
            skips = [self._skip(frontier, batch, original.shape) for frontier in (self._walk.frontier, self._rewritten)]
            for part in _parts(first.conv, inputs.shape):
                outputs = self._convs[0].outputs(inputs[part], dense[0], first.bias)
                inner = behind(first.tail, outputs, None)
                results = self._convs[1].outputs(clipped(first.tail, inner), dense[1], second.bias)
                wanted = self._convs[1].outputs(original[part], second.weight, old)
                kept, now = (None if skip is None else skip[part] for skip in skips)
                error = lost(second.tail, behind(second.tail, wanted, kept), behind(second.tail, results, now))
                slope = self._convs[1].transposed(error, effective, inner.shape[2:])
                slope *= (inner > first.tail.low) & (inner < first.tail.high)
                yield (
                    gather_outputs(first.conv, outputs, positions[part]),
                    gather_outputs(first.conv, slope, positions[part]),
                )

    def _skip(self, frontier: Frontier, batch: int, read: tuple[int, ...]) -> NDArray[Any] | None:
        """What is added to the second Conv's output, in the shape of that."""
        name, conv = self._second.tail.skip, self._second.conv
        if name is None:
            return None
        return np.broadcast_to(frontier.value(batch, name), (read[0], conv.out_channels, *conv.output_size(read[2:])))

    def _deliver(self, first: Half) -> list[Kept]:
        """Let the second Conv read what the first one now computes; gives what it read before."""
        before = []
        dense = first.dense
        for batch in range(self._rewritten.batches):
            inputs, read = (self._rewritten.value(batch, name) for name in self._inputs)
            parts = [
                clipped(first.tail, behind(first.tail, self._convs[0].outputs(inputs[part], dense, first.bias), None))
                for part in _parts(first.conv, inputs.shape)
            ]
            before.append(self._rewritten.put(batch, self._inputs[1], np.concatenate(parts).astype(read.dtype)))
        return before


def _parts(conv: Conv, shape: tuple[int, ...]) -> Iterator[slice]:
    """Images of a batch, as many at a time as memory allows."""
    largest = max(math.prod(shape[1:]), conv.out_channels * math.prod(conv.output_size(shape[2:])), 1)
    count = max(1, _ELEMENTS // largest)
    for start in range(0, shape[0], count):
        yield slice(start, start + count)
