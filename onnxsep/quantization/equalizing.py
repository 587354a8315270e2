"""Cross-layer equalisation: two layers in a row share a free scale for each channel between them.

With x the input, A and B the weights and s > 0: B relu(A x) = (B s) relu((A / s) x), where s scales output channels
of A (and its bias) and input channels of B. What may stand in place of the Relu is in ``passing``. So channels can be
made alike, which one scale for a whole activation or weight needs, and the network computes the same. The factors that
``rewrite`` puts in place of one Conv, Gemm or MatMul are such pairs, without a Relu, in a chain of two to four. With
s = sqrt(max |A_c| / max |B_c|) both ranges become their geometric mean (M. Nagel et al., Data-Free Quantization Through
Weight Equalization and Bias Correction, 2019).
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.quantization.part_labels import attribute
from onnxsep.quantization.passing import find_pairs, inputs_first

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
    pairs = find_pairs(proto)
    values = {
        name: numpy_helper.to_array(tensors[name]).astype(np.float64)
        for pair in pairs
        for node in pair
        for name in node.input[1:]
        if name
    }
    turned = {node.input[1] for pair in pairs for node in pair if inputs_first(node)}
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


def _balance(first: onnx.NodeProto, second: onnx.NodeProto, values: dict[str, Array]) -> float:
    """Balance one pair; returns the largest change of a scale, as a logarithm."""
    before, after = values[first.input[1]], values[second.input[1]]
    channels = len(before)
    group = attribute(second, "group", 1)
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
