"""Cross-layer equalisation: two layers in a row share a free scale for each channel between them.

With x the input, A and B the weights and s > 0: B relu(A x) = (B s) relu((A / s) x), where s scales output channels
of A (and its bias) and input channels of B. So channels can be made alike, which one scale for a whole activation or
weight needs, and the network computes the same. The factors that ``rewrite`` puts in place of one Conv, Gemm or MatMul
are such pairs, without a Relu, in a chain of two to four. With s = sqrt(max |A_c| / max |B_c|) both ranges become their
geometric mean (M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019).
"""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.scopes import scopes

_LAYERS = ("Conv", "Gemm", "MatMul")
_ROUNDS = 20  # over all pairs: a layer can be in two of them
_SETTLED = 1e-3

Array = npt.NDArray[np.float64]


def equalize(proto: onnx.ModelProto) -> int:
    """Equalise all pairs of Convs, Gemms and MatMuls of the main graph, in place.

    The weights and biases of both must be float32 initialisers and theirs alone.

    Returns:
        How many pairs there are.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for scope in scopes(proto):
        for node in scope.body.node:
            for name in node.input:
                readers[name].append(node)
    taken = {entry.name for entry in proto.graph.output}

    def own(name: str) -> bool:
        tensor = tensors.get(name)
        return (
            tensor is not None
            and tensor.data_type == onnx.TensorProto.FLOAT
            and len(readers[name]) == 1
            and name not in taken
        )

    def usable(node: onnx.NodeProto) -> bool:
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx"):
            return False
        if not all(own(name) for name in node.input[1:] if name):
            return False
        weight = tensors[node.input[1]]
        if node.op_type == "Conv":
            return True
        channels = weight.dims[-1] if _turned(node) else weight.dims[0]
        bias = tensors[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        return (
            len(weight.dims) == 2 and not _attribute(node, "transA") and (bias is None or list(bias.dims) == [channels])
        )

    pairs = []
    for first in proto.graph.node:
        if not usable(first):
            continue
        second, name = first, first.output[0]
        while name not in taken and len(readers[name]) == 1:
            second = readers[name][0]
            if second.op_type != "Relu":
                break
            name = second.output[0]
        if second is not first and usable(second) and second.input[0] == name:
            pairs.append((first, second))
    values = {
        name: numpy_helper.to_array(tensors[name]).astype(np.float64)
        for pair in pairs
        for node in pair
        for name in node.input[1:]
        if name
    }
    turned = [node.input[1] for node in {id(node): node for pair in pairs for node in pair}.values() if _turned(node)]
    for name in turned:
        values[name] = values[name].T
    for _ in range(_ROUNDS):
        if all([_balance(first, second, values) < _SETTLED for first, second in pairs]):  # noqa: C419 - all pairs
            break
    for name in turned:
        values[name] = values[name].T
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return len(pairs)


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _turned(node: onnx.NodeProto) -> bool:
    """Whether the weight is stored as [in_channels, out_channels], and not the other way round as that of a Conv."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))


def _balance(first: onnx.NodeProto, second: onnx.NodeProto, values: dict[str, Array]) -> float:
    """Balance one pair; returns the largest change of a scale, as a logarithm."""
    before, after = values[first.input[1]], values[second.input[1]]
    channels = len(before)
    group = _attribute(second, "group", 1)
    # [group, outputs of a group, inputs of a group, positions]
    blocks = after.reshape(group, len(after) // group, channels // group, -1)
    left = np.abs(before).reshape(channels, -1).max(axis=1)
    right = np.abs(blocks).max(axis=(1, 3)).reshape(channels)
    scale = np.ones(channels)
    live = (left > 0) & (right > 0)  # a channel of zeros, pruned perhaps, stays as it is
    scale[live] = np.sqrt(left[live] / right[live])
    values[first.input[1]] = before / scale.reshape(-1, *[1] * (before.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        values[first.input[2]] = values[first.input[2]] / scale
    values[second.input[1]] = (blocks * scale.reshape(group, 1, -1, 1)).reshape(after.shape)
    return float(np.abs(np.log(scale)).max())
