"""What the attributes of a Conv, ConvTranspose, Gemm or MatMul node say, as a ``Conv``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import onnx

from onnxsep.graph.shapes import Shape
from onnxsep.layers.conv import AutoPad, Conv

# Of operators in versions that the installed onnx does not know, nobody has checked the attributes.
_KINDS: Mapping[str, type] = {
    "group": int,
    **dict.fromkeys(("kernel_shape", "strides", "dilations", "pads", "output_padding", "output_shape"), list),
    "auto_pad": bytes,
}
_OF_THE_FUNCTION = "its attributes are arguments of the function"


def conv_geometry(
    node: onnx.NodeProto, weight_shape: tuple[int, ...], input_size: Sequence[int] | None = None
) -> Conv | str:
    """The geometry that a Conv or ConvTranspose node's attributes give, or the reason why they give none.

    Args:
        node: the node.
        weight_shape: of the weight as it is stored.
        input_size: spatial sizes of the input, where these and no others may come: a ConvTranspose may say the size of
            its output (``output_shape``), and what it cuts off then depends on them.
    """
    attributes = _attributes(node)
    if attributes is None:
        return _OF_THE_FUNCTION
    if odd := next(
        (name for name, kinds in _KINDS.items() if not isinstance(attributes.get(name, kinds()), kinds)), ""
    ):
        return f"its attribute {odd!r} is of a type that no {node.op_type} has"
    dims = len(weight_shape) - 2
    group = attributes.get("group", 1)
    kernel = tuple(attributes.get("kernel_shape", weight_shape[2:]))
    strides = tuple(attributes.get("strides") or (1,) * dims)
    dilations = tuple(attributes.get("dilations") or (1,) * dims)
    pads = tuple(attributes.get("pads") or (0,) * (2 * dims))
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode("utf-8", "backslashreplace") or "NOTSET"
    if dims < 1 or min(weight_shape, default=0) < 1:
        return f"its weight has the shape {list(weight_shape)}, which is no convolution's"
    if kernel != weight_shape[2:]:
        return f"kernel_shape {list(kernel)} does not agree with its weight of shape {list(weight_shape)}"
    if len(strides) != dims or len(dilations) != dims or len(pads) != 2 * dims:
        return f"strides, dilations or pads do not have {dims} axes as its weight has"
    if group < 1 or weight_shape[0] % group or min(*strides, *dilations) < 1:
        return f"it is malformed: group {group}, strides {list(strides)}, dilations {list(dilations)}"
    if auto_pad not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        return f"unknown auto_pad {auto_pad!r}"
    transposed = node.op_type == "ConvTranspose"
    channels = weight_shape[1] * group, weight_shape[0]
    conv = Conv(
        in_channels=channels[transposed],
        out_channels=channels[not transposed],
        kernel_shape=kernel,
        strides=strides,
        pads=pads if auto_pad == "NOTSET" else (0,) * (2 * dims),
        dilations=dilations,
        group=group,
        bias=_has_input(node, 2),
        auto_pad=cast(AutoPad, auto_pad),
        transposed=transposed,
    )
    return _with_output(conv, attributes, input_size) if transposed else conv


def _with_output(conv: Conv, attributes: Mapping[str, Any], size: Sequence[int] | None) -> Conv | str:
    """A transposed convolution with what is said about its output, or the reason why that cannot be carried over."""
    extra = tuple(attributes.get("output_padding") or (0,) * conv.dims)
    shape = tuple(attributes.get("output_shape") or ())
    if len(extra) != conv.dims or len(shape) not in (0, conv.dims) or min(*extra, *conv.pads) < 0:
        return f"its pads, output_padding or output_shape are not what {conv.dims} axes have"
    conv = replace(conv, output_padding=extra if any(extra) else ())
    if shape:
        if size is None:
            return "its output_shape: what it cuts off depends on sizes of its input that the model leaves free"
        conv = _with_shape(conv, shape, size)
    elif conv.output_padding and conv.auto_pad.startswith("SAME"):
        return f"auto_pad {conv.auto_pad} with output_padding: ONNX and ONNX Runtime do not agree on its output"
    if any(conv.extra(axis) >= stride for axis, stride in enumerate(conv.strides)):  # ONNX Runtime refuses it
        return "the output that it asks for is larger than its strides allow"
    return conv


def _with_shape(conv: Conv, shape: Sequence[int], size: Sequence[int]) -> Conv:
    """One that says the size of its output, with pads that cut off the same: the odd one first but for SAME_UPPER."""
    whole = replace(conv, auto_pad="NOTSET", pads=(0,) * (2 * conv.dims))
    begins, ends, extra = [], [], []
    for axis, (natural, wanted) in enumerate(zip(whole.output_size(size), shape, strict=True)):
        total = max(0, natural - wanted)
        begins.append(total // 2 if conv.auto_pad == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
        extra.append(conv.extra(axis) + max(0, wanted - natural))
    return replace(whole, pads=(*begins, *ends), output_padding=tuple(extra) if any(extra) else ())


def linear_geometry(
    node: onnx.NodeProto, weight_shape: tuple[int, ...], bias_shape: Shape | None
) -> tuple[Conv, bool] | str:
    """The geometry of a Gemm or MatMul whose second operand is the weight, or the reason why it has none.

    Args:
        node: the node.
        weight_shape: of the weight as it is stored.
        bias_shape: of Gemm's C, None where it has none or the model does not tell.

    Returns:
        The geometry without spatial dimensions, and whether the weight is stored as [in_channels, out_channels].
    """
    attributes = _attributes(node)
    if attributes is None:
        return _OF_THE_FUNCTION
    if len(weight_shape) != 2 or min(weight_shape) < 1:
        return f"its weight has the shape {list(weight_shape)}; only a matrix can be replaced"
    transposed = node.op_type == "MatMul" or not attributes.get("transB", 0)
    out_channels, in_channels = weight_shape[::-1] if transposed else weight_shape
    bias = node.op_type == "Gemm" and _has_input(node, 2)
    if attributes.get("transA", 0):
        return "transA: its input is transposed"
    if attributes.get("alpha", 1.0) != 1.0:
        return f"alpha is {attributes['alpha']:g}; only 1 can be replaced"
    if bias and attributes.get("beta", 1.0) != 1.0:
        return f"beta is {attributes['beta']:g}; only 1 can be replaced"
    if bias and bias_shape is None:
        return f"the shape of its C, {node.input[2]!r}, is not known"
    if bias and bias_shape not in ((out_channels,), (1, out_channels)):
        return f"its C has the shape {list(bias_shape or ())}, which is no bias of {out_channels} channels"
    return Conv(in_channels, out_channels, (), (), (), (), bias=bias), transposed


def _attributes(node: onnx.NodeProto) -> Mapping[str, Any] | None:
    """The node's attributes by name; None where some are given by each call of a function."""
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return None
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _has_input(node: onnx.NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])
