"""A replaced Conv as a run of the network has it where that is quicker: the layers that take its place.

What they compute is what the dense Conv of ``onnxsep.calibration.dense`` computes, but for rounding. On large maps most
of a calibration's time goes into running the two networks, and layers with fewer MACs take less of it.
"""

import numpy as np
import onnx

from onnxsep.algebra.linalg import Array
from onnxsep.engine.node_forms import Surroundings, node_form
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.graph.view import NewNode, build_nodes, build_tensor
from onnxsep.layers.layer import INPUT, channels, parameters
from onnxsep.modes.base import Factors

_SHARE = 0.6  # of the Conv's parameters, and so about of its MACs, from which on one large Conv is as quick
_FIRST_OPSET = 11  # below it nodes have other forms


def as_layers(
    node: onnx.NodeProto,
    replacement: ConvReplacement,
    factors: Factors,
    bias: Array | None,
    opset: int,
    *,
    copied: bool,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]] | None:
    """The layers of a replacement as nodes.

    Args:
        node: the Conv as it stands in the network.
        replacement: what takes its place.
        factors: the weights of its layers.
        bias: [out_channels]; None leaves it as it is.
        opset: the version of ONNX's operators in the model.
        copied: whether the network is run as a float32 copy.

    Returns:
        The nodes, and the tensors that they read; None where one dense Conv should run: the layers would take as long,
        or intermediate values might not fit into a short type.
    """
    site = replacement.site
    conv, layers = site.conv, replacement.layers
    single = copied or site.dtype == "float32"
    if opset < _FIRST_OPSET or not single or conv.dims != 2 or conv.transposed or replacement.exact:
        return None
    if parameters(layers) > _SHARE * conv.parameters:
        return None
    counts = channels(layers, replacement.in_channels)
    forms = {layer.name: node_form(layer, Surroundings(site, opset, counts[layer.sources[0]])) for layer in layers}
    if any(form.integers or form.transposed for form in forms.values()):
        return None
    prefix = f"onnxsep.calibration.{site.place[1]}"
    names = {(layer, kind): f"{prefix}.{layer}.{kind}" for layer, kind, _ in replacement.tensors}
    tensors = [
        build_tensor(name, np.ascontiguousarray(array, np.float32))
        for name, array in zip(names.values(), factors.weights, strict=True)
    ]
    biased = any(kind == "bias" for layer in layers for kind, _ in layer.tensors)
    offset = node.input[2] if len(node.input) > 2 else ""
    if biased and (bias is not None or not offset):
        offset = f"{prefix}.bias"
        stored = np.zeros(conv.out_channels) if bias is None else bias
        tensors.append(build_tensor(offset, stored.astype(np.float32)))
    made = {INPUT: node.input[0], **{layer.name: f"{prefix}.{layer.name}" for layer in layers}}
    made[layers[-1].name] = node.output[0]
    new = []
    for layer in layers:
        operands = [made[source] for source in layer.sources]
        operands += [names.get((layer.name, kind), offset) for kind, _ in layer.tensors]
        form = forms[layer.name]
        new.append(NewNode(form.op_type, made[layer.name], operands, made[layer.name], dict(form.attributes)))
    return build_nodes(new), tensors
