"""What stands behind a Conv beyond what ``onnxsep.calibration.schedule.Tail`` says in numbers.

From one tensor on, nodes are followed that treat every element by itself: activations, also those that several nodes
make (x Sigmoid(x), x Clip(x + 3) / 6, x Erf(x)), sums with and products by other tensors, constants for each channel.
A node may have several readers as long as all that they make comes together in one tensor again. A Concat only moves
the channels, so what follows it counts for this Conv's share of them. They are run as they are, on rows of values.
A product by a gate that is made of the same tensor (``onnxsep.calibration.gates``) counts as one by another tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.calibration.gates import own_gate
from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import is_standard, opset_version
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model

_UNARY = frozenset(
    """Abs Celu Clip Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal Relu Selu Sigmoid
    Softplus Softsign Sqrt Swish Tanh ThresholdedRelu""".split()  # noqa: SIM905 - one line for each is too long
)
_SEVERAL = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"})
_NOTHING = frozenset({"Identity", "Neg"})  # with these alone nothing counts otherwise
_NORM = "BatchNormalization"
_FIRST_ALONE = frozenset({"Clip", "PRelu", "Pow", _NORM})  # their further operands are settings, and constant
_LARGEST = 24  # nodes
_BROADCASTS = 7  # the operator set from which on operands broadcast by themselves


@dataclass(frozen=True)
class Region:
    """Nodes from one tensor to another, on the channels of one Conv.

    Attributes:
        nodes: in order; the first ones read ``start``.
        constants: float32, by name: numbers, or [channels, 1, ...].
        start: the tensor that they begin with.
        end: the one that they end in.
        skips: tensors that come from elsewhere.
        offset: where the Conv's channels begin in each of these.
        opset: of the nodes.
        shorter: the part before the last of the skips comes in; None where there is none.
        gates: those of the skips that depend on the Conv itself, and are taken from the original network.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: dict[str, NDArray[np.float32]]
    start: str
    end: str
    skips: tuple[str, ...] = ()
    offset: tuple[int, ...] = ()
    opset: int = 17
    shorter: "Region | None" = None
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class _State:
    """How far a region has come: ``end`` names the tensor in the model, ``inner`` in the region."""

    region: Region
    end: str
    inner: str
    before: int = 0  # channels of others in front of the Conv's own
    channels: int = 0


class Grower:
    """Finds regions in the main graph of a model.

    Args:
        model: the source.
        index: of it.
        channels_of: how many channels a tensor has; None where that is not known.
    """

    def __init__(self, model: Model, index: Index, channels_of: Callable[[str], int | None]) -> None:
        self._model, self._index, self._channels_of = model, index, channels_of
        self._opset = opset_version(model.proto, index.scopes, 0)

    def region(self, conv: Conv, start: str, *, last_axis: bool) -> Region | None:
        """The largest region behind a tensor; None where nothing follows that it can hold.

        Args:
            conv: whose output it is, or follows from.
            start: the tensor.
            last_axis: whether its channels are the last axis, after any number of others (MatMul).
        """
        if self._opset < _BROADCASTS:
            return None
        empty = Region((), {}, start, start, opset=self._opset)
        state: _State | None = _State(empty, start, start, channels=conv.out_channels)
        found = empty
        while state is not None:
            found = state.region
            state = self._joined(state, conv) or self._gated(state, conv) or self._grown(state, conv, last_axis)
        return None if {node.op_type for node in found.nodes} <= _NOTHING else found

    def _joined(self, state: _State, conv: Conv) -> _State | None:
        """Behind a Concat along the channels that is the only reader."""
        readers = self._index.readers(state.end)
        if len(readers) != 1 or self._index.is_output(state.end) or not conv.dims:
            return None
        node = self._index.node(readers[0])
        if node.op_type != "Concat" or not is_standard(node) or list(node.input).count(state.end) != 1:
            return None
        if self._index.attribute(readers[0], "axis", 1) not in (1, -1 - conv.dims):
            return None
        counts = [state.channels if name == state.end else self._channels_of(name) for name in node.input]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        before = sum(known[: list(node.input).index(state.end)])
        return replace(state, end=node.output[0], before=state.before + before, channels=sum(known))

    def _gated(self, state: _State, conv: Conv) -> _State | None:
        """Behind the product with a gate of its own."""
        found = own_gate(self._model, self._index, state.end, conv.dims) if conv.dims else None
        if found is None or len(state.region.nodes) >= _LARGEST:
            return None
        made = self._node(found[0], {state.end: state.inner}, state.region, state, conv, last_axis=False)
        if made is None:
            return None
        node, region = made
        end = node.output[0]
        return replace(state, region=replace(region, end=end, gates=(*region.gates, found[1])), end=end, inner=end)

    def _grown(self, state: _State, conv: Conv, last_axis: bool) -> _State | None:
        """With the next nodes up to where everything comes together in one tensor."""
        inside = {state.end: state.inner}
        taken: dict[Place, onnx.NodeProto] = {}
        region = state.region
        while len(taken) + len(region.nodes) < _LARGEST:
            waiting = {place for name in inside for place in self._index.readers(name)} - taken.keys()
            if not waiting or any(map(self._index.is_output, inside)):
                return None
            place = min(waiting)
            found = self._node(place, inside, region, state, conv, last_axis)
            if found is None:
                return None
            node, region = found
            taken[place] = node
            inside[node.output[0]] = node.output[0]
            if not any(set(self._index.readers(name)) - taken.keys() for name in inside if name != node.output[0]):
                return replace(
                    state, region=replace(region, end=node.output[0]), end=node.output[0], inner=node.output[0]
                )
        return None

    def _node(
        self, place: Place, inside: dict[str, str], region: Region, state: _State, conv: Conv, last_axis: bool
    ) -> tuple[onnx.NodeProto, Region] | None:
        """A node on the Conv's own channels, and the region with it; None where it is none that a region can hold."""
        node = self._index.node(place)
        if not self._fits(node, place, inside, last_axis):
            return None
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("metadata_props")
        del copy.output[1:]
        for position, name in enumerate(node.input):
            if name in inside:
                if position and node.op_type in _FIRST_ALONE:
                    return None
                copy.input[position] = inside[name]
            elif name and self._index.is_constant(name):
                values = self._channelwise(name, state, conv, vector=node.op_type == _NORM)
                if values is None:
                    return None
                copy.input[position] = inner = f"{name}/{state.before}/{values.ndim}"
                region = replace(region, constants={**region.constants, inner: values})
            elif name and node.op_type in _SEVERAL - _FIRST_ALONE:
                if name not in region.skips:
                    shorter = state.region if state.region.nodes else None
                    skips, offset = (*region.skips, name), (*region.offset, state.before)
                    region = replace(region, skips=skips, offset=offset, shorter=shorter)
            elif name:
                return None
        return copy, replace(region, nodes=(*region.nodes, copy))

    def _fits(self, node: onnx.NodeProto, place: Place, inside: dict[str, str], last_axis: bool) -> bool:
        if not is_standard(node) or place[0] or any(entry.ref_attr_name for entry in node.attribute):
            return False
        if node.op_type == _NORM:
            training = self._index.attribute(place, "training_mode", 0)
            return not training and not last_axis and len(node.output) == 1
        if node.op_type in _FIRST_ALONE and node.input[0] not in inside:
            return False
        return node.op_type in _UNARY or node.op_type in _SEVERAL

    def _channelwise(self, name: str, state: _State, conv: Conv, *, vector: bool) -> NDArray[np.float32] | None:
        """A constant as a number or [channels, 1, ...], of the Conv's own channels; None where it is neither."""
        constant = self._index.constant(name)
        assert constant is not None
        try:
            values = read_constant(self._model, self._index.scopes, constant)
        except FactorizationError:
            return None
        if values.dtype.kind not in "fV" or not np.isfinite(values.astype(np.float32)).all():
            return None
        if values.size == 1 and not (vector and state.channels == 1):
            return None if vector else values.astype(np.float32).reshape(())
        axis = values.ndim - 1 - (0 if vector else conv.dims)
        if values.size != state.channels or axis < 0 or values.shape[axis] != state.channels:
            return None
        own = values.reshape(-1)[state.before : state.before + conv.out_channels].astype(np.float32)
        return own if vector else own.reshape(-1, *(1,) * conv.dims)


def usable(region: Region | None, can: Callable[[str], bool]) -> Region | None:
    """The longest part of a region all of whose skips are usable."""
    while region is not None and not all(name in region.gates or can(name) for name in region.skips):
        region = region.shorter
    return region


def model_of(region: Region, conv: Conv) -> onnx.ModelProto:
    """The nodes as a model that reads ``start`` and the skips, each [rows, channels, 1, ...]."""
    shape = [None, conv.out_channels, *([1] * conv.dims)]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(region.nodes),
        "behind",
        [value(name, onnx.TensorProto.FLOAT, shape) for name in (region.start, *region.skips)],
        [value(region.end, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in region.constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", region.opset)], ir_version=8)
