"""Putting new nodes into the source model, in place of matches, and taking out constants that nothing uses any more.

Everything else in the model stays the source's own proto.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnxsep.engine.factors import Factorized
from onnxsep.engine.matches import BlockMatch
from onnxsep.engine.node_forms import Form, Surroundings, node_form
from onnxsep.engine.removal import remove_tensors
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.graph.index import Index
from onnxsep.graph.marks import PREFIX, SOURCE, Marking, Marks
from onnxsep.graph.new_names import Names
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import Scope, display_name, opset_version, scopes
from onnxsep.graph.shapes import stub
from onnxsep.graph.transposing import turned, turned_shape
from onnxsep.graph.view import ONNX_TYPES, NewNode, build_nodes, build_tensor
from onnxsep.layers.layer import INPUT, ConvLayer, channels

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
    """For the place of each replaced match the tensors that the new nodes compute; they stand in the same scope."""


def replace_matches(
    model: onnx.ModelProto, replacements: Sequence[Replacement], factors: Mapping[Place, Factorized] | None
) -> Edit:
    """Replace Convs and blocks in ``model``, which is changed.

    Args:
        model: a model of the same structure as the one that the sites were found in.
        replacements: the plan's replacements.
        factors: the weights, and the bias where it is new, for the place of each match; None where only the
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
        self._marks, self._marking = Marks(model, self._scopes), Marking(model, self._scopes)
        self._new_nodes: dict[Place, list[onnx.NodeProto]] = {}  # in place of these nodes
        self._after: dict[Place, list[onnx.NodeProto]] = {}  # right behind these nodes
        self._factor_names: dict[Hashable, dict[tuple[str, str], str]] = {}

    def run(self, replacements: Sequence[Replacement]) -> Edit:
        orphans: dict[int, set[str]] = defaultdict(set)
        for replacement in replacements:
            match = replacement.site
            if isinstance(replacement, BlockReplacement) and replacement.mode.appends:
                self._append(replacement)
                continue
            for place in match.nodes:
                self._new_nodes[place] = []
                self._marking.drop(place[0], self._node(place).output)
                if place != match.place:  # what is said about its outputs goes with it
                    orphans[place[0]].update(self._node(place).output)
            self._new_nodes[match.place] = self._build(replacement)
            self._edit.made[match.place] = tuple(node.output[0] for node in self._new_nodes[match.place])
        # Only now do the old weights lose their users, so only now can places shift.
        replaced = dict.fromkeys(constant for replacement in replacements for constant in replacement.replaced)
        for owner, name in self._orphans(replaced):
            orphans[owner].add(name)
        changed: dict[int, set[int]] = defaultdict(set)
        for owner, index in (*self._new_nodes, *self._after):
            changed[owner].add(index)
        for scope in self._scopes:
            if scope.index in changed:
                self._write_nodes(scope, sorted(changed[scope.index]))
            if orphans[scope.index]:
                weights, inputs = remove_tensors(scope.body, orphans[scope.index])
                self._edit.removed_weights += weights
                self._edit.removed_inputs += inputs
        self._marking.write()
        return self._edit

    def _append(self, replacement: BlockReplacement) -> None:
        """Put new nodes behind those of a match, which stay; the last one makes a tensor of another name now."""
        match, index = replacement.site, replacement.site.place[0]
        scope, node = self._scopes[index], self._node(match.place)
        last = onnx.NodeProto.FromString(node.SerializeToString())
        before = self._marks.of(index, node)
        last.output[0] = self._names.tensor(scope, f"{node.output[0]}_before")
        new = self._build(replacement, last.output[0])
        anchor = self._node(match.anchor.place)
        if before:
            self._marking.set(index, last.output[0], before)
        self._marking.set(index, anchor.output[0], self._said(replacement, scope, anchor))
        self._new_nodes[match.place] = [last, *new]
        kept = (self._node(place).output[0] for place in match.nodes if place != match.place)
        self._edit.made[match.place] = (*kept, last.output[0], *(made.output[0] for made in new))

    def _build(self, replacement: Replacement, read: str = "") -> list[onnx.NodeProto]:
        match = replacement.site
        scope = self._scopes[match.place[0]]
        node = self._node(match.anchor.place)
        output = self._node(match.place).output[0]
        opset, counts = (
            opset_version(self._model, self._scopes, scope.index),
            channels(replacement.layers, replacement.in_channels),
        )
        forms = {
            layer.name: node_form(layer, Surroundings(match, opset, counts[layer.sources[0]]))
            for layer in replacement.layers
        }
        weights = self._weights(replacement, output, forms)
        if not isinstance(replacement, ConvReplacement):
            weights = weights | {tensor: constant.name for tensor, constant in replacement.kept.items()}
        said = self._said(replacement, scope, node)
        tensors = {INPUT: read or (match.input if isinstance(match, BlockMatch) else node.input[0])}
        last = replacement.layers[-1]
        built: list[onnx.NodeProto] = []
        for layer in replacement.layers:
            tensor = output if layer is last else self._names.tensor(scope, f"{output}_{layer.name}")
            tensors[layer.name] = tensor
            name = self._names.node(f"{display_name(node)}_{layer.name}")
            form = forms[layer.name]
            inputs = [tensors[source] for source in layer.sources]
            for kind, _ in layer.tensors:
                inputs.append(weights.get((layer.name, kind)) or self._bias(replacement, node, output))
            for suffix, values in form.operands(match.anchor.dtype).items():
                given = build_tensor(self._names.tensor(scope, f"{tensor}_{suffix}"), values)
                built.append(_constant_node(given, self._names.node(given.name)))
                self._marking.set(scope.index, given.name, said)
                inputs.append(given.name)
            built += build_nodes([NewNode(form.op_type, name, inputs, tensor, dict(form.attributes))])
            self._marking.set(scope.index, tensor, said)
        for proto in built:
            _carry(node, proto)
        if node.doc_string:
            built[-1].doc_string = node.doc_string
        return built

    def _said(self, replacement: Replacement, scope: Scope, node: onnx.NodeProto) -> dict[str, str]:
        """What new nodes say about themselves, beside what the one in whose place they stand has said."""
        mode, match = replacement.mode, replacement.site
        source = display_name(self._node(match.anchor.place))
        before = self._marks.of(scope.index, node)
        if isinstance(replacement, ConvReplacement):
            rank = "x".join(map(str, replacement.rank))
            return before | {"mode": mode.name, "rank": rank, SOURCE: source}
        if replacement.mode.finished:
            return before | {"mode": mode.name, SOURCE: source}
        names = ", ".join(display_name(self._node(place)) for place in match.nodes)
        return before | {mode.name: names, SOURCE: source}

    def _weights(self, replacement: Replacement, output: str, forms: Mapping[str, Form]) -> dict[tuple[str, str], str]:
        """Names of the tensors that were computed, by layer and name in it.

        They are stored once, in the form and the place of the weight that they replace.
        """
        groups = {layer.name: layer.conv.group for layer in replacement.layers if isinstance(layer, ConvLayer)}
        # Those that are stored input channels first, by groups.
        transposed = [
            groups[layer] if kind == "weight" and forms[layer].transposed else 0
            for layer, kind, _ in replacement.tensors
        ]
        key = replacement.key, tuple(transposed)
        if key in self._factor_names:
            return self._factor_names[key]
        site = replacement.site.anchor
        scope = self._scopes[site.weight.scope]
        names = [self._names.tensor(scope, f"{output}_{layer}_{kind}") for layer, kind, _ in replacement.tensors]
        if self._factors is None:
            shapes = (
                turned_shape(shape, group) if group else shape
                for (*_, shape), group in zip(replacement.tensors, transposed, strict=True)
            )
            tensors = [stub(name, ONNX_TYPES[site.dtype], shape) for name, shape in zip(names, shapes, strict=True)]
        else:
            arrays = (
                turned(array, group) if group else array
                for array, group in zip(self._factors[replacement.site.place].arrays, transposed, strict=True)
            )
            tensors = [build_tensor(name, array) for name, array in zip(names, arrays, strict=True)]
        self._store(tensors, replacement)
        named = {(layer, kind): name for (layer, kind, _), name in zip(replacement.tensors, names, strict=True)}
        self._factor_names[key] = named
        return named

    def _bias(self, replacement: Replacement, node: onnx.NodeProto, output: str) -> str:
        """The name of a Conv's bias: the source's own, or the fitted one, which every Conv has for itself."""
        if not replacement.new_bias:
            return node.input[2]
        site = replacement.site.anchor
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
        weight = replacement.site.anchor.weight
        scope = self._scopes[weight.scope]
        if scope.kind == "main":
            self._edit.new_weights.extend(tensor.name for tensor in tensors)
        if weight.nodes:
            nodes = [_constant_node(tensor, self._names.node(tensor.name)) for tensor in tensors]
            old = self._node(weight.nodes[-1])
            for node in nodes:
                _carry(old, node)
                self._marking.set(scope.index, node.output[0], self._said(replacement, scope, old))
            self._after.setdefault(weight.nodes[-1], []).extend(nodes)
        else:
            assert isinstance(scope.body, onnx.GraphProto)
            scope.body.initializer.extend(tensors)
            if scope.kind == "main":
                self._edit.new_initializers.extend(tensor.name for tensor in tensors)
            if self._model.ir_version <= INITIALIZERS_ARE_INPUTS:
                scope.body.input.extend(as_input(tensor) for tensor in tensors)

    def _orphans(self, weights: Iterable[Constant]) -> set[tuple[int, str]]:
        """(scope, name) of the replaced constants, and of what only they were made of, that nothing uses any more."""
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


def _carry(source: onnx.NodeProto, new: onnx.NodeProto) -> None:
    """Give a new node the domain and the metadata of the one that it replaces; marks stand in the model."""
    if source.domain:
        new.domain = source.domain
    new.metadata_props.extend(entry for entry in source.metadata_props if not entry.key.startswith(PREFIX))


def _constant_node(tensor: onnx.TensorProto, name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [tensor.name], name=name, value=tensor)


def as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    """The input of a graph that stands for an initialiser."""
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
