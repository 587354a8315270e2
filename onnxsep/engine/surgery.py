"""Putting new nodes into the source model, in place of Convs, and taking out weights that nothing uses any more.

Everything else in the model stays the source's own proto.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.engine.factors import Factorized
from onnxsep.engine.node_forms import ADD_BROADCASTS, PADS_ARE_AN_INPUT, Form, channel_pads, weighted_form
from onnxsep.engine.planning import Replacement, factor_key
from onnxsep.engine.sites import METADATA_PREFIX
from onnxsep.graph.index import Index
from onnxsep.graph.new_names import Names
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import Scope, display_name, opset_imports, scopes
from onnxsep.graph.shapes import stub
from onnxsep.graph.view import ONNX_TYPES, NewNode, build_nodes, build_tensor
from onnxsep.layers.layer import INPUT, AddLayer, ChannelPadLayer, ConvLayer, channels

INITIALIZERS_ARE_INPUTS = 3  # up to this IR version every initialiser is listed among the graph's inputs


@dataclass
class Edit:
    """What was put in and taken out."""

    new_initializers: list[str] = field(default_factory=list)
    """Of the main graph."""
    new_weights: list[str] = field(default_factory=list)
    """The same, and outputs of new Constant nodes of the main graph."""
    removed_weights: list[str] = field(default_factory=list)
    removed_inputs: list[str] = field(default_factory=list)
    made: dict[Place, tuple[str, ...]] = field(default_factory=dict)
    """For the place of each replaced Conv the tensors that the new nodes compute; they stand in the same scope."""


def replace_convs(
    model: onnx.ModelProto, replacements: Sequence[Replacement], factors: Mapping[Place, Factorized] | None
) -> Edit:
    """Replace Convs in ``model``, which is changed.

    Args:
        model: a model of the same structure as the one that the sites were found in.
        replacements: the plan's replacements.
        factors: the weights, and the bias where it is new, for the place of each replaced Conv; None where only the
            structure is wanted, which then gets tensors without data (``onnxsep.graph.shapes``).
    """
    return _Surgeon(model, factors).run(replacements)


class _Surgeon:
    def __init__(self, model: onnx.ModelProto, factors: Mapping[Place, Factorized] | None) -> None:
        self._model, self._factors = model, factors
        self._scopes = scopes(model)
        self._edit = Edit()
        self._names = Names(model, self._scopes)
        self._index = Index(model, self._scopes)
        self._new_nodes: dict[Place, list[onnx.NodeProto]] = {}  # in place of these nodes
        self._after: dict[Place, list[onnx.NodeProto]] = {}  # right behind these nodes
        self._factor_names: dict[Any, list[str]] = {}

    def run(self, replacements: Sequence[Replacement]) -> Edit:
        for replacement in replacements:
            place = replacement.site.place
            self._new_nodes[place] = self._build(replacement)
            self._edit.made[place] = tuple(node.output[0] for node in self._new_nodes[place])
        # Only now do the old weights lose their users, so only now can places shift.
        replaced = {replacement.site.weight: None for replacement in replacements}
        replaced |= {row.site.bias: None for row in replacements if row.new_bias and row.site.bias}
        orphans: dict[int, set[str]] = defaultdict(set)
        for owner, name in self._orphans(replaced):
            orphans[owner].add(name)
        changed: dict[int, set[int]] = defaultdict(set)
        for owner, index in (*self._new_nodes, *self._after):
            changed[owner].add(index)
        for scope in self._scopes:
            if scope.index in changed:
                self._write_nodes(scope, sorted(changed[scope.index]))
            if orphans[scope.index]:
                self._remove_orphans(scope.body, orphans[scope.index])
        return self._edit

    def _build(self, replacement: Replacement) -> list[onnx.NodeProto]:
        site = replacement.site
        scope = self._scopes[site.place[0]]
        node = scope.body.node[site.place[1]]
        opset = self._opset(scope)
        forms = {
            layer.name: weighted_form(site, layer, opset)
            for layer in replacement.layers
            if isinstance(layer, ConvLayer)
        }
        weights = iter(self._weights(replacement, node.output[0], list(forms.values())))
        tensors, counts = {INPUT: node.input[0]}, channels(replacement.layers, site.conv.in_channels)
        last = replacement.layers[-1]
        built: list[onnx.NodeProto] = []
        for layer in replacement.layers:
            tensor = node.output[0] if layer is last else self._names.tensor(scope, f"{node.output[0]}_{layer.name}")
            tensors[layer.name] = tensor
            name = self._names.node(f"{display_name(node)}_{layer.name}")
            if isinstance(layer, AddLayer):
                # ONNX Runtime has no Add below 7, but Sum.
                adder = "Add" if opset >= ADD_BROADCASTS else "Sum"
                new = NewNode(adder, name, [tensors[name] for name in layer.inputs], tensor, {})
            elif isinstance(layer, ChannelPadLayer):
                pads = channel_pads(site.conv.dims, counts[layer.input], layer.channels)
                if opset < PADS_ARE_AN_INPUT:
                    attribute = "pads" if opset > 1 else "paddings"
                    new = NewNode("Pad", name, [tensors[layer.input]], tensor, {attribute: pads})
                else:
                    given = numpy_helper.from_array(
                        np.array(pads, np.int64), self._names.tensor(scope, f"{tensor}_pads")
                    )
                    built.append(_constant_node(given, self._names.node(given.name)))
                    new = NewNode("Pad", name, [tensors[layer.input], given.name], tensor, {})
            else:
                inputs = [tensors[layer.input], next(weights)]
                if layer.conv.bias:
                    inputs.append(self._bias(replacement, node.output[0]) if replacement.new_bias else node.input[2])
                form = forms[layer.name]
                new = NewNode(form.op_type, name, inputs, tensor, dict(form.attributes))
            built += build_nodes([new])
        for proto in built:
            _carry(node, proto, self._metadata(replacement))
        if node.doc_string:
            built[-1].doc_string = node.doc_string
        return built

    def _metadata(self, replacement: Replacement) -> dict[str, str]:
        """What new nodes say about themselves."""
        source = display_name(self._node(replacement.site.place))
        made = {"mode": replacement.mode.name, "rank": "x".join(map(str, replacement.rank)), "source": source}
        return {METADATA_PREFIX + key: value for key, value in made.items()}

    def _opset(self, scope: Scope) -> int:
        """The version of ONNX's own operators that holds in a scope; the lower one where it is given twice."""
        imports = opset_imports(self._model, self._scopes, scope.index)
        return min((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=1)

    def _weights(self, replacement: Replacement, output: str, forms: Sequence[Form]) -> list[str]:
        """Names of the factors; they are stored once, in the form and the place of the weight that they replace."""
        key = factor_key(replacement), tuple(form.transposed for form in forms)
        if key in self._factor_names:
            return self._factor_names[key]
        scope = self._scopes[replacement.site.weight.scope]
        convs = [layer for layer in replacement.layers if isinstance(layer, ConvLayer)]
        names = [self._names.tensor(scope, f"{output}_{layer.name}_weight") for layer in convs]
        if self._factors is None:
            kind = ONNX_TYPES[replacement.site.dtype]
            shapes = [layer.conv.weight_shape for layer in convs]
            shapes = [shape[::-1] if form.transposed else shape for shape, form in zip(shapes, forms, strict=True)]
            tensors = [stub(name, kind, shape) for name, shape in zip(names, shapes, strict=True)]
        else:
            arrays = self._factors[replacement.site.place].arrays
            arrays = [
                np.ascontiguousarray(array.T) if form.transposed else array
                for array, form in zip(arrays, forms, strict=True)
            ]
            tensors = [build_tensor(name, array) for name, array in zip(names, arrays, strict=True)]
        self._store(tensors, replacement)
        self._factor_names[key] = names
        return names

    def _bias(self, replacement: Replacement, output: str) -> str:
        """The name of the fitted bias, which is stored like the factors; every Conv has its own."""
        site = replacement.site
        name = self._names.tensor(self._scopes[site.weight.scope], f"{output}_bias")
        if self._factors is None:
            tensor = stub(name, ONNX_TYPES[site.dtype], (site.conv.out_channels,))
        else:
            array = self._factors[site.place].bias
            assert array is not None, "a new bias was planned"
            tensor = build_tensor(name, array)
        self._store([tensor], replacement)
        return name

    def _store(self, tensors: Sequence[onnx.TensorProto], replacement: Replacement) -> None:
        """Put new weights where the old one is: beside the initialiser, or behind the Constant node."""
        weight = replacement.site.weight
        scope = self._scopes[weight.scope]
        if scope.kind == "main":
            self._edit.new_weights.extend(tensor.name for tensor in tensors)
        if weight.nodes:
            nodes = [_constant_node(tensor, self._names.node(tensor.name)) for tensor in tensors]
            for node in nodes:
                _carry(self._node(weight.nodes[-1]), node, self._metadata(replacement))
            self._after.setdefault(weight.nodes[-1], []).extend(nodes)
        else:
            assert isinstance(scope.body, onnx.GraphProto)
            scope.body.initializer.extend(tensors)
            if scope.kind == "main":
                self._edit.new_initializers.extend(tensor.name for tensor in tensors)
            if self._model.ir_version <= INITIALIZERS_ARE_INPUTS:
                scope.body.input.extend(_as_input(tensor) for tensor in tensors)

    def _orphans(self, weights: Iterable[Constant]) -> set[tuple[int, str]]:
        """(scope, name) of the replaced weights, and of what only they were made of, that nothing uses any more."""
        changes: Counter[tuple[int, str]] = Counter()
        for place, nodes in self._new_nodes.items():
            changes.subtract(self._owned(place[0], self._node(place).input))
            changes.update(self._owned(place[0], (name for node in nodes for name in node.input)))

        def is_used(key: tuple[int, str]) -> bool:
            return len(self._index.uses(key[1], key[0])) + changes[key] > 0

        orphans: set[tuple[int, str]] = set()
        for weight in weights:
            if not weight.nodes and not is_used((weight.scope, weight.name)):
                orphans.add((weight.scope, weight.name))
            made = {(place[0], name) for place in weight.nodes for name in self._node(place).output if name}
            for place in reversed(weight.nodes):
                outputs = {(place[0], name) for name in self._node(place).output} & made
                if place in self._new_nodes or any(map(is_used, outputs)):
                    continue
                self._new_nodes[place] = []
                operands = self._owned(place[0], self._node(place).input)
                changes.subtract(operands)
                orphans |= outputs
                # What nodes make is looked at when their turn comes: one of several outputs may be in use.
                orphans |= {key for key in operands if key not in made and not is_used(key)}
        return orphans

    def _owned(self, scope: int, names: Iterable[str]) -> list[tuple[int, str]]:
        """Names that are read in a scope, each with the scope that declares it."""
        return [(owner, name) for name in names if name and (owner := self._index.owner(name, scope)) is not None]

    def _node(self, place: Place) -> onnx.NodeProto:
        return self._scopes[place[0]].body.node[place[1]]

    def _write_nodes(self, scope: Scope, changed: Sequence[int]) -> None:
        """Put the new nodes of one scope in their places.

        They are added at the end, and all are sorted in place: inserting each takes time that grows with the graph.
        """
        nodes = scope.body.node
        count = len(nodes)
        keys: list[float] = list(range(count))
        for index in changed:
            place = (scope.index, index)
            new = [*self._new_nodes.get(place, []), *self._after.get(place, [])]
            nodes.extend(new)
            keys += [index + 0.5] * len(new)
            if place in self._new_nodes:
                keys[index] = math.inf
        held = list(nodes)
        order = {id(node): key for node, key in zip(held, keys, strict=True)}
        nodes.sort(key=lambda node: order[id(node)])
        del nodes[len(keys) - keys.count(math.inf) :]

    def _remove_orphans(self, body: onnx.GraphProto | onnx.FunctionProto, gone: set[str]) -> None:
        if isinstance(body, onnx.FunctionProto):
            _remove(body.value_info, gone)
            return
        self._edit.removed_weights += _remove(body.initializer, gone)
        self._edit.removed_inputs += _remove(body.input, gone)
        _remove(body.value_info, gone)
        for index in reversed(range(len(body.quantization_annotation))):
            if body.quantization_annotation[index].tensor_name in gone:
                del body.quantization_annotation[index]


def _carry(source: onnx.NodeProto, new: onnx.NodeProto, metadata: Mapping[str, str]) -> None:
    """Give a new node the domain and the metadata of the one that it replaces, and its own metadata."""
    if source.domain:
        new.domain = source.domain
    own = {entry.key: entry.value for entry in source.metadata_props}
    for key, value in {**own, **metadata}.items():
        entry = new.metadata_props.add()
        entry.key, entry.value = key, value


def _constant_node(tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [tensor.name], name=name, value=tensor)


def _as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _remove(values: Any, names: set[str]) -> list[str]:
    """Delete the members with these names from a repeated field; gives the names that were there."""
    removed = []
    for index in reversed(range(len(values)) if names else ()):
        if values[index].name in names:
            removed.append(values[index].name)
            del values[index]
    return removed[::-1]
