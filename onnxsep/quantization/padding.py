"""Pads of all axes in the place of those of some: the runtime's optimiser fails on Pad with axes beside integer Convs."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.scopes import is_standard

_AXES = 3  # place among a Pad's inputs, since opset 18


def spell_out_pads(proto: onnx.ModelProto) -> None:
    """Write Pads for all axes where they and the axes are constant and the number of axes is known, in place."""
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {
        entry.name: len(entry.type.tensor_type.shape.dim)
        for entry in (*graph.input, *graph.value_info)
        if entry.type.tensor_type.HasField("shape")
    }
    taken = {*weights, *ranks, *(name for node in graph.node for name in (*node.input, *node.output))}
    for node in graph.node:
        if node.op_type != "Pad" or not is_standard(node) or len(node.input) <= _AXES or not node.input[_AXES]:
            continue
        pads, axes, rank = weights.get(node.input[1]), weights.get(node.input[_AXES]), ranks.get(node.input[0])
        if pads is None or axes is None or rank is None:
            continue
        full = np.zeros((2, rank), np.int64)
        full[:, numpy_helper.to_array(axes).reshape(-1)] = numpy_helper.to_array(pads).reshape(2, -1)
        name = f"{node.output[0]}_pads"
        while name in taken:
            name += "_"
        taken.add(name)
        graph.initializer.append(numpy_helper.from_array(full.reshape(-1), name))
        node.input[1] = name
        del node.input[_AXES:]
