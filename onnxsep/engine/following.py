"""What each operator does with channels; an operator that is not listed here cannot be followed."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx

from onnxsep.engine.channels import Channels, Cut, Facts, Ids, Track, gather_facts, label, settle
from onnxsep.engine.resizing import Lost, SizeRules, integer
from onnxsep.engine.sites import Sites
from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import is_standard
from onnxsep.graph.view import View
from onnxsep.model.io import Model

# One input with channels, and an output that has the same ones; what other inputs hold is for all channels alike.
_UNARY = {
    *("Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
    *("HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid"),
    *("Sign", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
}
_ELEMENTWISE = {"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"}
_REDUCE = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}

_MOST = 64  # elements of a constant that says how a node treats its axes


def follow(model: Model, sites: Sites) -> Channels:
    """Follow the output channels of every Conv of the main graph.

    Args:
        model: the source.
        sites: its Convs.
    """
    facts = gather_facts(model, sites)

    @cache
    def view() -> View:  # most models need none
        return View(sites.light)

    def fold(index: int, position: int) -> Sequence[int] | None:
        """The values of a constant that is an input of a node, an expression of constants included."""
        constant = view().constant(0, index, position)
        if isinstance(constant, str):
            return None
        try:
            values = read_constant(model, sites.scopes, constant)
        except FactorizationError:  # an operator that cannot be evaluated here
            return None
        found: list[int] = values.tolist() if values.ndim == 1 and values.size <= _MOST else []
        return found or None

    walker = _Walker(facts, fold)
    for index, node in enumerate(facts.graph.node):
        walker.visit(index, node)
    settle(walker.channels, facts)
    return walker.channels


class _Walker:
    def __init__(self, facts: Facts, fold: Callable[[int, int], Sequence[int] | None]) -> None:
        self._facts, self._fold = facts, fold
        self._index = 0  # of the node that is being looked at
        self.channels = Channels()
        self._tracks = self.channels.tracks
        rules = SizeRules(facts, self.channels, lambda position: self._fold(self._index, position))
        handlers: list[tuple[set[str], Callable[[onnx.NodeProto, Track], Track | None]]] = [
            (_UNARY, self._unary),
            (_REDUCE, rules.reduce),
            ({"BatchNormalization"}, self._norm),
            ({"InstanceNormalization"}, self._norm),
            ({"Flatten", "Reshape"}, rules.flatten),
            ({"Squeeze", "Unsqueeze"}, rules.squeeze),
            ({"Pad"}, rules.pad),
            ({"Slice"}, rules.slice),
            ({"Resize", "Upsample"}, rules.resize),
            ({"Gemm", "MatMul"}, self._product),
        ]
        self._handlers = {op_type: handler for op_types, handler in handlers for op_type in op_types}

    def visit(self, index: int, node: onnx.NodeProto) -> None:
        """Give the node's output its channels, or freeze those that it reads."""
        self._index = index
        try:
            track = self._result(index, node)
        except Lost as lost:
            reason = f"they reach {label(node)}, which {lost}"
            for name in node.input:
                if name in self._tracks:
                    self.channels.freeze(self._tracks[name].ids, reason)
            return
        if track is not None and len(node.output) == 1:
            self._tracks[node.output[0]] = track
        elif track is not None:
            self._several(node, track)

    def _result(self, index: int, node: onnx.NodeProto) -> Track | None:
        if is_standard(node) and node.op_type == "Conv":
            return self._conv(index, node)
        if not any(name in self._tracks for name in node.input):
            return None
        if is_standard(node) and node.op_type in _ELEMENTWISE:
            return self._elementwise(node)
        if is_standard(node) and node.op_type == "Concat":
            return self._concat(node)
        handler = self._handlers.get(node.op_type) if is_standard(node) else None
        if handler is None:
            raise Lost("cannot be followed")
        if node.input[0] not in self._tracks or any(name in self._tracks for name in node.input[1:]):
            raise Lost("reads them in a way that cannot be followed")
        return handler(node, self._tracks[node.input[0]])

    def _several(self, node: onnx.NodeProto, track: Track) -> None:
        """More outputs than one: the others must be unused, for what they hold is not known."""
        self._tracks[node.output[0]] = track
        if any(name and (self._facts.index.uses(name) or name in self._facts.pinned) for name in node.output[1:]):
            self.channels.freeze(track.ids, f"they reach {label(node)}, whose other outputs are used")

    # ---------------------------------------------------------------- operators with weights

    def _conv(self, index: int, node: onnx.NodeProto) -> Track | None:
        site = self._facts.sites.get((0, index))
        track = self._tracks.get(node.input[0])
        try:
            if site is None:
                raise Lost("has no constant weight")
            conv = site.conv
            if not site.stored or site.weight.scope:
                raise Lost("has a weight that is computed by an expression of constants")
            bias = self._bias(node)
            if track is not None and len(track.ids) != conv.in_channels:
                raise Lost(f"reads {conv.in_channels} channels where {len(track.ids)} are known")
            if any(name in self._tracks for name in node.input[1:]):
                raise Lost("takes them as a weight")
            if conv.group > 1 and not (conv.group == conv.in_channels and track is not None):
                raise Lost(f"has {conv.group} groups" if conv.group < conv.in_channels else "reads an input as it is")
        except Lost as lost:
            self.channels.reasons[0, index] = f"it {lost}"
            if track is None:
                return None
            raise
        if conv.group > 1:
            assert track is not None
            ids = np.repeat(track.ids, conv.out_channels // conv.group)
            self.channels.depthwise[0, index] = track.ids
            axes, reads = {0: ids}, None
        else:
            ids = self.channels.fresh(conv.out_channels)
            axes, reads = {0: ids}, None
            if track is not None:
                axes, reads = {0: ids, 1: track.ids}, 1
        self.channels.filters[0, index] = ids
        self._cut(site.weight, axes, reads)
        if bias is not None:
            self._cut(bias, {0: ids})
        return Track(ids, conv.dims + 2)

    def _bias(self, node: onnx.NodeProto) -> Constant | None:
        if len(node.input) < 3 or not node.input[2]:
            return None
        if node.input[2] not in self._facts.constants:
            raise Lost("has a bias that is not stored as a constant")
        return self._facts.constants[node.input[2]][0]

    def _norm(self, node: onnx.NodeProto, track: Track) -> Track:
        found = []
        for name in node.input[1:]:
            constant, dims = self._constant(name)
            if dims != (len(track.ids),):
                raise Lost(f"has {name!r} of the shape {list(dims)}")
            found.append(constant)
        for constant in found:
            self._cut(constant, {0: track.ids})
        return track

    def _product(self, node: onnx.NodeProto, track: Track) -> None:
        """A Gemm or MatMul reads the channels; its output is not followed."""
        if track.rank != 2 or integer(node, "transA", 0):
            raise Lost("multiplies along another axis")
        constant, dims = self._constant(node.input[1])
        axis = 1 if integer(node, "transB", 0) else 0
        if len(dims) != 2 or dims[axis] != len(track.ids):
            raise Lost("has a second operand of another shape")
        self._cut(constant, {axis: track.ids}, axis)

    # ---------------------------------------------------------------- channel by channel

    def _unary(self, node: onnx.NodeProto, track: Track) -> Track:
        return track

    def _elementwise(self, node: onnx.NodeProto) -> Track:
        if any(attribute.name in ("broadcast", "axis") for attribute in node.attribute):
            raise Lost("broadcasts as before operator set 7")
        tracks = [self._tracks[name] for name in node.input if name in self._tracks]
        rank, size = tracks[0].rank, max(len(track.ids) for track in tracks)
        if any(track.rank != rank or len(track.ids) not in (1, size) for track in tracks):
            raise Lost("combines tensors of different shapes")
        cuts: list[tuple[Constant, int]] = []
        for name in node.input:
            if name in self._tracks:
                continue
            if name not in self._facts.constants:
                raise Lost(f"combines them with {name!r}, whose channels are not known")
            constant, dims = self._constant(name)
            axis = len(dims) - rank + 1
            if node.op_type == "PRelu" and rank > 2 and len(dims) == 1 and dims[0] > 1:
                raise Lost("has slopes that mean channels before operator set 7, and the last axis since")
            if len(dims) > rank or (axis >= 0 and dims[axis] not in (1, size)):
                raise Lost(f"combines them with {name!r} of the shape {list(dims)}")
            if axis >= 0 and dims[axis] > 1:
                cuts.append((constant, axis))
        whole = [track.ids for track in tracks if len(track.ids) == size]
        for ids in whole[1:]:
            self.channels.unite(whole[0], ids)
        for constant, axis in cuts:
            self._cut(constant, {axis: whole[0]})
        return Track(whole[0], rank)

    def _concat(self, node: onnx.NodeProto) -> Track:
        rank = next(self._tracks[name].rank for name in node.input if name in self._tracks)
        axis = integer(node, "axis", 1)
        parts = []
        for name in node.input:
            track = self._tracks.get(name)
            parts.append(self._unfollowed(name, rank) if track is None else track.ids)
            if track is not None and track.rank != rank:
                raise Lost("joins tensors of different ranks")
        if axis % rank == 1:
            return Track(np.concatenate(parts), rank)
        if len({len(ids) for ids in parts}) > 1:
            raise Lost("joins tensors of different channels along another axis")
        for ids in parts[1:]:
            self.channels.unite(parts[0], ids)
        return Track(parts[0], rank)

    def _unfollowed(self, name: str, rank: int) -> Ids:
        """Numbers for channels that stay, because nothing is known about where they come from."""
        shape = self._facts.shapes.get(name)
        size = shape[1] if shape is not None and len(shape) == rank else None
        if not isinstance(size, int):
            raise Lost(f"joins them with {name!r}, whose channels are not known")
        ids = self.channels.fresh(size)
        self.channels.freeze(ids, f"they are joined with {name!r}")
        return ids

    # ---------------------------------------------------------------- helpers

    def _cut(self, constant: Constant, axes: dict[int, Ids], reads: int | None = None) -> None:
        self.channels.cuts.append(Cut(constant, axes, reads))

    def _constant(self, name: str) -> tuple[Constant, tuple[int, ...]]:
        if name not in self._facts.constants:
            raise Lost(f"reads {name!r}, which is not stored as a constant")
        constant, tensor = self._facts.constants[name]
        return constant, tuple(tensor.dims)
