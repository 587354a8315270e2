"""The error of the quantised outputs, on samples that the calibration did not see."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxsep.algebra.output_parts import PartTally
from onnxsep.data import Dataset, Partition, partition
from onnxsep.errors import OptionError, VerificationError, spelled
from onnxsep.model.io import Model
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.report import OutputError
from onnxsep.reporting.records import part_reports
from onnxsep.running.feeds import samples_of
from onnxsep.running.integer_io import RealRunner
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_HELD_OUT = 5  # where there are more samples than calibrate: one for so many of those is drawn for measuring
_MOST_HELD_OUT = 64
_ENOUGH = 200  # samples; fewer are needed by the calibration, and a tenth is left out


def split(data: Dataset, samples: int | None, seed: int) -> Partition:
    """Choose samples at random: at most ``samples`` to calibrate, and others to measure with if there are any.

    Raises:
        OptionError: the number of samples is less than 1 or than the model's batch, or the seed negative.
    """
    whole = data.batch or 1
    count = len(data.sample(samples, seed))
    if count < whole:
        raise OptionError(
            f"{spelled('samples', samples)}: the model takes {whole} samples at a time; ask for {whole} or more"
        )
    held = -(-min(_MOST_HELD_OUT, max(1, count // _HELD_OUT)) // whole) * whole  # a fixed batch must be full
    if count == len(data.sample(None)) >= _ENOUGH and not data.reserved:
        samples = count - held  # forms are chosen by these samples too, and a tenth chooses wrongly
    return partition(data, samples, seed, together=held)


def measure(
    source: Model, result: Model, data: Dataset, indices: Sequence[int], options: RuntimeOptions
) -> tuple[OutputError, ...]:
    """Compare the outputs of both models; outputs that are no float tensors are left out.

    Raises:
        QuantizationError: the runtime cannot run the source.
        VerificationError: it cannot run the result, or the result's outputs have other shapes or are not finite.
    """
    try:
        expected_of = Runner(source, options)
    except CannotRun as error:
        raise QuantizationError(f"the runtime cannot load the model: {error}") from error
    try:
        actual_of = RealRunner(result, options)
    except CannotRun as error:
        raise VerificationError(f"the runtime cannot load the quantised model: {error}; nothing was written") from error
    tallies: dict[str, _Tally] = {}
    for feed in data.feeds(indices):
        try:
            expected = expected_of(feed)
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot run the model on the data: {error}") from error
        try:
            actual = actual_of(feed)
        except CannotRun as error:
            raise VerificationError(
                f"the runtime runs the original but not the quantised model: {error}; nothing was written"
            ) from error
        for name, values in expected.items():
            if isinstance(values, np.ndarray) and values.dtype.kind == "f":
                tallies.setdefault(name, _Tally()).add(name, values, np.asarray(actual[name]), samples_of(feed))
    return tuple(tally.result(name) for name, tally in tallies.items())


@dataclass
class _Tally:
    parts: PartTally = field(default_factory=PartTally)
    max_abs: float = 0.0
    same: int = 0
    rows: int | None = 0

    def add(self, name: str, expected: np.ndarray, actual: np.ndarray, samples: int | None) -> None:
        if expected.shape != actual.shape:
            raise VerificationError(
                f"output {name!r} has shape {list(actual.shape)} after quantising, not {list(expected.shape)}; nothing"
                " was written"
            )
        finite = np.isfinite(expected)
        if not np.isfinite(actual[finite]).all():
            raise VerificationError(
                f"output {name!r} is NaN or infinite after quantising where it was a number; nothing was written"
            )
        self.parts.add(expected, actual, samples)
        difference = expected[finite].astype(np.float64) - actual[finite].astype(np.float64)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        if self.rows is None or expected.ndim != 2 or expected.shape[1] < 2:
            self.rows = None
            return
        self.rows += len(expected)
        self.same += int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())

    def result(self, name: str) -> OutputError:
        return OutputError(
            name=name,
            relative=self.parts.relative,
            max_abs=self.max_abs,
            agreement=self.same / self.rows if self.rows else None,
            parts=part_reports(self.parts.parts()),
            lost=tuple(self.parts.losses(f"output {name!r}")),
        )
