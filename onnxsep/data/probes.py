"""What a model gives for samples that are preprocessed in one way or another: the evidence of a criterion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxsep.data.criteria import Accuracy, Classes, Consistency, Criterion, Likeness, Normalization, probabilities
from onnxsep.data.images import ImageReader
from onnxsep.errors import DataError, OptionError
from onnxsep.graph.constants import find_constant
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import Model, read_tensor
from onnxsep.running.integer_io import RealRunner
from onnxsep.running.runtime import CannotRun, RuntimeOptions
from onnxsep.running.scores import as_scores, find_scores

Pixels = npt.NDArray[np.uint8]
_BATCH = 16
_SHIFT = 16  # a sample is moved by the sixteenth part of its sides
_LAYERS = 5  # BatchNormalizations that are looked at
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass
class Pictures:
    """Pixels of samples in the order of a trial, each read once; those that cannot be read are left out.

    Attributes:
        read: Gives those of a sample, uint8 [H, W, C], by its number in the data.
        order: Numbers of the samples.
        labels: Classes of all samples of the data, by number; None where there are none.
        seen: Classes of the samples that were read.
    """

    read: Callable[[int], Pixels]
    order: Sequence[int]
    labels: npt.NDArray[np.int64] | None = None
    seen: list[int] = field(default_factory=list)
    _kept: list[Pixels] = field(default_factory=list)
    _next: int = 0

    def load(self, count: int) -> int:
        """Read so many, or all that there are; how many have been read."""
        while len(self._kept) < count and self._next < len(self.order):
            number = self.order[self._next]
            self._next += 1
            try:
                self._kept.append(self.read(number))
            except DataError:  # the command itself will say so, where it uses this one
                continue
            if self.labels is not None:
                self.seen.append(int(self.labels[number]))
        return min(count, len(self._kept))

    def __getitem__(self, place: int) -> Pixels:
        return self._kept[place]


def moved(pixels: Pixels) -> Pixels:
    """The same picture some pixels to the right and down; what enters is like the edge."""
    by = [max(1, round(side / _SHIFT)) for side in pixels.shape[:2]]
    padded = np.pad(pixels, ((by[0], 0), (by[1], 0), (0, 0)), "edge")
    return padded[: pixels.shape[0], : pixels.shape[1]]


class Probe:
    """Runs a model on samples and keeps what a criterion needs.

    Args:
        criterion: What the evidence is for.
        runner: Runs the model, or its beginning.
        keep: Takes outputs and inputs [samples, ...] of a run and gives evidence: arrays with a first axis of samples.
        batch: The only number of samples that the model takes; None where it takes any.
    """

    def __init__(
        self,
        criterion: Criterion,
        runner: Callable[[Mapping[str, Any]], dict[str, Any]],
        keep: Callable[[Mapping[str, Any], npt.NDArray[Any]], list[npt.NDArray[Any]]],
        batch: int | None,
    ) -> None:
        self.criterion, self._runner, self._keep, self._batch = criterion, runner, keep, batch

    def rows(self, reader: ImageReader, pictures: Sequence[Pixels]) -> list[npt.NDArray[Any]]:
        """Evidence for pictures, one array for each thing that is kept, [samples, ...].

        Raises:
            CannotRun: the model cannot be run.
        """
        size, parts = self._batch or _BATCH, []
        for start in range(0, len(pictures), size):
            chosen = list(pictures[start : start + size])
            values = [reader.values(one) for one in chosen]
            if self._batch is not None:
                values += [values[-1]] * (size - len(values))
            fed = np.stack(values)
            kept = self._keep(self._runner({reader.entry.name: fed}), fed)
            parts.append([array[: len(chosen)] for array in kept])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def evidence(self, rows: Sequence[npt.NDArray[Any]], again: Sequence[npt.NDArray[Any]]) -> Any:
        """What the criterion takes, from the rows of samples and, where it wants them, of moved samples."""
        if isinstance(self.criterion, Accuracy | Consistency):
            return Classes(rows[0], again[0] if again else rows[0])
        return list(rows) if isinstance(self.criterion, Normalization) else rows[0]


def find_probes(
    model: Model,
    reader: ImageReader,
    pictures: Pictures,
    output: str | None,
    runtime: RuntimeOptions,
) -> list[Probe]:
    """The probes that fit a model, the best first; none where no criterion does.

    Args:
        model: Has one input, for images.
        reader: Of that input.
        pictures: Of which the first shows what the model gives.
        output: The output with the class scores, where the user says it.
        runtime: How models are run.

    Raises:
        CannotRun: the model cannot be run.
    """
    dims = reader.entry.dims
    batch = dims[0] if dims and isinstance(dims[0], int) else None
    runner = RealRunner(model, runtime)
    fed = np.stack([reader.values(pictures[0])] * (batch or 1))
    outputs = runner({reader.entry.name: fed})
    found: list[Probe] = []
    name = _scores(outputs, len(fed), output)
    if name is not None:
        keep = _class_keeper(name)
        classes = keep(outputs, fed)[0].shape[1]
        labels = pictures.labels
        if labels is not None and int(labels.min()) >= 0 and int(labels.max()) < classes:
            found.append(Probe(Accuracy(pictures.seen), runner, keep, batch))
        found.append(Probe(Consistency(), runner, keep, batch))
    if (beginning := _normalization(model, runtime, batch)) is not None:
        found.append(beginning)
    like = [key for key, value in outputs.items() if _factor(value, fed, reader.layout)]
    if len(like) == 1 and name is None:
        found.append(Probe(Likeness(), runner, _like_keeper(like[0], reader.layout), batch))
    return found


def _scores(outputs: Mapping[str, Any], samples: int, output: str | None) -> str | None:
    try:
        return find_scores(outputs, samples, output)[0]
    except OptionError:  # the command itself says so
        return None


def _class_keeper(name: str) -> Callable[[Mapping[str, Any], npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    def keep(outputs: Mapping[str, Any], fed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        scores = as_scores(outputs[name], len(fed))
        if scores is None:
            raise CannotRun(f"the output {name!r} has another shape than before")
        return [probabilities(scores)]

    return keep


def _first_channels(array: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)


def _factor(value: Any, fed: npt.NDArray[Any], layout: str) -> int:
    """How many times as large the images are that a model makes of images; 0 where it makes none."""
    if not isinstance(value, np.ndarray) or value.ndim != 4 or value.dtype.kind != "f" or value.shape[0] != len(fed):
        return 0
    made, given = _first_channels(value, layout).shape, _first_channels(fed, layout).shape
    factor = made[2] // given[2]
    return factor if made == (*given[:2], factor * given[2], factor * given[3]) else 0


def _like_keeper(name: str, layout: str) -> Callable[[Mapping[str, Any], npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    def keep(outputs: Mapping[str, Any], fed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        factor = _factor(outputs[name], fed, layout)
        given = _first_channels(fed, layout).astype(np.float64)
        samples, channels, height, width = given.shape
        blocks = (samples, channels, height, factor, width, factor)
        made = _first_channels(outputs[name], layout).astype(np.float64).reshape(blocks).mean(axis=(3, 5))
        error = np.abs(made - given).mean(axis=(1, 2, 3))
        spread = np.abs(given - given.mean(axis=(1, 2, 3), keepdims=True)).mean(axis=(1, 2, 3))
        return [np.stack([error, spread], axis=1)]

    return keep


def _normalization(model: Model, runtime: RuntimeOptions, batch: int | None) -> Probe | None:
    """A probe of the model's beginning, up to what its first BatchNormalizations read; None where it has none."""
    graph = model.proto.graph
    layers = [node for node in graph.node if node.op_type == "BatchNormalization" and not node.domain][:_LAYERS]
    found = scopes(model.proto)
    stored = []
    for node in layers:
        tensors = [find_constant(found, 0, name) for name in node.input[3:5]]
        if len(tensors) < 2 or any(tensor is None or tensor.data_type not in _FLOATS for tensor in tensors):
            return None
        mean, variance = (read_tensor(model, tensor).astype(np.float64) for tensor in tensors if tensor is not None)
        stored.append((mean, variance))
    beginning = None if not layers else _up_to(model, list(dict.fromkeys(node.input[0] for node in layers)))
    if beginning is None:
        return None
    names = [node.input[0] for node in layers]

    def keep(outputs: Mapping[str, Any], fed: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        kept = []
        for name in names:
            value = outputs.get(name, fed).astype(np.float64)
            flat = value.reshape(*value.shape[:2], -1)
            kept.append(np.stack([flat.mean(axis=2), flat.var(axis=2)], axis=1))
        return kept

    try:
        return Probe(Normalization(stored), RealRunner(beginning, runtime), keep, batch)
    except CannotRun:
        return None


def _up_to(model: Model, names: Sequence[str]) -> Model | None:
    """The part of the main graph that computes these tensors; None where nested graphs are in it."""
    graph = model.proto.graph
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    kept: set[int] = set()
    pending = list(names)
    while pending:
        index = makers.get(pending.pop())
        if index is not None and index not in kept:
            kept.add(index)
            pending += graph.node[index].input
    if any(attribute.HasField("g") for index in kept for attribute in graph.node[index].attribute):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(graph.node[index] for index in sorted(kept))
    used = {name for index in kept for name in graph.node[index].input}
    del proto.graph.initializer[:], proto.graph.input[:]
    proto.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
    proto.graph.input.extend(value for value in graph.input if value.name in used)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name in makers)
    if not proto.graph.output:
        return None
    return Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)
