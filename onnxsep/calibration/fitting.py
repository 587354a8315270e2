"""Fitting the factors of one Conv to samples of what it reads and of what should come out.

With x the patches from the rewritten network, y the wanted outputs and act(a y + c + b s) what stands behind the Conv
(``onnxsep.calibration.schedule.Tail``), the factors M and the bias d are to minimise the mean of

    |act(a y + c + b s) - act(a (M x + d) + c + b s')|^2

with s the skip of the original network and s' that of the rewritten one: what the skip has lost already is made up for
here. Without an activation this is a least-squares problem with the target y + b (s - s') / a. With one it is solved by
majorisation (as in Zhang et al. 2015, Accelerating very deep CNNs, but without an auxiliary variable): where the
original is clipped and the prediction is clipped too, any prediction is right, so it becomes its own target; where
only the original is clipped, the limit is the target. This target's squared error is never below the true one and
equals it at the present prediction, but where the prediction is clipped and the original is not: there the true error
has no slope, and the target, the original, brings it back. So a fit to it nearly always lowers the true error, and the
rounds are compared on held-out positions. Other activations, and whatever else treats each element by itself, stand
behind all this (``Tail.more``): ``onnxsep.calibration.behind.End`` has the target for these.

One part of the images is held out. No result is taken that is worse there than the factors of the weights alone.
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.gram import CentredRows, DenseGram, Gram, gram_of, mean_product
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import Statistics, prior_ridge
from onnxsep.algebra.threads import threads_for
from onnxsep.calibration.behind import Behind, End, step_of
from onnxsep.calibration.regions import Region
from onnxsep.calibration.sampled import Samples, majorised
from onnxsep.calibration.sampling import Floats
from onnxsep.calibration.schedule import Tail
from onnxsep.calibration.sweeps import sweeps_of
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Mode, Task

PRIOR = 1e-3  # of the mean diagonal of the Gram matrix
_ROUNDS = 3  # of the target for clipped outputs; more lower the error of the layer, but not that of the network
_GAIN, _LARGE = 2e-3, 2**23  # of the held-out error: a round that gains less is the last, of so many values in all rows
_ROUNDING = 1e-6  # of single precision


Told = Callable[[str], None]
Rows = NDArray[np.bool_] | slice


@dataclass(frozen=True)
class Fit:
    """Factors and bias of one Conv, and their relative errors |u - u'| / |u - mean u| behind the activation.

    Attributes:
        factors: of the mode.
        bias: [out_channels], or None where the Conv cannot get a new one.
        fitted: error on the positions of the fit.
        held_out: error on the others.
        before: error there of the factors from the weights alone, with the bias fitted.
        fell_back: whether these were taken after all, for nothing better was found.
    """

    factors: Factors
    bias: Array | None
    fitted: float
    held_out: float
    before: float
    fell_back: bool


def fit(
    mode: Mode,
    conv: Conv,
    rank: Rank,
    weight: Array,
    samples: Samples,
    tail: Tail,
    *,
    init: str,
    old_bias: Array | None,
    new_bias: bool,
    prior: float = PRIOR,
    told: Told | None = None,
    alone: Factors | None = None,
) -> Fit:
    """Fit the factors of one Conv.

    Args:
        mode: one of whose ``inits`` is ``init``.
        conv: the Conv.
        rank: as planned.
        weight: [out_channels, in_channels / group, *kernel_shape].
        samples: at least one row of each kind.
        tail: what stands behind the Conv.
        init: "svd" takes the weights' own factors and leaves the bias as it is.
        old_bias: [out_channels], the Conv's own.
        new_bias: whether the bias is fitted too.
        prior: strength of the pull towards the weight, relative to the data.
        told: how far it is, in words.
        alone: what "svd" takes where more is known than the weight.
    """
    return Fitter(mode, conv, rank, weight, samples, tail, old_bias, new_bias, prior).run(init, told, alone)


def fit_bias(
    mode: Mode,
    conv: Conv,
    factors: Factors,
    samples: Samples,
    tail: Tail,
    *,
    old_bias: Array | None,
    new_bias: bool,
) -> Fit:
    """Fit the bias alone, for a Conv that shares its weight, and so its factors, with one that is done."""
    return Fitter(mode, conv, (), np.zeros(conv.weight_shape), samples, tail, old_bias, new_bias, 0.0).measure(factors)


@dataclass(frozen=True)
class _Candidate:
    """Factors and bias, what they predict for all rows, if that was asked for, and the held-out error."""

    factors: Factors
    bias: Array | None
    predicted: Floats | None
    held_out: float


def _error_of(candidate: _Candidate) -> float:
    return candidate.held_out


class Fitter:
    """The samples of one Conv, prepared for fits; the arguments are those of ``fit``."""

    def __init__(
        self,
        mode: Mode,
        conv: Conv,
        rank: Rank,
        weight: Array,
        samples: Samples,
        tail: Tail,
        old_bias: Array | None,
        new_bias: bool,
        prior: float,
    ) -> None:
        self._mode, self._conv, self._rank, self._weight = mode, conv, rank, weight
        self._samples, self._prior, self._new_bias = samples, prior, new_bias
        self._old_bias = np.zeros(conv.out_channels) if old_bias is None else old_bias
        # A channel that the tail multiplies by (almost) nothing has no say: it is fitted as if it stood alone.
        usable = tail.heard
        # Rows in single precision: they are many, and no better known.
        self._scale = np.where(usable, tail.scale, 1.0).astype(np.float32)
        shift = np.where(usable, tail.shift, 0.0).astype(np.float32)
        self._low = np.where(usable, tail.low, -np.inf).astype(np.float32)
        self._high = np.where(usable, tail.high, np.inf).astype(np.float32)
        self._clips = tail.clips
        wanted = samples.targets * self._scale + shift
        self._base: Floats = np.broadcast_to(shift, wanted.shape)  # what the tail adds to a y in the rewritten network
        if samples.skip is not None:
            factor = np.where(usable, tail.skip_scale, 0.0).astype(np.float32)
            wanted = wanted + factor * samples.skip[0]
            self._base = shift + factor * samples.skip[1]
        self._wanted: Floats = wanted  # before the activation
        self._fit_rows, self._held = ~samples.held_out, samples.held_out
        self._end = None if tail.more is None else self._behind(tail.more)
        inputs = samples.inputs
        self._mean = np.zeros(inputs.shape[1])
        if new_bias:
            self._mean = inputs.mean(axis=0, dtype=np.float64, where=self._fit_rows[:, None])
        centred = CentredRows(inputs, np.flatnonzero(self._fit_rows), self._mean.astype(np.float32))
        self._centred = centred.groups(conv.group)

    def _behind(self, region: Region) -> End | None:
        """What follows the part that is told in numbers; None where that gives NaN or infinity."""
        self._step = step_of(self._samples.targets)
        start, moved = (self._clip(self._wanted + shift) for shift in (np.float32(0), self._step * self._scale))
        behind = Behind(region, self._conv)
        end = End(behind, self._samples.further, start, moved, self._step, self._fit_rows)
        return end if end.finite else None

    def _clip(self, values: Floats) -> Floats:
        clipped: Floats = np.clip(values, self._low, self._high)
        return clipped

    def with_mode(self, mode: Mode, rank: Rank) -> "Fitter":
        """The same samples and statistics for another mode or rank."""
        for gram in self._ridge[0]:  # computed once, for all
            if isinstance(gram, DenseGram):
                gram.kept.clear()  # a result must not depend on what was fitted before
        other = copy(self)
        other._mode, other._rank = mode, rank
        return other

    @cached_property
    def _ridge(self) -> tuple[list[Gram], Array]:
        """The Gram matrices with the prior, and what it adds to each."""
        grams = [gram_of(rows) for rows in self._centred]
        ridge = prior_ridge(grams, self._prior)
        return [gram.with_ridge(float(added), own=True) for gram, added in zip(grams, ridge, strict=True)], ridge

    def run(self, init: str, told: Told | None = None, alone: Factors | None = None) -> Fit:
        """The best of what this initialisation finds."""
        task = Task(self._conv, self._weight)
        plain = alone or self._mode.factorize(task, self._rank)
        if init == "svd":
            return self._only(plain, self._old_bias if self._new_bias else None)
        target = self._target(None)
        first = best = self._held_out(plain, self._bias(plain, target))
        rounds = _ROUNDS if (self._clips or self._end) and init == "joint" else 0
        first_sweeps, more = sweeps_of(self._weight)
        task = replace(task, start=plain, sweeps=first_sweeps if rounds else max(task.sweeps, first_sweeps))
        for number in range(rounds + 1):
            telling = _telling(told, number + 1, rounds + 1)
            task = replace(task, statistics=self._statistics(target), told=telling)
            factors = self._mode.fit(task, self._rank, init)
            last, before = self._candidate(factors, self._bias(factors, target)), best.held_out
            best = min(best, last, key=_error_of)
            if number and last.held_out >= (1 - _GAIN) * before and self._samples.inputs.size >= _LARGE:
                break
            if number < rounds:
                target = self._target(last.predicted)
                task = replace(task, start=factors, sweeps=more)
        predicted = self._predict(best.factors, best.bias) if best.predicted is None else best.predicted
        fitted = self._error(predicted[self._fit_rows], self._fit_rows)
        return Fit(best.factors, best.bias, fitted, best.held_out, first.held_out, fell_back=best is first)

    def _candidate(self, factors: Factors, bias: Array | None) -> "_Candidate":
        predicted = self._predict(factors, bias)
        return _Candidate(factors, bias, predicted, self._error(predicted[self._held], self._held))

    def _held_out(self, factors: Factors, bias: Array | None) -> "_Candidate":
        """With the held-out error alone."""
        return _Candidate(factors, bias, None, self._error(self._predict(factors, bias, self._held), self._held))

    def measure(self, factors: Factors) -> Fit:
        """These factors with the bias that suits them."""
        return self._only(factors, self._bias(factors, self._target(None)))

    def _only(self, factors: Factors, bias: Array | None) -> Fit:
        predicted = self._predict(factors, bias)
        fitted, held_out = (self._error(predicted[rows], rows) for rows in (self._fit_rows, self._held))
        return Fit(factors, bias, fitted, held_out, held_out, fell_back=False)

    def _statistics(self, target: Floats) -> Statistics:
        """Of the rows for fitting, prior included."""
        count = int(np.count_nonzero(self._fit_rows))
        offset = (
            target.mean(axis=0, dtype=np.float64, where=self._fit_rows[:, None]) if self._new_bias else self._old_bias
        )
        # Zeros in the other rows leave them out, and what is centred meets the inputs' mean in vain: no copy of these.
        outputs = np.where(self._fit_rows[:, None], target - offset.astype(np.float32), np.float32(0))
        groups = zip(
            np.split(outputs, self._conv.group, axis=1),
            np.split(self._samples.inputs, self._conv.group, axis=1),
            strict=True,
        )
        cross = np.stack([mean_product(one, inputs) for one, inputs in groups]) * (len(target) / count)
        grams, ridge = self._ridge
        cross += ridge[:, None, None] * self._weight.reshape(cross.shape)
        mixed = self._samples.mixed
        if mixed is not None:
            mixed = tuple(replace(one, ridge=one.ridge + float(added)) for one, added in zip(mixed, ridge, strict=True))
        return Statistics(grams, cross, mixed)

    def _target(self, predicted: Floats | None) -> Floats:
        """What the outputs of the replacement should be, given what they are now; [rows, out_channels]."""
        wanted = self._wanted
        if self._end is not None:
            present = self._samples.targets if predicted is None else predicted
            values = present * self._scale + self._base
            moved = self._clip(values + self._step * self._scale)
            return self._end.target(present, self._clip(values), moved, self._samples.targets)
        if predicted is not None:
            now = predicted * self._scale + self._base
            wanted = majorised(wanted, now, self._low, self._high)
        target: Floats = (wanted - self._base) / self._scale
        return target

    def _bias(self, factors: Factors, target: Floats) -> Array | None:
        """The bias with which the mean output is right."""
        if not self._new_bias:
            return None
        bias: Array = target[self._fit_rows].mean(axis=0, dtype=np.float64) - self._apply(factors, self._mean[None])[0]
        return bias

    def _apply(self, factors: Factors, inputs: NDArray[Any]) -> NDArray[Any]:
        """The replacement without its bias; [rows, out_channels] in inputs' type."""
        with threads_for(inputs.size * self._conv.out_channels):
            return self._mode.apply(self._conv, factors, inputs)

    def _predict(self, factors: Factors, bias: Array | None, rows: Rows = slice(None)) -> Floats:
        offset = self._old_bias if bias is None else bias
        return self._apply(factors, self._samples.inputs[rows]) + offset.astype(np.float32)

    def _error(self, predicted: Floats, rows: NDArray[np.bool_]) -> float:
        """Relative error behind the activation, of what is predicted for some of the rows."""
        got, wanted = self._clip(predicted * self._scale + self._base[rows]), self._clip(self._wanted[rows])
        if self._end is not None:
            got, wanted = self._end.now(got, rows), self._end.reached[rows]
            if not np.isfinite(got).all():
                return math.inf
        size = np.linalg.norm(wanted - wanted.mean(axis=0))
        whole, difference = np.linalg.norm(wanted), np.linalg.norm(wanted - got)
        if size <= _ROUNDING * whole:  # the output never changes: relative to its size, then
            size = whole
        return float(difference / size) if size > 0 else float(difference > 0)


def _telling(told: Told | None, fit: int, fits: int) -> Callable[[int, int], None] | None:
    """Tells of the sweeps of one of several fits."""
    return None if told is None else lambda sweep, most: told(f"fit {fit} of {fits}, sweep {sweep} of {most}")
