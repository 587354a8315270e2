"""Blocks that are replaced by something else than what they compute, as a calibrated network must run them.

A replaced Conv can stand there as the dense Conv that its factors multiply to. A block has no such Conv: its own new
nodes run, so that the Convs behind it are fitted to what they will really read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxsep.engine.factors import Factorized, factorize_one
from onnxsep.engine.planning import Plan, in_main_graph
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import replace_matches
from onnxsep.graph.constants import find_constant
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import Model
from onnxsep.running.float32 import float32_copy


@dataclass(frozen=True)
class OwnNodes:
    """What runs in place of the nodes of the main graph, by their indices, and the tensors that it reads."""

    nodes: dict[int, list[onnx.NodeProto]]
    tensors: Sequence[onnx.TensorProto]

    def of(self, row: BlockReplacement) -> "OwnNodes":
        """Those of one block."""
        nodes = {index: self.nodes[index] for _, index in row.site.nodes}
        read = {name for several in nodes.values() for node in several for name in node.input}
        return OwnNodes(nodes, [tensor for tensor in self.tensors if tensor.name in read])

    @property
    def all_nodes(self) -> list[onnx.NodeProto]:
        """The nodes in order."""
        return [node for index in sorted(self.nodes) for node in self.nodes[index]]


def own_nodes(
    model: Model, sites: Sites, plan: Plan, *, copied: bool, given: Mapping[Place, Factorized] | None = None
) -> OwnNodes:
    """The new nodes of the blocks of the main graph that are not exact.

    Args:
        model: the source.
        sites: its convolutions.
        plan: what to replace.
        copied: whether the network is run as a float32 copy.
        given: tensors of blocks, by their places; others are those of the weights alone.

    Raises:
        PassError: a mode broke a promise.
    """
    found: dict[Place, Factorized] = {}
    rows: list[BlockReplacement] = []
    for row in plan.replacements:
        if isinstance(row, BlockReplacement) and not row.exact and in_main_graph(row.site):
            made = (given or {}).get(row.site.place) or factorize_one(model, sites, row)
            if isinstance(made, Factorized):
                rows.append(row)
                found[row.site.place] = made
    if not rows:
        return OwnNodes({}, ())
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    edit = replace_matches(proto, rows, found)
    result = Model(proto, path=model.path, base_dir=model.base_dir, follow_links=model.follow_links)
    if copied:
        proto = float32_copy(result).proto
    makers = {name: node for node in proto.graph.node for name in node.output}
    nodes: dict[int, list[onnx.NodeProto]] = {}
    for row in rows:
        nodes.update({index: [] for _, index in row.site.nodes})
        nodes[row.site.place[1]] = [
            onnx.NodeProto.FromString(makers[name].SerializeToString()) for name in edit.made[row.site.place]
        ]
    all_scopes = scopes(proto)
    tensors = []
    for name in edit.new_weights:
        tensor = onnx.TensorProto()
        value = find_constant(all_scopes, 0, name)
        assert value is not None, "surgery has put it there"
        tensor.CopyFrom(value)
        tensor.name = name
        tensors.append(tensor)
    return OwnNodes(nodes, tensors)
