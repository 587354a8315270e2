"""``--int8-io``: inputs and outputs hold integers, so that the model quantises and dequantises nothing at its ends."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.errors import spelled
from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import scopes
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.naming import rename, short_names, tensor_names
from onnxsep.quantization.report import IntegerTensor
from onnxsep.running.integer_io import TYPES, Integers, Kind, metadata_of

# They only move values, so that they may stand on either side of a QuantizeLinear.
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE})


def exchange_integers(result: onnx.ModelProto) -> tuple[tuple[IntegerTensor, ...], tuple[str, ...]]:
    """Let inputs and outputs be the integers that they are quantised to, in place.

    An input that feeds nodes in float too is dequantised for these. The metadata tell what the integers stand for.

    Args:
        result: A finished quantised model.

    Returns:
        The inputs and outputs that changed, and notes about float ones that did not.

    Raises:
        QuantizationError: no float input or output of the model is quantised, so that nothing would change.
    """
    found: list[IntegerTensor] = []
    notes: list[str] = []
    kinds: tuple[tuple[Kind, list[onnx.ValueInfoProto]], ...] = (
        ("input", list(result.graph.input)),
        ("output", list(result.graph.output)),
    )
    for kind, entries in kinds:
        for entry in entries:
            if entry.type.tensor_type.elem_type not in _FLOATS:
                continue
            graph = _Graph(result)
            try:
                pair = graph.open_input(entry.name) if kind == "input" else graph.open_output(entry.name)
            except _StaysError as reason:
                notes.append(f"{spelled('int8_io')}: {kind} {entry.name!r} stays in float: {reason}")
                continue
            entry.type.tensor_type.elem_type = pair.elem_type
            integers = pair.integers
            key, value = metadata_of(kind, entry.name, integers)
            result.metadata_props.add(key=key, value=value)
            found.append(
                IntegerTensor(
                    kind=kind,
                    name=entry.name,
                    type=np.dtype(integers.dtype).name,
                    scale=float(integers.scale),
                    zero_point=integers.zero_point,
                )
            )
    if not found:
        own = f"{spelled('int8_io')}: "
        reasons = "".join(f"; {note.removeprefix(own)}" for note in notes)
        raise QuantizationError(
            f"{spelled('int8_io')}: no float input or output of the model is quantised{reasons}; leave the option out"
        )
    return tuple(found), tuple(notes)


class _StaysError(Exception):
    """Why an input or output stays in float."""


@dataclass(frozen=True)
class _Pair:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear: their names, and what they are."""

    names: tuple[str, str]
    elem_type: int
    integers: Integers


class _Graph:
    """One state of the graph; each change is made to a new one."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto, self._graph = proto, proto.graph
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._inputs = {entry.name for entry in proto.graph.input}
        self._outputs = {entry.name for entry in proto.graph.output}
        self._index = Index(proto)

    def open_input(self, name: str) -> _Pair:
        """Take away what quantises an input.

        Raises:
            _StaysError: that cannot be done.
        """
        moved, quantizers = [name], []
        in_float: dict[str, list[Place]] = {}
        for tensor in moved:  # which grows
            if self._is_nested(tensor):
                raise _StaysError("a nested graph reads it")
            for place in self._index.readers(tensor):
                node = self._index.node(place)
                if node.op_type == "QuantizeLinear" and node.input[0] == tensor:
                    quantizers.append(node)
                elif node.op_type in _MOVES and node.input[0] == tensor and node.output[0] not in self._outputs:
                    moved.append(node.output[0])
                else:
                    in_float.setdefault(tensor, []).append(place)
        if not quantizers:
            raise _StaysError("no quantised node reads it")
        pairs = [self._pair(node) for node in quantizers]
        if any(pair.integers != pairs[0].integers for pair in pairs):
            raise _StaysError("it is quantised in two ways")
        fresh = short_names(tensor_names(self._proto))
        for tensor, places in in_float.items():
            real = next(fresh)
            for place in places:
                _replace(self._index.node(place), tensor, real)
            dequantize = onnx.helper.make_node("DequantizeLinear", [tensor, *pairs[0].names], [real])
            first = self._index.node(min(places))
            self._graph.node.insert(list(self._graph.node).index(first), dequantize)
        rename(self._proto, {node.output[0]: node.input[0] for node in quantizers})
        self._drop(quantizers, moved, pairs[0])
        return pairs[0]

    def open_output(self, name: str) -> _Pair:
        """Take away what dequantises an output.

        Raises:
            _StaysError: that cannot be done.
        """
        moved: list[str] = []
        tensor = name
        while (node := self._index.maker(tensor)) is not None and node.op_type in _MOVES:
            if self._index.readers(tensor) != self._readers_along(moved) or self._is_nested(tensor):
                raise _StaysError("nodes in float read it, too")
            moved.append(tensor)
            tensor = node.input[0]
            if tensor in self._outputs:
                raise _StaysError("it is another output in another shape")
        if node is None or node.op_type != "DequantizeLinear":
            raise _StaysError("no quantised node computes it")
        pair, integer = self._pair(node), node.input[0]
        others = [place for place in self._index.readers(tensor) if place not in self._readers_along(moved)]
        given = integer in self._inputs | self._outputs or self._index.maker(integer) is None
        if given or self._is_nested(tensor):
            raise _StaysError("the same integers are another input or output")
        if not moved:
            if others:  # they go on reading real numbers, which need another name
                node.output[0] = next(short_names(tensor_names(self._proto)))
                for place in others:
                    _replace(self._index.node(place), tensor, node.output[0])
            rename(self._proto, {integer: name})
        else:
            _replace(self._index.node(self._readers_along(moved)[0]), tensor, integer)
        self._drop([] if others else [node], moved, pair)
        return pair

    def _is_nested(self, name: str) -> bool:
        """Whether a graph nested in the main one reads a tensor."""
        return any(use.scope for use in self._index.uses(name))

    def _readers_along(self, moved: list[str]) -> list[Place]:
        """Who may read the tensor before these: the node that makes the last of them."""
        place = self._index.place(moved[-1]) if moved else None
        return [] if place is None else [place]

    def _pair(self, node: onnx.NodeProto) -> _Pair:
        names = [name for name in node.input[1:] if name]
        if len(names) < 2 or any(name not in self._tensors for name in names):
            raise _StaysError("its scale is not constant")
        scale, zero_point = (numpy_helper.to_array(self._tensors[name]) for name in names)
        elem_type = self._tensors[names[1]].data_type
        if scale.size != 1 or elem_type not in TYPES:
            raise _StaysError("it has not one scale and one zero point of 8 bits")
        integers = Integers(np.float32(scale.item()), int(zero_point.item()), TYPES[elem_type])
        return _Pair((names[0], names[1]), elem_type, integers)

    def _drop(self, nodes: Collection[onnx.NodeProto], moved: Collection[str], pair: _Pair) -> None:
        """Remove nodes, and what only they read; and declare the tensors that now hold integers as such."""
        for node in nodes:
            self._graph.node.remove(node)
        read = {name for scope in scopes(self._proto) for node in scope.body.node for name in node.input}
        for name in pair.names:
            if name not in read:
                self._graph.initializer.remove(self._tensors[name])
        for entry in self._graph.value_info:
            if entry.name in moved:
                entry.type.tensor_type.elem_type = pair.elem_type


def _replace(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
