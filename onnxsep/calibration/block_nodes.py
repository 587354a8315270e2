"""The new nodes of one block, as they can be run with one set of tensors after another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.frontier import Frontier
from onnxsep.engine.factors import Factorized, block_tensors
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import replace_matches
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.view import build_tensor
from onnxsep.layers.layer import INPUT
from onnxsep.model.io import Model
from onnxsep.running.float32 import float32_copy

TensorName = tuple[str, str]
"""Of a tensor of a block: its layer, and its name in it."""


@dataclass(frozen=True)
class BlockNodes:
    """What stands in place of a block.

    Attributes:
        nodes: in order.
        outputs: what each layer computes, by its name; ``INPUT`` is what the block reads.
        operands: names of the tensors that the mode computes.
        dtype: of these tensors where the network is run.
    """

    nodes: tuple[onnx.NodeProto, ...]
    outputs: Mapping[str, str]
    operands: Mapping[TensorName, str]
    dtype: Any

    def store(self, frontier: Frontier, tensors: Mapping[TensorName, Array]) -> None:
        """Let nodes that are run later compute with these tensors."""
        for key, array in tensors.items():
            frontier.add_initializer(build_tensor(self.operands[key], array.astype(self.dtype)))

    def up_to(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that a tensor of theirs depends on, and maybe more."""
        last = next((number for number, node in enumerate(self.nodes) if tensor in node.output), -1)
        return list(self.nodes[: last + 1])


def build_block(model: Model, sites: Sites, block: BlockReplacement, *, copied: bool) -> BlockNodes:
    """The new nodes of a block, without the values of their tensors.

    Args:
        model: the source.
        sites: its convolutions.
        block: what is replaced.
        copied: whether the network is run as a float32 copy.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(sites.light)
    edit = replace_matches(proto, [block], None)
    makers = {name: node for node in proto.graph.node for name in node.output}
    nodes = [makers[name] for name in edit.made[block.site.place]]
    if copied:  # for the types of their constants
        alone = onnx.ModelProto(graph=onnx.GraphProto(node=nodes))
        nodes = list(float32_copy(Model(alone)).proto.graph.node)
    made = [node for node in nodes if node.op_type != "Constant"]
    outputs, operands = {INPUT: block.site.input}, dict[TensorName, str]()
    for layer, node in zip(block.layers, made, strict=True):
        outputs[layer.name] = node.output[0]
        given = node.input[len(layer.sources) : len(layer.sources) + len(layer.tensors)]
        operands |= {(layer.name, kind): name for (kind, _), name in zip(layer.tensors, given, strict=True)}
    chosen = {(layer, kind): operands[layer, kind] for layer, kind, _ in block.tensors}
    own = tuple(onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes)
    return BlockNodes(own, outputs, chosen, np.float32 if copied else STORED_TYPES[block.site.dtype])


def tensors_of(block: BlockReplacement, made: Factorized) -> dict[TensorName, Array]:
    """The tensors that a mode has computed, by name."""
    return {(layer, kind): array for (layer, kind, _), array in zip(block.tensors, made.factors.weights, strict=True)}


def stored(block: BlockReplacement, tensors: Mapping[TensorName, Array]) -> Factorized | str:
    """These tensors in the stored type, or why they do not fit into it."""
    return block_tensors(block, [np.asarray(tensors[layer, kind], np.float64) for layer, kind, _ in block.tensors])
