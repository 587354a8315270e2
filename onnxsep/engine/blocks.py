"""Finding what a block mode may replace: the matches of its pattern, and why other convolutions are in none."""

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx

from onnxsep.engine.matches import BlockMatch, ConvSite, Match, Rejected
from onnxsep.engine.planning import naming, reject
from onnxsep.engine.sites import Sites
from onnxsep.errors import FactorizationError
from onnxsep.graph import matching
from onnxsep.graph.constants import read_constant, stored_tensor
from onnxsep.graph.counting import node_macs
from onnxsep.graph.geometry import conv_geometry
from onnxsep.graph.index import Index
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import display_name, opset_version, scopes
from onnxsep.graph.shapes import KnownShapes
from onnxsep.graph.view import FLOAT_TYPES
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.modes.base import AnyMode
from onnxsep.modes.block import Block, BlockMode, Operator


def matches(model: Model, sites: Sites, mode: AnyMode) -> Sequence[Match | Rejected]:
    """What a mode of either kind may replace: Convs, or the matches of its pattern; the others with the reason.

    Raises:
        PassError: the mode failed.
    """
    return find_blocks(model, sites, mode) if isinstance(mode, BlockMode) else sites.found


def find_blocks(model: Model, sites: Sites, mode: BlockMode) -> tuple[BlockMatch | Rejected, ...]:
    """The matches of a mode, and for every other convolution why it is in none; in graph order.

    Args:
        model: the source.
        sites: its convolutions.
        mode: says what to look for.

    Raises:
        PassError: the mode failed.
    """
    return tuple(_Finder(model, sites, mode).run())


class _Finder:
    def __init__(self, model: Model, sites: Sites, mode: BlockMode) -> None:
        self._model, self._sites, self._mode = model, sites, mode
        self._index = Index(model.proto, sites.scopes)
        self._known = KnownShapes(scopes(sites.light))
        self._macs = node_macs(sites.light)

    def run(self) -> Iterator[BlockMatch | Rejected]:
        with naming(self._mode, ""):
            found = self._mode.pattern.find(self._index)
        anchor = self._mode.anchor
        matches = {match.nodes[anchor]: match for match in found.matches}
        refused = {refusal.nodes[anchor]: refusal for refusal in found.refused if anchor in refusal.nodes}
        for refusal in found.refused:  # it may be its last nodes that are there
            for place in refusal.nodes.values() if len(refusal.nodes) > 1 else ():
                refused.setdefault(place, refusal)
        inner = {place for match in found.matches for place in match.nodes.values()} - matches.keys()
        for item in self._sites.found:
            if item.place in inner:  # it is told of in the row of the match
                continue
            if isinstance(item, Rejected):
                yield item
            elif item.conv.transposed or (item.op_type != "Conv" and not self._mode.linear_layers):
                yield reject(item, f"mode {self._mode.name} takes Convs only")
            elif item.place in matches:
                yield self._block(item, matches[item.place])
            else:
                with naming(self._mode, item.name):
                    reason = self._mode.why_not(refused.get(item.place))
                yield reject(item, reason)

    def _block(self, site: ConvSite, match: matching.Match) -> BlockMatch | Rejected:
        reason = self._unfit(match.nodes)
        if reason:
            return reject(site, reason)
        try:
            shapes = {role: self._shape(constant) for role, constant in match.constants.items()}
        except FactorizationError as error:
            return reject(site, str(error))
        opset = opset_version(self._model.proto, self._sites.scopes, match.scope)
        outside = list(dict.fromkeys(match.values.values()))
        if len(outside) != 1:
            return reject(site, f"{len(outside)} tensors come from outside, and a block has one")
        nodes = {role: self._operator(place) for role, place in match.nodes.items()}
        convs = self._convs(match)
        if isinstance(convs, str):
            return reject(site, convs)
        block = Block(site.conv, nodes, shapes, opset, self._known.of(match.scope, outside[0]), convs)
        distinct = {constant: shapes[role] for role, constant in match.constants.items()}
        weights = [shape for constant, shape in distinct.items() if self._is_weight(constant)]
        macs = [self._macs[place] for place in match.nodes.values() if place in self._macs]
        known = [count for count in macs if count is not None]
        others = (place for place in match.nodes.values() if place != site.place)
        company = ", ".join(f"{node.op_type} {display_name(node)!r}" for node in map(self._index.node, others))
        said = self._sites.marks.of(match.scope, self._index.node(site.place))
        # The name of a mode that leaves a Conv for others to take is a key of its own.
        again = self._mode.name in said or site.made_by == self._mode.name
        return BlockMatch(
            site,
            match.nodes,
            match.constants,
            block,
            sum(map(math.prod, weights)),
            outside[0],
            sum(known) if len(known) == len(macs) else None,
            company,
            again,
            mixed=len({self._type(constant) for constant in distinct} & FLOAT_TYPES.keys()) > 1,
        )

    def _unfit(self, nodes: Mapping[str, Place]) -> str | None:
        """Why nodes cannot be replaced, whatever the mode; None where they can."""
        for place in nodes.values():
            node, label = self._index.node(place), self._index.label(place)
            given = [entry.name for entry in node.attribute if entry.ref_attr_name]
            if given:
                return f"{label} takes {given[0]!r} from the call of the function"
            if len(node.device_configurations if hasattr(node, "device_configurations") else ()):
                return f"{label} has a device configuration (sharding), which cannot be carried to the new nodes"
        return None

    def _convs(self, match: matching.Match) -> dict[str, Conv] | str:
        """The geometry of the Convs of a match, by role, or why one of them has none."""
        shapes = {constant: self._shape(constant) for constant in match.constants.values()}
        found: dict[str, Conv] = {}
        for role, place in match.nodes.items():
            node = self._index.node(place)
            weight = self._index.constant(node.input[1], match.scope) if node.op_type == "Conv" else None
            if weight not in shapes:
                continue
            geometry = conv_geometry(node, shapes[weight])
            if isinstance(geometry, str):
                return f"{self._index.label(place)}: {geometry}"
            found[role] = geometry
        return found

    def _operator(self, place: Place) -> Operator:
        node = self._index.node(place)
        values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        plain = ((name, tuple(value) if isinstance(value, list) else value) for name, value in values.items())
        dims = self._known.of(place[0], node.output[0])
        return Operator(node.op_type, tuple(sorted(plain)), sum(map(bool, node.output)), dims)

    def _shape(self, constant: Constant) -> tuple[int, ...]:
        tensor = stored_tensor(self._sites.scopes, constant)
        if tensor is not None:
            return tuple(tensor.dims)
        return read_constant(self._model, self._sites.scopes, constant).shape

    def _is_weight(self, constant: Constant) -> bool:
        """Whether it counts as parameters: shapes and axes do not."""
        kind = self._type(constant)
        return kind is None or kind in FLOAT_TYPES

    def _type(self, constant: Constant) -> int | None:
        """ONNX's number of its type; None where an expression computes it."""
        tensor = stored_tensor(self._sites.scopes, constant)
        return None if tensor is None else tensor.data_type
