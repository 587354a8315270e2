"""A replaced Conv as a run of the network has it: the one dense Conv that its factors multiply to."""

import numpy as np
import onnx

from onnxsep.algebra.linalg import Array
from onnxsep.engine.matches import ConvSite
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.transposing import turned
from onnxsep.graph.view import build_tensor


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
