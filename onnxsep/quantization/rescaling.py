"""Factors that give the channels of what a layer reads or makes like ranges: a Mul, and its inverse in the weight.

Y = W x + b is s * ((W / s) x + b / s) with a factor for each output channel, and W x is (W s) (x / s) with one for each
input channel. The factors are powers of two, so nothing is rounded.
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.graph.scopes import scopes
from onnxsep.quantization.naming import tensor_names
from onnxsep.quantization.part_labels import CONVS, attribute
from onnxsep.quantization.part_ranges import Ranges
from onnxsep.quantization.passing import inputs_first

Array = npt.NDArray[np.float64]
_SMALLEST = -30  # exponent of a factor


class Rescaler:
    """Changes the layers of a model; :meth:`finish` puts the new nodes into it.

    Args:
        proto: The prepared model, every node of which has a name.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._taken = tensor_names(proto) | {node.name for node in proto.graph.node}
        self._uses = [name for scope in scopes(proto) for node in scope.body.node for name in node.input]
        self._uses += [entry.name for entry in proto.graph.output]
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._behind: dict[str, list[onnx.NodeProto]] = {}

    def gain(self, node: onnx.NodeProto, ranges: Ranges) -> float:
        """How many times lower the noise in a layer's output is, if each part that it reads has a scale of its own."""
        factors, weight = self._input_factors(node, ranges), self._weight(node)
        if factors is None or weight is None:
            return 0.0
        power = np.square(self._by_input(node, weight)).sum(axis=0)
        after = float((power * np.square(factors)).sum())
        return float(np.sqrt(power.sum() / after)) if after else 0.0

    def before(self, node: onnx.NodeProto, ranges: Ranges, scaled: bool) -> str:
        """Put a node between a layer and what it reads; returns its name.

        Args:
            node: The layer.
            ranges: The parts of what it reads.
            scaled: Whether it has factors; else it only keeps apart what is quantised for the layer.
        """
        factors = self._input_factors(node, ranges) if scaled else None
        source, name = node.input[0], self._free(f"{node.input[0]}_alike")
        if factors is None:
            added = onnx.helper.make_node("Identity", [source], [name], name)
        else:
            weight = self._weight(node)
            assert weight is not None  # or there would be no factors
            axis = self._input_axis(node, weight.ndim)
            added = self._mul(source, 1 / factors, axis, weight.ndim, node, name)
            self._set(node, 1, self._scaled_by_input(node, weight, factors))
        node.input[0] = name
        self._describe(name, source)
        self._before.setdefault(node.name, []).append(added)
        return name

    def behind(self, node: onnx.NodeProto, ranges: Ranges) -> str:
        """Let a layer make channels of like ranges, and a Mul what it made; returns its name, "" if it cannot."""
        weight = self._weight(node)
        if weight is None:
            return ""
        channels = self._outputs(node, weight)
        if len(ranges.axes) != 1 or ranges.places.shape != (channels,):
            return ""
        bias = self._bias(node, channels)
        if bias is None and len(node.input) > 2 and node.input[2]:
            return ""
        factors = _factors(ranges)
        output, name = node.output[0], self._free(f"{node.output[0]}_alike")
        rank = weight.ndim
        axis = 1 if node.op_type in CONVS else rank - 1
        self._set(node, 1, self._scaled_by_output(node, weight, 1 / factors))
        if bias is not None:
            self._set(node, 2, bias / factors)
        added = self._mul(name, factors, axis, rank, node, output)
        added.name = self._free(f"{node.name}_factors")
        node.output[0] = name
        self._describe(name, output)
        self._behind.setdefault(node.name, []).append(added)
        return str(added.name)

    def finish(self) -> None:
        """Put the new nodes in their places."""
        if not self._before and not self._behind:
            return
        nodes = []
        for node in self._graph.node:
            nodes += [*self._before.get(node.name, ()), node, *self._behind.get(node.name, ())]
        copies = onnx.GraphProto()
        copies.node.extend(nodes)
        del self._graph.node[:]
        self._graph.node.extend(copies.node)

    def _free(self, base: str) -> str:
        name = base
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _describe(self, name: str, like: str) -> None:
        """Type and shape of a new tensor."""
        for entry in (*self._graph.value_info, *self._graph.output, *self._graph.input):
            if entry.name == like:
                copy = self._graph.value_info.add()
                copy.CopyFrom(entry)
                copy.name = name
                return

    def _mul(
        self, source: str, factors: Array, axis: int, rank: int, node: onnx.NodeProto, output: str
    ) -> onnx.NodeProto:
        shape = [1] * rank
        shape[axis] = -1
        name = self._free(f"{node.name}_factors_of_channels")
        self._graph.initializer.append(numpy_helper.from_array(factors.reshape(shape).astype(np.float32), name))
        return onnx.helper.make_node("Mul", [source, name], [output], output)

    def _weight(self, node: onnx.NodeProto) -> Array | None:
        tensor = self._tensors.get(node.input[1])
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        if node.op_type not in CONVS and (len(tensor.dims) != 2 or attribute(node, "transA", 0)):
            return None
        return numpy_helper.to_array(tensor).astype(np.float64)

    def _bias(self, node: onnx.NodeProto, channels: int) -> Array | None:
        tensor = self._tensors.get(node.input[2]) if len(node.input) > 2 else None
        if tensor is None or list(tensor.dims) != [channels] or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor).astype(np.float64)

    def _set(self, node: onnx.NodeProto, place: int, values: Array) -> None:
        """A weight of the node's own."""
        name = node.input[place]
        if self._uses.count(name) > 1:
            self._uses.remove(name)
            name = self._free(f"{name}_own")
            self._uses.append(name)
            self._tensors[name] = self._graph.initializer.add(name=name)
            node.input[place] = name
        self._tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    def _input_axis(self, node: onnx.NodeProto, rank: int) -> int:
        return 1 if node.op_type in CONVS else rank - 1

    def _input_factors(self, node: onnx.NodeProto, ranges: Ranges) -> Array | None:
        weight = self._weight(node)
        if weight is None or len(ranges.axes) != 1:
            return None
        if node.op_type in CONVS and ranges.axes != (1,):
            return None
        factors = _factors(ranges)
        group = attribute(node, "group", 1)
        channels = self._by_input(node, weight).shape[1]
        return factors if factors.shape == (channels,) and channels % group == 0 else None

    def _by_input(self, node: onnx.NodeProto, weight: Array) -> Array:
        """What stands for each input channel, [rest, channels]."""
        if node.op_type == "ConvTranspose" or inputs_first(node):
            turned: Array = weight.reshape(len(weight), -1).T
            return turned
        group = attribute(node, "group", 1)
        # [group, outputs of a group, inputs of a group, positions]
        blocks = weight.reshape(group, len(weight) // group, weight.shape[1], -1)
        found: Array = np.moveaxis(blocks, (1, 3), (0, 1)).reshape(-1, group * weight.shape[1])
        return found

    def _scaled_by_input(self, node: onnx.NodeProto, weight: Array, factors: Array) -> Array:
        if node.op_type == "ConvTranspose" or inputs_first(node):
            return _shaped(weight.reshape(len(weight), -1) * factors[:, None], weight)
        group = attribute(node, "group", 1)
        blocks = weight.reshape(group, len(weight) // group, weight.shape[1], -1)
        return _shaped(blocks * factors.reshape(group, 1, -1, 1), weight)

    @staticmethod
    def _outputs(node: onnx.NodeProto, weight: Array) -> int:
        """How many output channels there are."""
        if node.op_type == "ConvTranspose":
            return int(weight.shape[1]) * attribute(node, "group", 1)
        return int(weight.shape[-1] if inputs_first(node) else weight.shape[0])

    def _scaled_by_output(self, node: onnx.NodeProto, weight: Array, factors: Array) -> Array:
        if inputs_first(node):
            return weight * factors
        if node.op_type == "ConvTranspose":
            group = attribute(node, "group", 1)
            blocks = weight.reshape(group, len(weight) // group, weight.shape[1], -1)
            return _shaped(blocks * factors.reshape(group, 1, -1, 1), weight)
        return _shaped(weight.reshape(len(weight), -1) * factors[:, None], weight)


def _factors(ranges: Ranges) -> Array:
    """For each place along the axis of the parts: the range of its part relative to the largest, as a power of two."""
    widths = ranges.widths
    relative = np.where(widths > 0, widths, widths.max()) / widths.max()
    exponents = np.clip(np.rint(np.log2(relative)), _SMALLEST, 0)
    factors: Array = np.exp2(exponents)[ranges.places]
    return factors


def _shaped(values: Array, like: Array) -> Array:
    shaped: Array = values.reshape(like.shape)
    return shaped
