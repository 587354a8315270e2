"""Ranges of activations, in bounded memory: one small batch of activations is held at a time.

The first pass over the data finds the extremes; for the entropy and percentile methods a second one counts values in
bins of that known range. So the histograms are those that all data together would give.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxsep.data import Dataset
from onnxsep.errors import DataError, spelled
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.histograms import Histogram, entropy_range, percentile_range
from onnxsep.quantization.settings import Settings
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_HELD = 256 * 2**20  # bytes of activations at a time, as far as single samples allow
_LARGEST_BATCH = 16


def float_tensors(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of the tensors of the main graph, as far as they are known; weights are not among them."""
    entries = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {
        entry.name: entry.type.tensor_type.elem_type
        for entry in entries
        if entry.type.HasField("tensor_type") and entry.name not in weights
    }


def calibrate(
    proto: onnx.ModelProto,
    tensors: Collection[str],
    data: Dataset,
    indices: Sequence[int],
    settings: Settings,
    options: RuntimeOptions,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """Find the range of each activation.

    Args:
        proto: The prepared model.
        tensors: Names of float32 tensors of its main graph.
        data: The calibration data.
        indices: The samples to use.
        settings: The method.
        options: How the model is run.
        progress: Told of every batch.

    Returns:
        The smallest and the largest value that each activation can have once it is quantised.

    Raises:
        QuantizationError: the runtime cannot run the model, or an activation is NaN or infinite.
        DataError: an image cannot be read, or the data gives an activation no values.
    """
    activations = _Activations(proto, tensors, data, indices, options, progress)
    passes = 1 if settings.method == "minmax" else 2
    extremes: dict[str, tuple[float, float]] = {}
    for values in activations.batches("calibrate", 0, passes):
        for name, array in values.items():
            if not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise QuantizationError(
                    f"the activation {name!r} is NaN or infinite on the calibration data, so it has no range; look at"
                    f" the data and its preprocessing, or leave the nodes around it in float ({spelled('exclude')})"
                )
            before = extremes.get(name, (low, high))
            extremes[name] = min(low, before[0]), max(high, before[1])
    if empty := [name for name in tensors if name not in extremes]:
        raise DataError(f"{data.source}: the activation {empty[0]!r} is empty on every sample, so it has no range")
    if passes == 1:
        return extremes
    histograms = {name: Histogram.empty(settings.method, *extremes[name]) for name in tensors}
    for values in activations.batches("calibrate", 1, passes):
        for name, array in values.items():
            histograms[name].add(array)
    if settings.method == "entropy":
        return {name: entropy_range(found) for name, found in histograms.items()}
    return {name: percentile_range(found, settings.percentile) for name, found in histograms.items()}


class _Activations:
    """Runs the model and hands out activations, a batch at a time."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        tensors: Collection[str],
        data: Dataset,
        indices: Sequence[int],
        options: RuntimeOptions,
        progress: Progress | None,
    ) -> None:
        inputs = {entry.name for entry in proto.graph.input}
        self._fed = [name for name in tensors if name in inputs]
        types = float_tensors(proto)
        watched = onnx.ModelProto()
        watched.CopyFrom(proto)
        del watched.graph.output[:]
        for name in tensors:
            if name not in inputs:
                watched.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
        self._data, self._indices, self._progress = data, indices, progress
        try:
            # Not optimised: fused nodes would round differently from the ones that are calibrated.
            self._run = Runner(Model(watched), replace(options, optimize=False)) if watched.graph.output else None
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot run the model: {error}") from error
        self._batch: int | None = None

    def batches(self, what: str, number: int, passes: int) -> Iterator[dict[str, np.ndarray]]:
        if self._batch is None:
            first = next(self._data.batches(self._indices, 1, fill=True))
            held = sum(array.nbytes for array in self._values(first).values())
            self._batch = max(1, min(_LARGEST_BATCH, _HELD // max(held, 1)))
        parts = list(self._data.batches(self._indices, self._batch, fill=True))
        for done, part in enumerate(parts, start=1):
            yield self._values(part)
            if self._progress is not None:
                self._progress(what, number * len(parts) + done, passes * len(parts))

    def _values(self, part: Sequence[int]) -> dict[str, np.ndarray]:
        feed = self._data.feed(part)
        found = {name: feed[name] for name in self._fed}
        if self._run is None:
            return found
        try:
            return found | self._run(feed)
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot run the model on the calibration data: {error}") from error
