"""Bias correction: each layer's output gets the mean back that quantisation shifts.

Rounded weights and activations move the mean of a Conv's output, channel by channel, and layers behind it add to that.
The bias can take it back: delta = E[float output] - E[quantised output], over the calibration samples. Layers are taken
in graph order, and what a layer reads comes from the quantised network whose earlier layers are corrected already
(M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2, in the
empirical form). Weights are not touched. Which layers that concerns says ``targets``.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.calibration.frontier import Frontier, Store
from onnxsep.data import Dataset
from onnxsep.graph.scopes import reads
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.pending import Pending
from onnxsep.quantization.targets import Target, find_targets
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

Array = npt.NDArray[np.float64]

_HELD = 256 * 2**20  # bytes of activations in memory; more go to temporary files
_BATCH = 16


@dataclass(frozen=True)
class Corrections:
    """What was found.

    Attributes:
        biases: The corrected biases, [channels], by the name of the layer.
        added: Names of the layers that had no bias.
        left: Names of quantised layers whose mean cannot be corrected.
        failed: Why none could be found, "" where they were.
    """

    biases: dict[str, Array] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    failed: str = ""


def find_corrections(
    prepared: onnx.ModelProto,
    simulated: onnx.ModelProto,
    quantized: Collection[str],
    data: Dataset,
    indices: Sequence[int],
    options: RuntimeOptions,
    progress: Progress | None = None,
) -> Corrections:
    """Measure how far the means of the layers' outputs are off, each with all earlier ones corrected.

    At most 256 MB of activations are in memory; what is more goes to temporary files.

    Args:
        prepared: The float model that was quantised; every node has a name.
        simulated: The same with QuantizeLinear and DequantizeLinear nodes, as the quantiser gives it.
        quantized: Names of the nodes that are quantised.
        data: The calibration data.
        indices: The samples to use.
        options: How models are run.
        progress: Told of every layer.

    Raises:
        QuantizationError: the runtime cannot run a model.
        CalibrationError: it cannot run a piece of the quantised one, or activations cannot be written.
        DataError: an image cannot be read.
    """
    targets, left = find_targets(prepared, quantized)
    known = {node.name for node in simulated.graph.node}
    left += [target.name for target in targets if not {target.name, target.seen} <= known]
    targets = [target for target in targets if {target.name, target.seen} <= known]
    options = replace(options, optimize=False)  # fused nodes would round differently
    batches = list(data.batches(indices, _BATCH, fill=True))
    announce(progress, "bias correction")
    expected = _float_means(prepared, targets, data, batches, options)
    walk = _Walk(simulated, targets, (data.feed(batch) for batch in batches), options)
    biases = {}
    for number, target in enumerate(targets, start=1):
        announce(progress, f"bias correction: {target.name}", number - 1, len(targets))
        delta = expected[target.name] - walk.mean(target)
        if np.isfinite(delta).all():
            biases[target.name] = walk.correct(target, delta)
        else:
            left.append(target.name)
        if progress is not None:
            progress("bias correction", number, len(targets))
    return Corrections(biases, tuple(target.name for target in targets if not target.bias), tuple(left))


def set_biases(prepared: onnx.ModelProto, corrections: Corrections) -> None:
    """Give the layers of a float model their corrected biases, in place."""
    tensors = {tensor.name: tensor for tensor in prepared.graph.initializer}
    taken = {name for node in prepared.graph.node for name in (*reads(node), *node.output)} | set(tensors)
    for node in prepared.graph.node:
        values = corrections.biases.get(node.name)
        if values is None:
            continue
        if node.name not in corrections.added:
            bias = tensors[node.input[2]]
            bias.CopyFrom(numpy_helper.from_array(_float32(values), bias.name))
            continue
        name = f"{node.output[0]}_bias"
        while name in taken:
            name += "_"
        taken.add(name)
        prepared.graph.initializer.append(numpy_helper.from_array(_float32(values), name))
        _set_bias(node, name)


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)


def _set_bias(node: onnx.NodeProto, name: str) -> None:
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)


def _averaged(output: str, target: Target) -> tuple[str, list[onnx.NodeProto]]:
    """A small tensor with the means of an output over its spatial axes, and the nodes that compute it."""
    if not target.spatial:
        return output, []
    name = f"{output}__mean_of__{target.name}"
    return name, [onnx.helper.make_node("GlobalAveragePool", [output], [name])]


class _Mean:
    """Mean over all axes but the channels', batch by batch."""

    def __init__(self, channels: int) -> None:
        self._sum, self._rows = np.zeros(channels), 0

    def add(self, values: npt.NDArray[Any]) -> None:
        rows = np.moveaxis(values.astype(np.float64), 1, -1).reshape(-1, len(self._sum))
        self._sum += rows.sum(axis=0)
        self._rows += len(rows)

    def value(self) -> Array:
        return self._sum / max(self._rows, 1)


def _float_means(
    prepared: onnx.ModelProto,
    targets: Sequence[Target],
    data: Dataset,
    batches: Sequence[list[int]],
    options: RuntimeOptions,
) -> dict[str, Array]:
    outputs = {node.name: node.output[0] for node in prepared.graph.node}
    watched = onnx.ModelProto()
    watched.CopyFrom(prepared)
    del watched.graph.output[:]
    names = {}
    for target in targets:
        names[target.name], nodes = _averaged(outputs[target.seen], target)
        watched.graph.node.extend(nodes)
        watched.graph.output.add(name=names[target.name])
    means = {target.name: _Mean(target.channels) for target in targets}
    if not targets:
        return {}
    try:
        runner = Runner(Model(watched), options)
        for batch in batches:
            values = runner(data.feed(batch))
            for name, mean in means.items():
                mean.add(values[names[name]])
    except CannotRun as error:
        raise QuantizationError(f"the runtime cannot run the model on the calibration data: {error}") from error
    return {name: mean.value() for name, mean in means.items()}


class _Walk:
    """The quantised network, run up to one layer after the other.

    What is kept between two layers are integers, the outputs of QuantizeLinear: DequantizeLinear nodes are run again
    wherever they are needed, and so are nodes that only have constants to read.
    """

    def __init__(
        self,
        simulated: onnx.ModelProto,
        targets: Sequence[Target],
        feeds: Iterable[Mapping[str, npt.NDArray[Any]]],
        options: RuntimeOptions,
    ) -> None:
        self._nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in simulated.graph.node]
        self._place = {node.name: place for place, node in enumerate(self._nodes)}
        self._maker = {name: place for place, node in enumerate(self._nodes) for name in node.output if name}
        self._tensors = {tensor.name: tensor for tensor in simulated.graph.initializer}
        self._again = self._run_again(simulated)
        self._live = {entry.name for entry in simulated.graph.input} - set(self._tensors)
        goals = [self._place[target.seen] for target in targets]
        self._pending = Pending([set(reads(node)) for node in self._nodes], self._maker, goals, self._live)
        self._frontier = Frontier(Model(simulated), feeds, options, Store(_HELD))

    def _run_again(self, simulated: onnx.ModelProto) -> set[int]:
        known = {*self._tensors, *(tensor.values.name for tensor in simulated.graph.sparse_initializer)}
        again = set()
        for place, node in enumerate(self._nodes):
            constant = known.issuperset(reads(node))
            if constant:
                known.update(node.output)
            if constant or node.op_type == "DequantizeLinear":
                again.add(place)
        return again

    def mean(self, target: Target) -> Array:
        """Mean of the output where a target is seen, [channels]; targets are asked for in their order."""
        goal = self._place[target.seen]
        needed = self._behind(goal)
        changing = self._changed_by(self._place[target.name], needed)
        final = needed - self._again - changing
        made = {name for place in final for name in self._nodes[place].output if name}
        self._pending.done(goal, made)
        keep = {name for name in self._live | made if name in self._pending}
        name, averaging = _averaged(self._nodes[goal].output[0], target)
        self._frontier.advance([*(self._nodes[place] for place in sorted(needed)), *averaging], {*keep, name})
        self._live = keep
        mean = _Mean(target.channels)
        for batch in range(self._frontier.batches):
            mean.add(self._frontier.value(batch, name))
        return mean.value()

    def correct(self, target: Target, delta: Array) -> Array:
        """Let the target have this much more as its bias from now on, rounded as it will be; gives the new bias."""
        node = self._nodes[self._place[target.name]]
        bias, scale = self._bias(node.input[2]) if target.bias else (np.zeros(target.channels), None)
        bias = bias + delta
        used = bias if scale is None else np.rint(bias / scale) * scale
        name = f"{node.output[0]}__corrected"
        self._frontier.add_initializer(numpy_helper.from_array(_float32(used), name))
        _set_bias(node, name)
        return bias

    def _bias(self, name: str) -> tuple[Array, Array | None]:
        """A bias, and the scale of its integers if it is quantised."""
        if name in self._tensors:
            return numpy_helper.to_array(self._tensors[name]).astype(np.float64), None
        integers, scale = (
            numpy_helper.to_array(self._tensors[source]).astype(np.float64)
            for source in self._nodes[self._maker[name]].input[:2]
        )
        return integers * scale, scale

    def _behind(self, goal: int) -> set[int]:
        """The nodes that lead from what is there to a goal."""
        found, waiting = {goal}, [goal]
        while waiting:
            for name in reads(self._nodes[waiting.pop()]):
                if name not in self._live and name in self._maker and (place := self._maker[name]) not in found:
                    found.add(place)
                    waiting.append(place)
        return found

    def _changed_by(self, start: int, among: Collection[int]) -> set[int]:
        """The node and those of the others that depend on it."""
        changed = {start}
        for place in sorted(among):
            if any(self._maker.get(name) in changed for name in reads(self._nodes[place])):
                changed.add(place)
        return changed
