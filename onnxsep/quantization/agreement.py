"""Whether a model that a step made still computes what the source does, on a few samples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx

from onnxsep.data import Dataset
from onnxsep.model.io import Model
from onnxsep.quantization.errors import QuantizationError
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_BATCHES = 2
_SAMPLES = 2  # in each of them, as far as the model leaves the number open
_SAME = 1e-3  # relative error that rounding alone can make
_OFTEN = 10  # where it makes more in the source, so many times that
_FEW = 0.05  # share of the elements of an integer output that rounding may change


class Agreement:
    """Runs the source once, and other models to be compared with it.

    Args:
        source: The user's model.
        data: The calibration data.
        indices: Samples that may be used.
        options: How models are run.

    Raises:
        QuantizationError: the runtime cannot run the source.
        DataError: an image cannot be read.
    """

    def __init__(self, source: Model, data: Dataset, indices: Sequence[int], options: RuntimeOptions) -> None:
        self._options = options
        parts = islice(data.batches(indices, _SAMPLES), _BATCHES)
        self._feeds = [data.feed(part) for part in parts]
        try:
            runner = Runner(source, options)
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot load the model: {error}") from error
        try:
            self._expected = [runner(feed) for feed in self._feeds]
            again = [runner(feed) for feed in self._feeds]
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot run the model on the calibration data: {error}") from error
        first = self._errors(again)
        self._stable = {name for name, error in first.items() if error <= _SAME}  # not the random ones
        self._rounding = self._errors_of_rounding(source)

    def _errors_of_rounding(self, source: Model) -> dict[str, float]:
        """What outputs change by when the source itself is computed in another order."""
        try:
            runner = Runner(source, replace(self._options, optimize=not self._options.optimize))
            return self._errors([runner(feed) for feed in self._feeds])
        except CannotRun:
            return {}

    def errors(self, proto: onnx.ModelProto) -> dict[str, float]:
        """Relative error of each float output; infinite where it has another shape or is not finite any more.

        Raises:
            CannotRun: the runtime cannot run the model.
        """
        inputs = {entry.name for entry in proto.graph.input}
        runner = Runner(Model(proto), self._options)
        found = [runner({name: value for name, value in feed.items() if name in inputs}) for feed in self._feeds]
        return {name: error for name, error in self._errors(found).items() if name in self._stable}

    def difference(self, proto: onnx.ModelProto) -> str:
        """What a model that should compute the same computes otherwise; "" where it does compute the same."""
        try:
            errors = self.errors(proto)
        except CannotRun as error:
            return f"the runtime cannot run it: {error}"
        for name, distance in errors.items():
            if not distance <= max(_SAME, _OFTEN * self._rounding.get(name, 0.0)):
                return f"output {name!r} differs by {distance:.2g} of its norm"
        return ""

    def _errors(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        floats: dict[str, float] = {}
        others: dict[str, float] = {}
        for name in self._expected[0]:
            pairs: list[tuple[Any, Any]] = [
                (mine[name], his.get(name)) for mine, his in zip(self._expected, found, strict=True)
            ]
            if not all(isinstance(value, np.ndarray) for pair in pairs for value in pair):
                continue
            if any(mine.shape != his.shape for mine, his in pairs):
                (floats if pairs[0][0].dtype.kind == "f" else others)[name] = math.inf
            elif pairs[0][0].dtype.kind == "f":
                floats[name] = _relative(pairs)
            elif pairs[0][0].dtype.kind in "iub":
                changed = [share for mine, his in pairs for share in _changed(mine, his)]
                others[name] = 0.0 if not changed or np.mean(changed) <= _FEW else math.inf
        return floats or others


def _relative(pairs: Sequence[tuple[Any, Any]]) -> float:
    error = size = 0.0
    for mine, his in pairs:
        finite = np.isfinite(mine)
        if not np.isfinite(his[finite]).all():
            return math.inf
        wide = mine[finite].astype(np.float64)
        error += float(np.square(wide - his[finite]).sum())
        size += float(np.square(wide).sum())
    if not error:
        return 0.0
    return math.sqrt(error / size) if size else (0.0 if math.sqrt(error) < _SAME else math.inf)


def _changed(mine: Any, his: Any) -> Iterator[float]:
    if mine.size:
        yield float(np.mean(mine != his))
