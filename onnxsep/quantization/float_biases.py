"""Biases as floats. ONNX Runtime quantises them itself since 1.21, and other runtimes want them so.

It divides a bias by the product of the scales of input and weight and rounds, where it fuses the layer. So a float that
is an integer of the quantiser's times its scale gives this integer again, and without fusing it is what
DequantizeLinear gives: nothing changes. Where rounding to float32 would, the integers stay. Before 1.23 it also leaves
a float bias alone, and the layer in float, from opset 21 on where each channel of the weight has a scale.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.graph.index import Index
from onnxsep.graph.scopes import is_standard
from onnxsep.quantization.converting import opset_of

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_BIAS = 2  # its place among the inputs
_WITH_BLOCKS = 21  # opset in which DequantizeLinear got a block_size, which older runtimes take for a scale for each


def use_float_biases(proto: onnx.ModelProto, *, for_new_runtimes: bool) -> None:
    """Store the biases of the main graph's layers as floats, in place of DequantizeLinear of int32.

    Args:
        proto: A quantised model; changed in place. Tensors that nothing uses any more stay.
        for_new_runtimes: Also those that only ONNX Runtime since 1.23 quantises.
    """
    graph, index = proto.graph, Index(proto)
    all_scales = for_new_runtimes or (opset_of(proto) or 0) < _WITH_BLOCKS
    gone: set[str] = set()
    for node in graph.node:
        if node.op_type not in _LAYERS or not is_standard(node) or len(node.input) <= _BIAS:
            continue
        name = node.input[_BIAS]
        maker = index.maker(name)
        if maker is None or maker.op_type != "DequantizeLinear" or index.is_output(name) or len(index.uses(name)) > 1:
            continue
        scale = _scale_behind(index, node.input[1])
        if scale is not None and scale.size > 1 and not all_scales:
            continue
        values = _as_float(index, node, maker)
        if values is not None and (node.op_type != "Gemm" or _is_quantized_behind(index, node)):
            gone.add(name)
            graph.initializer.append(numpy_helper.from_array(values, name))
    for place in reversed([place for place, node in enumerate(graph.node) if gone.intersection(node.output)]):
        del graph.node[place]


def _as_float(index: Index, node: onnx.NodeProto, maker: onnx.NodeProto) -> npt.NDArray[np.float32] | None:
    """The bias in float32; None where the runtime would not find the same integers in it."""
    integers, scale = (_stored(index, name) for name in maker.input[:2])
    if integers is None or integers.dtype != np.int32 or scale is None or scale.dtype != np.float32:
        return None
    zero_point = _stored(index, maker.input[2]) if len(maker.input) > 2 and maker.input[2] else np.zeros(1)
    if zero_point is None or zero_point.any():
        return None
    values: npt.NDArray[np.float32] = integers.astype(np.float32) * scale
    scales = [_scale_behind(index, name) for name in node.input[:2]]
    if scales[0] is not None and scales[1] is not None:  # else nothing is fused
        with np.errstate(all="ignore"):
            again = np.rint(values / (scales[0] * scales[1]))
        if not np.array_equal(again, integers.astype(np.float64)):
            return None
    return values


def _scale_behind(index: Index, name: str) -> npt.NDArray[Any] | None:
    """The scale of the DequantizeLinear that makes a tensor."""
    maker = index.maker(name)
    return _stored(index, maker.input[1]) if maker is not None and maker.op_type == "DequantizeLinear" else None


def _stored(index: Index, name: str) -> npt.NDArray[Any] | None:
    tensor = index.tensor(name)
    return None if tensor is None else numpy_helper.to_array(tensor)


def _is_quantized_behind(index: Index, node: onnx.NodeProto) -> bool:
    """Whether the output is only read by QuantizeLinear: without that, the runtime fuses a Gemm with int32 alone."""
    readers = index.readers(node.output[0])
    return len(readers) == 1 and index.node(readers[0]).op_type == "QuantizeLinear"
