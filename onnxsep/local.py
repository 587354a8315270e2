"""Verification piece by piece: each replaced Conv against the original one, on random input of its own.

It needs memory for one Conv at a time, so it works where the whole model is too large to run twice.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.factors import STORED_TYPES, Factorized, Progress, read_site_weight
from onnxsep.feeds import Feeds
from onnxsep.graph import ONNX_TYPES, NewNode, build_nodes, build_tensor
from onnxsep.io import Model
from onnxsep.planning import Replacement
from onnxsep.runtime import RuntimeOptions
from onnxsep.sites import Sites
from onnxsep.surgery import conv_attributes
from onnxsep.types import INPUT, ConvLayer, ConvSite, Layer
from onnxsep.verify import Comparison, compare_outputs

MAX_SIZE = 64  # along each axis; a piece behaves alike at any size that holds its kernel
_OUTPUT = "output"


def compare_pieces(
    model: Model,
    sites: Sites,
    replacements: Sequence[Replacement],
    factors: dict[int, Factorized],
    options: RuntimeOptions,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare every replaced Conv with the original one, without bias, in the order of ``replacements``.

    Raises:
        VerificationError: a piece gives another shape or type, or NaN where the original does not.
        CannotRun: the runtime has no such Conv.
    """
    comparisons = []
    for number, replacement in enumerate(replacements):
        site = replacement.site
        weight = read_site_weight(model, sites, site)
        original = _piece(site, (ConvLayer(_OUTPUT, INPUT, site.conv),), [weight])
        result = _piece(site, replacement.layers, factors[id(replacement)].arrays)
        comparisons.append(
            compare_outputs(original, result, Feeds({INPUT: _input(site, seed), **_bias(site)}, ()), options)
        )
        if progress:
            progress(site.name, number + 1, len(replacements))
    return comparisons


def piece_size(site: ConvSite) -> tuple[int, ...]:
    """Spatial sizes for a piece: those of the model up to ``MAX_SIZE``, but no smaller than the dilated kernel."""
    windows = [(k - 1) * d + 1 for k, d in zip(site.conv.kernel_shape, site.conv.dilations, strict=True)]
    known = site.input_size or tuple(window + 8 for window in windows)
    return tuple(min(size, max(MAX_SIZE, window)) for size, window in zip(known, windows, strict=True))


def _input(site: ConvSite, seed: int) -> NDArray[np.generic]:
    shape = (1, site.conv.in_channels, *piece_size(site))
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values.astype(STORED_TYPES[site.dtype])


def _bias(site: ConvSite) -> dict[str, NDArray[np.generic]]:
    return {"bias": np.zeros(site.conv.out_channels, STORED_TYPES[site.dtype])} if site.conv.bias else {}


def _piece(site: ConvSite, layers: Sequence[Layer], arrays: Sequence[NDArray[np.generic]]) -> Model:
    """A model of the layers alone: input -> output."""
    weights = iter(arrays)
    nodes: list[NewNode] = []
    initializers: list[onnx.TensorProto] = []
    for layer in layers:
        output = _OUTPUT if layer is layers[-1] else layer.name
        if not isinstance(layer, ConvLayer):
            nodes.append(NewNode("Add", layer.name, layer.inputs, output, {}))
            continue
        initializers.append(build_tensor(f"{layer.name}_weight", next(weights)))
        inputs = [layer.input, initializers[-1].name, *(["bias"] if layer.conv.bias else [])]
        nodes.append(NewNode("Conv", layer.name, inputs, output, conv_attributes(layer.conv)))
    kind = ONNX_TYPES[site.dtype]
    values = [onnx.helper.make_tensor_value_info(INPUT, kind, [1, site.conv.in_channels, *piece_size(site)])]
    if site.conv.bias:
        values.append(onnx.helper.make_tensor_value_info("bias", kind, [site.conv.out_channels]))
    outputs = [onnx.helper.make_tensor_value_info(_OUTPUT, kind, None)]
    graph = onnx.helper.make_graph(build_nodes(nodes), "piece", values, outputs, initializers)
    # Every runtime runs opset 11. It has no bfloat16, but neither has the runtime: a float32 copy is what will run.
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
    return Model(proto)
