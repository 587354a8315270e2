"""Verification piece by piece: the new nodes of each match against the old ones, on random input of their own.

The pieces are cut out of the source and the result as they are, weights and bias included, so what is compared is what
will be saved. It needs memory for one Conv at a time, so it works where the whole model is too large to run twice.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.engine.matches import BlockMatch, ConvSite, Match
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.constants import find_constant, read_constant
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import Scope, opset_version, scopes
from onnxsep.graph.view import ONNX_TYPES, build_tensor
from onnxsep.model.io import Model, read_tensor
from onnxsep.options.progress import Progress, announce
from onnxsep.running.comparison import Comparison, compare_outputs
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import RuntimeOptions

MAX_SIZE = 64  # along each axis; a piece behaves alike at any size that holds its kernel
ROWS = 64  # of the input of a Gemm or MatMul; each is treated alike
_OPSETS = 7, 11  # every runtime runs these, and what is in the piece of a Conv means the same from 11 on


def compare_pieces(
    source: Model,
    result: Model,
    sites: Sites,
    replacements: Sequence[Replacement],
    made: Mapping[Place, Sequence[str]],
    options: RuntimeOptions,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare the nodes that replaced each match with those of the match, in the order of ``replacements``.

    Args:
        source: the original.
        result: the rewritten model; its scopes are those of the source.
        sites: where the Convs were found in the source.
        replacements: what was replaced.
        made: for the place of each, the tensors that the new nodes compute (``onnxsep.engine.surgery.Edit.made``).
        options: how to run the pieces.
        seed: of the random inputs.
        progress: told of every piece that is done.

    Raises:
        VerificationError: a piece gives another shape or type, or NaN where the original does not.
        CannotRun: the runtime has no such Conv.
    """
    comparisons = []
    new_scopes = scopes(result.proto)
    for number, replacement in enumerate(replacements):
        site, scope = replacement.site, replacement.site.place[0]
        old = [sites.scopes[scope].body.node[index] for _, index in site.nodes]
        weights = {
            constant.name: build_tensor(constant.name, read_constant(source, sites.scopes, constant))
            for constant in replacement.replaced
        }
        names = set(made[site.place])
        nodes = [node for node in new_scopes[scope].body.node if names.intersection(node.output)]
        announce(progress, site.name, number, len(replacements))
        original = _piece(source, sites.scopes, site, old, weights)
        replaced = _piece(result, new_scopes, site, nodes, {})
        feeds = {
            value.name: _random(site, [dim.dim_value for dim in value.type.tensor_type.shape.dim], seed)
            for value in original.proto.graph.input
        }
        # A Conv may have filters of any size: nothing tells that its channels are things of unlike kinds.
        comparisons.append(compare_outputs(original, replaced, Feeds(feeds, ()), options, parts=False))
        if progress:
            progress(site.name, number + 1, len(replacements))
    return comparisons


def piece_size(site: Match) -> tuple[int, ...]:
    """Spatial sizes for a piece: those of the model up to ``MAX_SIZE``, but no smaller than the dilated kernel."""
    if site.anchor.one_size and site.input_size:
        return site.input_size
    if isinstance(site, BlockMatch) and site.op_type != "Conv":  # what such a block reads has one size alone
        return site.input_size or ()
    windows = [(k - 1) * d + 1 for k, d in zip(site.conv.kernel_shape, site.conv.dilations, strict=True)]
    known = site.input_size or tuple(window + 8 for window in windows)
    return tuple(min(size, max(MAX_SIZE, window)) for size, window in zip(known, windows, strict=True))


def piece_shape(site: Match) -> tuple[int, ...]:
    """Shape of the input of a piece: one image, or some rows for a Gemm or MatMul."""
    if isinstance(site, BlockMatch) and (site.block.dims or site.op_type == "Conv"):
        return 1, site.in_channels, *piece_size(site)
    if not site.conv.dims:
        return ROWS, site.conv.in_channels
    return 1, site.conv.in_channels, *piece_size(site)


def _random(site: Match, shape: Sequence[int], seed: int) -> NDArray[np.generic]:
    values = np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
    return values.astype(STORED_TYPES[site.dtype])


def _piece(
    model: Model,
    all_scopes: Sequence[Scope],
    site: Match,
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, onnx.TensorProto],
) -> Model:
    """A model of some nodes alone, with the constants that they use.

    Its inputs are the match's input and, where it is not constant, a Conv's bias.
    """
    conv, kind = site.conv, ONNX_TYPES[site.dtype]
    initializers = dict(weights)
    made = {name for node in nodes for name in node.output}
    shapes: dict[str, list[int]] = {}
    for node in nodes:
        for position, name in enumerate(node.input):
            if not name or name in made or name in initializers:
                continue
            tensor = find_constant(all_scopes, site.place[0], name) if position else None
            if tensor is not None:
                initializers[name] = build_tensor(name, read_tensor(model, tensor))
            else:
                shapes[name] = [conv.out_channels] if position else list(piece_shape(site))
    inputs = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    output = onnx.helper.make_tensor_value_info(nodes[-1].output[0], kind, None)
    graph = onnx.helper.make_graph(list(nodes), "piece", inputs, [output], list(initializers.values()))
    # It may have no bfloat16, but neither has the runtime: a float32 copy is what will run.
    opset = max(opset_version(model.proto, all_scopes, site.place[0]), _OPSETS[0])
    if isinstance(site, ConvSite):
        opset = min(opset, _OPSETS[1])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    return Model(proto)
