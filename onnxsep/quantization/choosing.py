"""Equalisation and bias correction are kept where they help, on samples that they were not found with.

Both are right on paper: the first computes the same before rounding, the second gives back means. But channels that are
alike need not be better rounded, and means over few samples are those of few samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxsep.data import Dataset, Partition
from onnxsep.model.io import Model
from onnxsep.quantization.building import Builder, Built
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.passing import find_pairs
from onnxsep.quantization.settings import Settings
from onnxsep.running.integer_io import RealRunner
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_MOST = 64  # samples to judge with

Start = Callable[[Settings], Builder]


@dataclass(frozen=True)
class Chosen:
    """What to go on with.

    Attributes:
        builder: With the choice in its settings and corrections.
        built: What it gives.
        notes: What was left out, and why.
    """

    builder: Builder
    built: Built
    notes: tuple[str, ...]


def judging(data: Dataset, parts: Partition) -> list[int]:
    """The samples that a choice is made by; none where there are too few to hold any out.

    Where only those are left that errors are measured on, which are few, as many of the calibration join them: what is
    found over all of these hardly knows a single one.
    """
    if not parts.unseen:
        return []
    rest = sorted(set(parts.others) - set(parts.verified))
    if len(rest) < len(parts.verified):
        steps = np.linspace(0, len(parts.fitted) - 1, min(len(parts.verified), len(parts.fitted))).astype(int)
        rest = sorted([*parts.verified, *(parts.fitted[step] for step in steps)])
    steps = np.linspace(0, len(rest) - 1, min(_MOST, len(rest))).astype(int)
    samples = [rest[step] for step in steps]
    return samples[: len(samples) // data.batch * data.batch] if data.batch else samples


class Judge:
    """Compares quantised models by the error of their outputs, on samples that nothing was fitted to.

    Args:
        source: The model that they come from.
        data: The data.
        parts: How its samples are used. Those that neither calibrate nor measure judge, as far as there are enough;
            else those that measure.
        options: How models are run.
    """

    def __init__(self, source: Model, data: Dataset, parts: Partition, options: RuntimeOptions) -> None:
        self._source, self._data, self._options = source, data, options
        self.samples = judging(data, parts)
        shared = len(set(self.samples) & set(parts.fitted))
        self.words = f"{len(self.samples)} {'samples, half of which calibrate,' if shared else 'other samples'}"

    def errors(self, models: Sequence[Model]) -> list[float]:
        """For each model, the mean of its outputs' relative errors; infinite where it does not run.

        Raises:
            QuantizationError: the source does not run on the data.
            DataError: an image cannot be read.
        """
        runners = [self._runner(model) for model in models]
        sums = [_Sums() if runner is not None else None for runner in runners]
        expected_of = Runner(self._source, self._options)
        for feed in self._data.feeds(self.samples):
            try:
                expected = expected_of(feed)
            except CannotRun as error:
                raise QuantizationError(f"the runtime cannot run the model on the data: {error}") from error
            for place, runner in enumerate(runners):
                found = sums[place]
                if runner is None or found is None:
                    continue
                try:
                    found.add(expected, runner(feed))
                except CannotRun:
                    sums[place] = None
        return [math.inf if found is None else found.error for found in sums]

    def _runner(self, model: Model) -> RealRunner | None:
        try:
            return RealRunner(model, self._options)
        except CannotRun:
            return None


class _Sums:
    def __init__(self) -> None:
        self._squares: dict[str, tuple[float, float]] = {}

    def add(self, expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> None:
        for name, values in expected.items():
            if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
                continue
            wide, other = values.astype(np.float64), np.asarray(actual[name])
            finite = np.isfinite(wide)
            if wide.shape != other.shape:
                wide, other, finite = np.array([0.0]), np.array([math.inf]), np.array([True])
            before = self._squares.get(name, (0.0, 0.0))
            error = float(np.square(wide[finite] - other[finite]).sum())
            self._squares[name] = (before[0] + error, before[1] + float(np.square(wide[finite]).sum()))

    @property
    def error(self) -> float:
        found = [math.sqrt(error / size) if size else math.sqrt(error) for error, size in self._squares.values()]
        return float(np.mean(found)) if found else 0.0


def choose(start: Start, settings: Settings, judge: Judge) -> Chosen:
    """Quantise with and without what may help, and keep what does.

    Args:
        start: Prepares and calibrates for some settings.
        settings: What was asked for.
        judge: Tells which of two models is better.
    """
    builder = start(settings)
    notes: list[str] = []
    count = len(judge.samples)
    plain: Built | None = None
    if count and settings.equalize and builder.ranges is not None and find_pairs(builder.prepared.proto):
        other = start(replace(settings, equalize=False))
        plain, without = builder.build(quick=True), other.build(quick=True)
        error, error_without = judge.errors([plain.model, without.model])
        if error_without < error:
            builder, plain = other, without
            notes.append(
                f"channels between layers are not equalised: on {judge.words} the error is"
                f" {error_without:.3g} without and {error:.3g} with it"
            )
    built = builder.build()
    found = built.corrections
    if found is None or found.failed or not found.biases:
        return Chosen(builder, built, tuple(notes))
    plain = plain or builder.build(quick=True)
    if not count:
        notes.append("biases are not corrected: there are no other samples to see whether that helps; give more")
        return Chosen(replace(builder, correct=None), plain, tuple(notes))
    error, error_without = judge.errors([built.model, plain.model])
    if error_without < error:
        notes.append(
            f"biases are not corrected: on {judge.words} the error is {error_without:.3g} without and"
            f" {error:.3g} with it"
        )
        return Chosen(replace(builder, correct=None), plain, tuple(notes))
    return Chosen(builder, built, tuple(notes))
