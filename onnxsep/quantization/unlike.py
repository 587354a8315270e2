"""What joins unlike ranges stays in float: boxes in pixels beside scores, whose 256 levels would all go to the boxes.

A tensor is *unlike* if one scale for all of it leaves fewer than 16 levels to one of its parts (``parts``), 64 where no
layer comes between it and an output, or 8 to one channel of the last layer. It matters where the values go on to
an output of the model, or to a layer in which the noise of the large part would cover the small one. There no node
reads or makes it in integers; layers stay in int8, for they are given factors by powers of two (``rescaling``), which
change no result.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.data import Dataset
from onnxsep.graph.index import Index
from onnxsep.model.io import Model
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.nodes import to_calibrate
from onnxsep.quantization.part_labels import THROUGH, Labelling, is_layer
from onnxsep.quantization.part_ranges import Ranges
from onnxsep.quantization.rescaling import Rescaler
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

_LEVELS = 256
_FEWEST = 16  # levels of a part: a step of 6 % of its range
_FEWEST_AT_THE_END = 64  # where that step is the error of an output, and only cheap operators stay in float
_FEWEST_OF_CHANNELS = 8  # of a channel beside others of its layer, such as the class that varies least
_SAMPLES = 32
_ENDLESS = 1e30  # what stands for infinity, in masks before a Softmax and pads before a MaxPool
_LESS_NOISE = 2.0  # a layer reads parts with scales of their own where that lowers its noise so many times
_SOFTMAX_TOP = 1 / 8  # the quantiser always lets a Softmax have the range 0..1


@dataclass(frozen=True)
class Unlike:
    """One tensor whose parts have unlike ranges.

    Attributes:
        name: The tensor.
        levels: What one scale would leave to its smallest part.
        ranges: Its parts.
    """

    name: str
    levels: float
    ranges: Ranges

    @property
    def reason(self) -> str:
        """Why what touches it stays in float."""
        return (
            f"one scale for {self.name!r}, which joins unlike ranges, would leave {self.levels:.2g} of {_LEVELS} levels"
            " to a part of it"
        )


def keep_unlike_in_float(
    proto: onnx.ModelProto,
    op_types: Collection[str],
    left: Mapping[str, str],
    data: Dataset,
    indices: Sequence[int],
    options: RuntimeOptions,
    *,
    integer_inputs: bool = False,
) -> dict[str, str]:
    """Find the tensors that one scale would spoil, and give the layers around them factors, in place.

    Args:
        proto: The prepared model; every node has a name. Nodes may be added to it, and weights changed.
        op_types: Operators that are quantised.
        left: Nodes that stay in float anyway.
        data: The calibration data.
        indices: Samples to look at; a few of them are used.
        options: How the model is run.
        integer_inputs: Inputs are to hold integers, so they get one scale whatever is in them.

    Returns:
        Reasons by the names of the further nodes that stay in float.

    Raises:
        QuantizationError: the runtime cannot run the model.
        DataError: an image cannot be read.
    """
    search = _Search(proto, op_types, left)
    if not search.tensors:
        return {}
    found = search.measure(data, list(indices)[:_SAMPLES], replace(options, optimize=False))
    if integer_inputs:
        inputs = {entry.name for entry in proto.graph.input}
        found = {name: unlike for name, unlike in found.items() if name not in inputs}
    return {**search.spare(found), **search.small_softmaxes(), **search.beside_endless()}


def _is_endless(values: npt.NDArray[np.generic]) -> bool:
    largest = np.abs(values).max(initial=0)
    return bool(largest > _ENDLESS)  # not where a value is NaN, which is an error


class _Search:
    def __init__(self, proto: onnx.ModelProto, op_types: Collection[str], left: Mapping[str, str]) -> None:
        self._proto, self._left = proto, left
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.tensors = frozenset(to_calibrate(proto, op_types, left))
        self._nodes = {node.name: node for node in proto.graph.node}
        self._quantized = {
            node.name
            for node in proto.graph.node
            if node.op_type in op_types and node.name not in left and self.tensors & {*node.input, *node.output}
        }
        self._index = Index(proto)
        self._made = [name for node in self._index.nodes[0] for name in node.output if name]
        self._tops: dict[str, float] = {}
        self._endless: frozenset[str] = frozenset()
        self._watched: list[str] = []

    def _tail(self) -> frozenset[str]:
        """Tensors that become outputs without passing a layer or what mixes their values."""
        found = {entry.name for entry in self._proto.graph.output}
        waiting = list(found)
        while waiting:
            node = self._index.maker(waiting.pop())
            if node is None or is_layer(node, self._constants) or node.op_type not in THROUGH:
                continue
            fresh = [name for name in node.input if name and name not in found and name not in self._constants]
            found.update(fresh)
            waiting += fresh
        return frozenset(found)

    def measure(self, data: Dataset, indices: Sequence[int], options: RuntimeOptions) -> dict[str, Unlike]:
        batches = list(data.batches(indices, 1))
        first = self._run(data, batches[0], self._made, options)
        self._endless = frozenset(name for name in self.tensors & set(self._made) if _is_endless(first[name]))
        tail = self._tail()
        labelling = Labelling(self._proto, first, tail, options)
        labels, origins = labelling.run(), labelling.origins
        ranges = {name: Ranges(labels[name]) for name in self.tensors - self._endless if name in labels}
        chosen = self._choices()
        ranges = {name: found for name, found in ranges.items() if len(found) > 1 and name not in chosen}
        ranges |= {name: Ranges(np.arange(1, 1 + len(names))) for name, names in chosen.items()}
        operands = {name for names in chosen.values() for name in names}
        tops = [node.output[0] for node in self._softmaxes()]
        del first, labels
        watched = sorted({*ranges, *operands, *tops} & set(self._made))
        for batch in batches if watched or ranges else []:
            values = self._run(data, batch, watched, options)
            for name, parts in ranges.items():
                for place, operand in enumerate(chosen.get(name, ())):
                    value = self._value(operand, values)
                    parts.low[place] = min(parts.low[place], float(value.min(initial=np.inf)))
                    parts.high[place] = max(parts.high[place], float(value.max(initial=-np.inf)))
                if name not in chosen:
                    parts.add(values[name])
            for name in tops:
                self._tops[name] = max(self._tops.get(name, 0.0), float(values[name].max(initial=0)))
        found = {}
        for name, parts in ranges.items():
            levels = _LEVELS * parts.smallest(None if name in chosen else origins)
            of_channels = _LEVELS * parts.smallest()
            fewest = _FEWEST_AT_THE_END if name in tail else _FEWEST
            if levels < fewest or of_channels < _FEWEST_OF_CHANNELS:
                found[name] = Unlike(name, min(levels, of_channels), parts)
        return found

    def _run(
        self, data: Dataset, batch: Sequence[int], names: Sequence[str], options: RuntimeOptions
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Values of an input and of what nodes make of it."""
        feed = data.feed(batch)
        if not names:
            return dict(feed)
        if names != self._watched:
            watched = onnx.ModelProto()
            watched.CopyFrom(self._proto)
            del watched.graph.output[:]
            for name in names:
                watched.graph.output.add(name=name)
            try:
                self._runner, self._watched = Runner(Model(watched), options), list(names)
            except CannotRun as error:
                raise QuantizationError(f"the runtime cannot run the model: {error}") from error
        try:
            return {**feed, **self._runner(feed)}
        except CannotRun as error:
            raise QuantizationError(f"the runtime cannot run the model on the calibration data: {error}") from error

    def _value(self, name: str, values: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else values[name]

    def _choices(self) -> dict[str, list[str]]:
        """Outputs of Where whose condition is computed, so that no place is always that of the same operand."""
        return {
            node.output[0]: list(node.input[1:3])
            for node in self._proto.graph.node
            if node.op_type == "Where" and node.input[0] not in self._constants and node.output[0] in self.tensors
        }

    def _softmaxes(self) -> list[onnx.NodeProto]:
        return [node for node in self._nodes.values() if node.op_type == "Softmax" and node.name in self._quantized]

    def beside_endless(self) -> dict[str, str]:
        """Nodes that make or read infinity, as in a mask, with the reason why they stay in float."""
        return {
            node.name: f"{name!r} holds infinity, or what stands for it, and no range does"
            for node in self._nodes.values()
            for name in (*node.output, *node.input)
            if name in self._endless and node.name in self._quantized
        }

    def small_softmaxes(self) -> dict[str, str]:
        """Softmaxes over so many values that each is small, with the reason why they stay in float."""
        return {
            node.name: f"its values reach only {top:.2g}, and the quantiser has one range for every Softmax, 0..1"
            for node in self._softmaxes()
            if 0 < (top := self._tops.get(node.output[0], 1.0)) < _SOFTMAX_TOP
        }

    def spare(self, found: Mapping[str, Unlike]) -> dict[str, str]:
        """Decide what stays in float, and change the layers around it."""
        rescaler = Rescaler(self._proto)
        gains = {
            (name, node.name): rescaler.gain(node, unlike.ranges)
            for name, unlike in found.items()
            for node in self._reading(name)
            if self._reads_as_layer(node, name)
        }
        matter = self._matter(found, gains)
        reasons: dict[str, str] = {}
        for name, unlike in found.items():
            if name not in matter:
                continue
            for node in self._reading(name):
                if self._reads_as_layer(node, name):
                    added = rescaler.before(node, unlike.ranges, gains[name, node.name] >= _LESS_NOISE)
                    reasons[added] = unlike.reason
                elif node.name in self._quantized:
                    reasons[node.name] = unlike.reason
            maker = self._index.maker(name)
            if maker is None or maker.name not in self._quantized:
                continue
            added = rescaler.behind(maker, unlike.ranges) if is_layer(maker, self._constants) else ""
            reasons[added or maker.name] = unlike.reason
        rescaler.finish()
        return reasons

    def _reading(self, name: str) -> list[onnx.NodeProto]:
        return [self._index.node(place) for place in self._index.readers(name)]

    def _reads_as_layer(self, node: onnx.NodeProto, name: str) -> bool:
        return node.name in self._quantized and is_layer(node, self._constants) and node.input[0] == name

    def _matter(self, found: Mapping[str, Unlike], gains: Mapping[tuple[str, str], float]) -> set[str]:
        """Those whose small parts reach an output, a layer that needs them, or an operator that takes them apart."""
        known: dict[str, bool] = {}

        def matters(name: str) -> bool:
            if any(use.scope or use.place is None for use in self._index.uses(name)):
                return True
            for node in self._reading(name):
                if (name, node.name) in gains:
                    if gains[name, node.name] >= _LESS_NOISE:
                        return True
                elif is_layer(node, self._constants):
                    continue  # in float
                elif any(other not in found or known[other] for other in node.output if other):
                    return True
            return False

        for node in reversed(self._proto.graph.node):  # which are in topological order
            for name in node.output:
                if name in found:
                    known[name] = matters(name)
        known |= {entry.name: matters(entry.name) for entry in self._proto.graph.input if entry.name in found}
        return {name for name, value in known.items() if value}
