"""Other forms of the same, for nodes of which the quantiser or the runtime gets only the usual form right."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.graph.scopes import is_standard

_POLICY = "keep_aspect_ratio_policy"
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
        self._before: list[onnx.NodeProto] = []
        self._behind: list[onnx.NodeProto] = []

    def run(self) -> None:
        nodes = []
        for node in self._graph.node:
            if node.op_type == "Pad" and is_standard(node) and len(node.input) > _AXES and node.input[_AXES]:
                self._all_axes(node)
            elif (
                node.op_type == "Resize" and is_standard(node) and any(entry.name == "axes" for entry in node.attribute)
            ):
                self._all_scales(node)
                self._all_sizes(node)
            elif node.op_type == "Gemm" and is_standard(node):
                self._factors(node)
                self._whole_bias(node)
            elif node.op_type in ("Conv", "ConvTranspose") and is_standard(node):
                self._computed_bias(node)
            nodes += [*self._before, node, *self._behind]
            self._before.clear()
            self._behind.clear()
        if len(nodes) > len(self._graph.node):
            copies = onnx.GraphProto()
            copies.node.extend(nodes)
            del self._graph.node[:]
            self._graph.node.extend(copies.node)

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

    def _all_sizes(self, node: onnx.NodeProto) -> None:
        """Sizes of all axes: those of the input, but for the axes that have others."""
        axes = next((list(entry.ints) for entry in node.attribute if entry.name == "axes"), None)
        if axes is None or len(node.input) < 4 or not node.input[3] or node.input[1]:
            return
        policy = next((entry.s for entry in node.attribute if entry.name == _POLICY), b"stretch")
        if policy != b"stretch" and min(axes) < 0:
            return  # the runtime ignores the sizes then
        shape = self._node("Shape", [node.input[0]], f"{node.output[0]}_shape")
        places = self._add(f"{node.output[0]}_axes", np.array(axes, np.int64))
        sizes = node.input[3]
        if policy != b"stretch":
            sizes = self._in_proportion(node, shape, places, "ReduceMin" if policy == b"not_larger" else "ReduceMax")
        node.input[3] = self._node("ScatterElements", [shape, places, sizes], f"{node.output[0]}_sizes")
        for entry in [entry for entry in node.attribute if entry.name in ("axes", _POLICY)]:
            node.attribute.remove(entry)

    def _in_proportion(self, node: onnx.NodeProto, shape: str, places: str, reduce: str) -> str:
        """Sizes of the axes, each the same multiple of what it is, rounded to the nearest; halves up."""
        base, wide = node.output[0], onnx.TensorProto.DOUBLE  # which is not quantised
        before = self._node("Gather", [shape, places], f"{base}_before")
        sizes = self._node("Cast", [before], f"{base}_before_wide", wide, to=wide)
        wanted = self._node("Cast", [node.input[3]], f"{base}_wanted", wide, to=wide)
        ratio = self._node(reduce, [self._node("Div", [wanted, sizes], f"{base}_ratios", wide)], f"{base}_ratio", wide)
        exact = self._node("Mul", [sizes, ratio], f"{base}_exact", wide)
        more = self._node("Add", [exact, self._add(f"{base}_half", np.array(0.5))], f"{base}_more", wide)
        return self._node("Cast", [more], f"{base}_kept", to=onnx.TensorProto.INT64)  # which rounds down

    def _computed_bias(self, node: onnx.NodeProto) -> None:
        """A bias that is no weight is added behind: the integer operator takes none but integers."""
        name = node.input[2] if len(node.input) > 2 else ""
        weight = self._weights.get(node.input[1])
        if not name or name in self._weights or weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            return
        output, single = node.output[0], onnx.TensorProto.FLOAT
        shape = self._add(f"{output}_bias_shape", np.array([1, -1] + [1] * (len(weight.dims) - 2), np.int64))
        bias = self._node("Reshape", [name, shape], f"{output}_bias", single)
        node.output[0] = self._free(f"{output}_unbiased")
        self._graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], single, None))
        del node.input[2:]
        add = self._free(f"{output}_add")
        self._behind.append(onnx.helper.make_node("Add", [node.output[0], bias], [output], add))

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

    def _node(
        self, op_type: str, inputs: list[str], base: str, type_: int = onnx.TensorProto.INT64, **attributes: Any
    ) -> str:
        """A new node before the one that is rewritten; returns what it makes."""
        name = self._free(base)
        self._before.append(onnx.helper.make_node(op_type, inputs, [name], name=name, **attributes))
        self._graph.value_info.append(onnx.helper.make_tensor_value_info(name, type_, None))
        return name

    def _free(self, base: str) -> str:
        name = next(name for name in _names(base) if name not in self._taken)
        self._taken.add(name)
        return name

    def _add(self, base: str, values: np.ndarray) -> str:
        name = self._free(base)
        tensor = self._graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        self._weights[name] = tensor
        return name


def _names(base: str) -> Iterator[str]:
    while True:
        yield base
        base += "_"
