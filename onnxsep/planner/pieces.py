"""Layers cut out of a model, to be timed: each with what the runtime fuses with it, among neighbours like its own.

    x -> [Conv 1 x 1] -> LAYER -> BatchNormalization -> Add(skip) -> Relu -> [Conv 1 x 1] ->

What follows the layer up to its activation is part of it, for the runtime makes one kernel of it. Where the model holds
a tensor in the runtime's own layout (``onnxsep.planner.layouts``), a small 1 x 1 Conv stands for the neighbour that
makes or reads it. A form of the layer takes its place as the rewrite puts it there; all else is the same on both sides
of a comparison. Weights are random: time does not depend on them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import BlockMatch, ConvSite
from onnxsep.engine.planning import Options, choose
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import INITIALIZERS_ARE_INPUTS, replace_matches
from onnxsep.errors import FactorizationError, PassError, spelled
from onnxsep.graph.constants import read_constant
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.index import Index
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import is_standard, opset_version, scopes
from onnxsep.graph.shapes import KnownShapes, Shape
from onnxsep.graph.view import ONNX_TYPES, build_tensor
from onnxsep.layers.rank import Rank
from onnxsep.model.content import without_values
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.planner.layouts import blocked_tensors

if TYPE_CHECKING:
    from onnxsep.planner.block_pieces import BlockPiece

X, SKIP = "x", "skip"
_LAYER, _END, _LAST = "layer", "y", "out"
_FEW = 4  # channels on the far side of a neighbour
_ACTIVATIONS = {
    *("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus", "PRelu"),
    *("Gelu", "Mish", "ThresholdedRelu", "Celu"),
}
_FUSED = {"BatchNormalization", "Add", "Sum", "Mul", "Identity", "Dropout"}
_NOT_RUN = {"bfloat16", "float64"}  # the runtime has no Conv for them on a CPU
_MANY = 2**28  # elements of an input


@dataclass(frozen=True)
class Piece:
    """A layer of a model as it is, as a model of its own.

    Attributes:
        model: With random weights.
        site: The layer in it.
        shapes: Of its inputs, by name.
    """

    model: Model
    site: ConvSite = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def key(self) -> str:
        """The same for pieces that compute the same, but for the values of weights."""
        return key_of(self.model)

    def feeds(self, seed: int = 0) -> dict[str, NDArray[np.generic]]:
        """Random values for its inputs."""
        random, kind = np.random.default_rng(seed), STORED_TYPES[self.site.dtype]
        return {name: random.standard_normal(shape, np.float32).astype(kind) for name, shape in self.shapes.items()}

    def with_form(self, mode: Mode, rank: Rank) -> Model | str:
        """The piece with the layer in another form; or why it has none."""
        options = Options(rank, force=True, include_first=True, recurse=True, init=mode.inits[-1])
        replacement = choose(self.site, mode, options, _no_weight)
        if not isinstance(replacement, ConvReplacement):
            return replacement.reason
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        try:
            replace_matches(proto, [replacement], {self.site.place: random_factors(replacement)})
        except PassError as error:
            return str(error)
        return Model(proto)


def key_of(model: Model) -> str:
    """What a model's time depends on but for what runs it: SHA-256 of all but the values of its weights."""
    return hashlib.sha256(without_values(model.proto).SerializeToString(deterministic=True)).hexdigest()


class Cutter:
    """Cuts layers out of one model.

    Args:
        model: The model.
        sites: Its layers.
    """

    def __init__(self, model: Model, sites: Sites) -> None:
        self._model, self._scopes = model, sites.scopes
        self._index = Index(model.proto, sites.scopes)
        self._shapes = KnownShapes(scopes(sites.light))
        self._blocked = blocked_tensors(self._index, self._shapes)

    def piece(self, site: ConvSite) -> Piece | str:
        """The piece of a layer, or why there is none."""
        shape = self._input_shape(site)
        if shape is None:
            return f"the size of its input is not known ({spelled('input_shapes', hint='NAME:DIMS')} gives it)"
        if site.dtype in _NOT_RUN:
            return f"the runtime has no {site.op_type} of {site.dtype}"
        if math.prod(shape) > _MANY:
            return "its input is too large"
        return Cut(self._model, self._scopes, self._index, site, shape).made(
            self._tail(site.place), self._blocked if site.place[0] == 0 else frozenset()
        )

    def block(self, match: BlockMatch) -> "BlockPiece | str":
        """The piece of a block of several nodes, or why there is none."""
        from onnxsep.planner.block_pieces import BlockCut

        names = match.input, self._index.node(match.place).output[0]
        shapes = [self._shapes.of(match.place[0], name) for name in names]
        if match.dtype in _NOT_RUN:
            return f"the runtime has no {match.op_type} of {match.dtype}"
        if shapes[0] is None or shapes[1] is None or not all(isinstance(size, int) for size in shapes[0][1:]):
            return f"the sizes of its input and output are not known ({spelled('input_shapes', hint='NAME:DIMS')})"
        if math.prod(_fixed(shapes[0])) > _MANY:
            return "its input is too large"
        cut = BlockCut(self._model, self._scopes, self._index, match, _fixed(shapes[0]), _fixed(shapes[1]))
        return cut.piece(self._tail(match.place), self._blocked if match.place[0] == 0 else frozenset())

    def _input_shape(self, site: ConvSite) -> tuple[int, ...] | None:
        if site.input_size is None:
            return None
        node = self._index.node(site.place)
        shape = self._shapes.of(site.place[0], node.input[0])
        if shape is None or not site.conv.dims:
            return None if shape is None else _fixed((*shape[:-1], site.conv.in_channels))
        return (site.batch or 1, site.conv.in_channels, *site.input_size)

    def _tail(self, place: Place) -> list[Place]:
        """The nodes behind a layer that the runtime computes together with it."""
        scope, found = place[0], list[Place]()
        end, skips = self._index.node(place).output[0], 0
        while len(readers := self._index.readers(end, scope)) == 1 and not self._index.is_output(end, scope):
            node = self._index.node(readers[0])
            others = [name for name in node.input if name and name != end and not self._index.is_constant(name, scope)]
            skips += len(others)
            known = is_standard(node) and node.op_type in _FUSED | _ACTIVATIONS and len(node.output) == 1
            joins = not others or (node.op_type in ("Add", "Sum") and self._alike(others[0], end, scope))
            if not known or readers[0][0] != scope or skips > 1 or not joins or list(node.input).count(end) != 1:
                break
            found.append(readers[0])
            end = node.output[0]
            if node.op_type in _ACTIVATIONS:
                break
        return found

    def _alike(self, one: str, other: str, scope: int) -> bool:
        shapes = [self._shapes.of(scope, name) for name in (one, other)]
        return shapes[0] is not None and shapes[0] == shapes[1]


class Cut:
    """A piece while it is put together."""

    def __init__(
        self, model: Model, all_scopes: Sequence[Any], index: Index, site: ConvSite, shape: tuple[int, ...]
    ) -> None:
        self._model, self._scopes, self._index, self._site = model, all_scopes, index, site
        self._node = index.node(site.place)
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []
        self._shape = shape
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._random = np.random.default_rng(0)

    def made(self, tail: Sequence[Place], blocked: AbstractSet[str]) -> Piece | str:
        """The piece of a layer and what follows it; the reason where there is none."""
        site, node = self._site, self._node
        names = {node.input[0]: self._input(X, self._shape, anchored=node.input[0] in blocked)}
        first = len(self._nodes)
        site = replace(site, **self._layer(names[node.input[0]]), place=(0, first))
        names[node.output[0]] = _LAYER
        for place in tail:
            if (reason := self._copied(place, names, blocked)) is not None:
                return reason
        end = (self._index.node(tail[-1]) if tail else node).output[0]
        outputs = self._outputs(names[end], end, blocked)
        return Piece(Model(self._proto(outputs)), site, self._shapes)

    def _layer(self, source: str) -> dict[str, Any]:
        """Put the layer in; what changes of its site with that."""
        site, conv = self._site, self._site.conv
        shape = conv.weight_shape[::-1] if site.transposed else conv.weight_shape
        if conv.transposed:
            shape = (conv.in_channels, conv.out_channels // conv.group, *conv.kernel_shape)
        node = self._copy(self._node, f"{_LAYER}_node", [source, "weight", *(["bias"] if conv.bias else [])], _LAYER)
        self._nodes.append(node)
        self._stored.append(self._weight("weight", shape, math.prod(conv.weight_shape[1:])))
        if conv.bias:
            self._stored.append(self._weight("bias", (conv.out_channels,), 1))
        bias = Constant(0, "bias", ()) if conv.bias else None
        changed = {"weight": Constant(0, "weight", ()), "bias": bias, "where": "", "made_by": "", "pinned": ()}
        return {**changed, "stored": True, "first": False, "name": node.name}

    def _copied(self, place: Place, names: dict[str, str], blocked: AbstractSet[str]) -> str | None:
        """Put in a node of what follows; the reason where that cannot be done."""
        node, scope, inputs = self._index.node(place), place[0], list[str]()
        for name in node.input:
            constant = self._index.constant(name, scope) if name and name not in names else None
            if constant is not None:
                names[name] = f"c{len(self._stored)}"
                try:
                    values = read_constant(self._model, self._scopes, constant)
                except FactorizationError as error:
                    return str(error)
                self._stored.append(build_tensor(names[name], values))
            elif name and name not in names:
                names[name] = self._input(SKIP, self._output_shape(), anchored=name in blocked)
            inputs.append(names[name] if name else "")
        names[node.output[0]] = f"t{len(self._nodes)}"
        self._nodes.append(self._copy(node, f"n{len(self._nodes)}", inputs, names[node.output[0]]))
        return None

    def _output_shape(self) -> tuple[int, ...]:
        site, conv = self._site, self._site.conv
        if not conv.dims:
            return (*self._shape[:-1], conv.out_channels)
        return (self._shape[0], conv.out_channels, *conv.output_size(site.input_size or ()))

    def _input(self, name: str, shape: tuple[int, ...], *, anchored: bool) -> str:
        """An input; with a neighbour that makes it, where the model has one that counts."""
        self._shapes[name] = (shape[0], _FEW, *shape[2:]) if anchored else shape
        return self._neighbour(name, f"{name}_made", (shape[1], _FEW, 1, 1), relu=True) if anchored else name

    def _outputs(self, end: str, name: str, blocked: AbstractSet[str]) -> list[str]:
        """The outputs: what the piece computes, or what a neighbour makes of it, or both."""
        scope = self._site.place[0]
        readers = [self._index.node(place) for place in self._index.readers(name, scope)]
        wanted = [bool(node.output) and node.output[0] in blocked for node in readers]
        channels = self._output_shape()[1] if self._site.conv.dims == 2 else 0
        found = []
        if name in blocked and any(wanted) and channels and channels % _FEW == 0:
            found.append(self._neighbour(end, _LAST, (_FEW, channels, 1, 1), relu=False))
        return [*found, end] if not all(wanted) or not found else found

    def _neighbour(self, source: str, output: str, shape: tuple[int, ...], *, relu: bool) -> str:
        """A 1 x 1 Conv. One with a Relu is not fused with an Add that follows."""
        weight, made = f"{output}_weight", f"{output}_0" if relu else output
        self._stored.append(self._weight(weight, shape, shape[1]))
        self._nodes.append(onnx.helper.make_node("Conv", [source, weight], [made], name=f"{output}_node"))
        if relu:
            self._nodes.append(onnx.helper.make_node("Relu", [made], [output], name=f"{output}_relu"))
        return output

    def _weight(self, name: str, shape: Sequence[int], fan_in: int) -> onnx.TensorProto:
        return build_tensor(name, _weights(self._random, shape, fan_in, self._site.dtype))

    def _copy(self, node: onnx.NodeProto, name: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
        copy = onnx.NodeProto(op_type=node.op_type, name=name, input=inputs, output=[output])
        copy.attribute.extend(node.attribute)
        for attribute in copy.attribute:
            attribute.doc_string = ""
        return copy

    def _proto(self, outputs: Sequence[str]) -> onnx.ModelProto:
        kind, source = ONNX_TYPES[self._site.dtype], self._model.proto
        given = {value.name for value in source.graph.input}
        inputs = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in self._shapes.items()]
        if source.ir_version <= INITIALIZERS_ARE_INPUTS or self._node.input[1] in given:
            inputs += [onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in self._stored]
        whole = self._output_shape()
        shapes = {_LAST: (whole[0], _FEW, *whole[2:])}
        made = [onnx.helper.make_tensor_value_info(name, kind, shapes.get(name, whole)) for name in outputs]
        graph = onnx.helper.make_graph(self._nodes, "piece", inputs, made, self._stored)
        proto = onnx.ModelProto(ir_version=source.ir_version, graph=graph)
        proto.opset_import.add(domain="", version=opset_version(source, self._scopes, self._site.place[0]))
        return proto


def random_factors(replacement: Replacement, seed: int = 1) -> Factorized:
    """Random weights for a form of a layer, or of a block."""
    random, dtype = np.random.default_rng(seed), replacement.site.dtype
    arrays = [_weights(random, shape, math.prod(shape[1:]), dtype) for *_, shape in replacement.tensors]
    if isinstance(replacement, BlockReplacement):  # among them variances
        arrays = [np.abs(array) if array.ndim == 1 else array for array in arrays]
    bias = _weights(random, (replacement.site.conv.out_channels,), 1, dtype) if replacement.new_bias else None
    return Factorized(arrays, None, bias)


def _weights(random: np.random.Generator, shape: Sequence[int], fan_in: int, dtype: str) -> NDArray[np.generic]:
    """Values that keep the size of what is multiplied by them about the same."""
    values = random.standard_normal(tuple(shape), np.float32) / math.sqrt(max(fan_in, 1))
    found: NDArray[np.generic] = values.astype(STORED_TYPES[dtype])
    return found


def _no_weight(site: ConvSite) -> Any:
    raise FactorizationError(f"the ranks of {site.name!r} must be given")


def _fixed(shape: Shape) -> tuple[int, ...]:
    """A shape whose free dimensions are 1."""
    return tuple(size if isinstance(size, int) else 1 for size in shape)
