"""Other forms of the same, for nodes of which the quantiser or the runtime gets only the usual form right."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.scopes import is_standard

_AXES = 3  # place among a Pad's inputs, since opset 18


def normalize(proto: onnx.ModelProto) -> None:
    """Rewrite such nodes of the main graph, in place."""
    _Normal(proto.graph).run()


class _Normal:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._taken = {*self._weights, *(name for node in graph.node for name in (*node.input, *node.output))}
        self._ranks = {
            entry.name: len(entry.type.tensor_type.shape.dim)
            for entry in (*graph.input, *graph.value_info)
            if entry.type.tensor_type.HasField("shape")
        }

    def run(self) -> None:
        for node in self._graph.node:
            if node.op_type == "Pad" and is_standard(node) and len(node.input) > _AXES and node.input[_AXES]:
                self._all_axes(node)
            elif (
                node.op_type == "Resize" and is_standard(node) and any(entry.name == "axes" for entry in node.attribute)
            ):
                self._all_scales(node)
            elif node.op_type == "Gemm" and is_standard(node):
                self._factors(node)
                self._whole_bias(node)

    def _all_axes(self, node: onnx.NodeProto) -> None:
        """Pads of all axes: the runtime's optimiser fails on Pad with axes beside integer Convs."""
        pads, axes = (self._weights.get(node.input[index]) for index in (1, _AXES))
        rank = self._ranks.get(node.input[0])
        if pads is None or axes is None or rank is None:
            return
        full = np.zeros((2, rank), np.int64)
        full[:, numpy_helper.to_array(axes).reshape(-1)] = numpy_helper.to_array(pads).reshape(2, -1)
        node.input[1] = self._add(f"{node.output[0]}_pads", full.reshape(-1))
        del node.input[_AXES:]

    def _all_scales(self, node: onnx.NodeProto) -> None:
        """Scales of all axes, for the same reason."""
        scales = self._weights.get(node.input[2]) if len(node.input) == 3 and not node.input[1] else None
        rank = self._ranks.get(node.input[0])
        if scales is None or rank is None:
            return
        (axes,) = [entry for entry in node.attribute if entry.name == "axes"]
        full = np.ones(rank, np.float32)
        full[list(axes.ints)] = numpy_helper.to_array(scales)
        node.input[2] = self._add(f"{node.output[0]}_scales", full)
        node.attribute.remove(axes)

    def _whole_bias(self, node: onnx.NodeProto) -> None:
        """A bias with an element for each column: the quantiser fails on one for all."""
        bias, weight = self._weights.get(node.input[2] if len(node.input) > 2 else ""), self._weights.get(node.input[1])
        if bias is None or weight is None or int(np.prod(bias.dims)) != 1 or len(weight.dims) != 2:
            return
        turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
        columns = weight.dims[0] if turned else weight.dims[1]
        values = np.full(columns, numpy_helper.to_array(bias).reshape(()))
        node.input[2] = self._add(f"{bias.name}_whole", values)

    def _factors(self, node: onnx.NodeProto) -> None:
        """Alpha in the weight and beta in the bias: the quantiser forgets beta, and wants a plain Gemm for the rest."""
        for attribute, index in (("alpha", 1), ("beta", 2)):
            for entry in [entry for entry in node.attribute if entry.name == attribute and entry.f != 1]:
                name = node.input[index] if len(node.input) > index else ""
                tensor = self._weights.get(name)
                if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT:
                    scaled = numpy_helper.to_array(tensor) * np.float32(entry.f)
                    node.input[index] = self._add(f"{name}_times_{attribute}", scaled)
                    entry.f = 1

    def _add(self, base: str, values: np.ndarray) -> str:
        name = next(name for name in _names(base) if name not in self._taken)
        self._taken.add(name)
        tensor = self._graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        self._weights[name] = tensor
        return name


def _names(base: str) -> Iterator[str]:
    while True:
        yield base
        base += "_"
