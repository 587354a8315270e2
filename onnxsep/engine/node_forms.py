"""How the layers of a replacement are written as ONNX nodes: operator, attributes, the orientation of the weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxsep.engine.matches import ConvSite
from onnxsep.errors import PassError
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import ConvLayer

ADD_BROADCASTS = 7  # below it Add and Gemm broadcast only where an attribute says so, and ONNX Runtime has neither
GEMM_WITHOUT_BIAS = 11  # the first operator set in which Gemm's C may be left out
PADS_ARE_AN_INPUT = 11  # below it an attribute of Pad


@dataclass(frozen=True)
class Form:
    """One node: operator and attributes, and whether its weight is stored as [in_channels, out_channels]."""

    op_type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    transposed: bool = False


def weighted_form(site: ConvSite, layer: ConvLayer, opset: int) -> Form:
    """The node of a layer with a weight: a Conv for a Conv, and for a Gemm or MatMul the same again.

    The weight of a Gemm keeps the orientation of the one that it replaces.

    Raises:
        PassError: a Gemm or MatMul would need several groups.
    """
    if site.op_type == "Conv":
        return Form("Conv", conv_attributes(layer.conv))
    if layer.conv.group > 1 or layer.conv.dims:
        what = "a grouped product" if layer.conv.group > 1 else "a convolution"
        raise PassError(f"{site.op_type} {site.name!r} cannot be replaced by {what} (layer {layer.name!r})")
    if site.op_type == "MatMul" or not (layer.conv.bias or opset >= GEMM_WITHOUT_BIAS):
        return Form("MatMul", transposed=True)
    attributes = {} if site.transposed else {"transB": 1}
    if opset < ADD_BROADCASTS:
        attributes["broadcast"] = 1
    return Form("Gemm", attributes, site.transposed)


def channel_pads(dims: int, before: int, after: int) -> list[int]:
    """Pads that give an image of ``dims`` spatial dimensions ``after`` channels: negative ones leave channels out."""
    pads = [0] * (2 * (dims + 2))
    pads[dims + 3] = after - before
    return pads


def conv_attributes(conv: Conv) -> dict[str, Any]:
    """The attributes of a Conv node, in alphabetical order; pads and auto_pad exclude one another."""
    attributes: dict[str, Any] = {} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad}
    attributes.update(dilations=list(conv.dilations), group=conv.group, kernel_shape=list(conv.kernel_shape))
    if conv.auto_pad == "NOTSET":
        attributes["pads"] = list(conv.pads)
    attributes["strides"] = list(conv.strides)
    return attributes
