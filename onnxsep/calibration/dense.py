"""Replaced layers as a run of the network has them: a Conv as the dense one that its factors multiply to."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.own_nodes import OwnNodes
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.places import Place
from onnxsep.graph.transposing import turned
from onnxsep.graph.view import build_tensor

Dense = tuple[Array, Array | None]
"""Weight [out_channels, in_channels / group, *kernel_shape] and bias [out_channels], None for the one that is there."""


def as_dense(
    node: onnx.NodeProto, site: ConvSite, weight: Array, bias: Array | None, *, copied: bool
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A Conv, ConvTranspose, Gemm or MatMul with other values.

    Args:
        node: As it stands in the network.
        site: What is known of it.
        weight: [out_channels, in_channels / group, *kernel_shape].
        bias: [out_channels]; None leaves it as it is.
        copied: Whether the network is run as a float32 copy.

    Returns:
        The node, and the tensors that it reads.
    """
    index, new = site.place[1], onnx.NodeProto()
    new.CopyFrom(node)
    kind = STORED_TYPES["float32" if copied else site.dtype]
    new.input[1] = f"onnxsep.calibration.{index}.weight"
    stored = np.ascontiguousarray((turned(weight, site.conv.group) if site.transposed else weight).astype(kind))
    tensors = [build_tensor(new.input[1], stored)]
    if bias is not None:
        del new.input[2:]
        new.input.append(f"onnxsep.calibration.{index}.bias")
        tensors.append(build_tensor(new.input[2], bias.astype(kind)))
    return new, tensors


def stand_ins(
    nodes: Sequence[onnx.NodeProto], sites: Sites, replaced: Mapping[Place, Dense | OwnNodes], *, copied: bool
) -> OwnNodes:
    """What runs in place of nodes of the main graph where layers and blocks are replaced.

    Args:
        nodes: Those of the graph.
        sites: The layers.
        replaced: By place of a Conv its other values, by that of a block its own nodes.
        copied: Whether the network is run as a float32 copy.
    """
    found, tensors = dict[int, list[onnx.NodeProto]](), list[onnx.TensorProto]()
    by_place = {site.place: site for site in sites.found if isinstance(site, ConvSite)}
    for place, stand in replaced.items():
        if isinstance(stand, OwnNodes):
            found |= stand.nodes
            tensors += stand.tensors
            continue
        node, new = as_dense(nodes[place[1]], by_place[place], *stand, copied=copied)
        found[place[1]] = [node]
        tensors += new
    return OwnNodes(found, tensors)
