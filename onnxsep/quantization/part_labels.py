"""Which values of a tensor belong together: parts, such as the inputs of a Concat or the channels of the last layer.

One scale serves a whole tensor, so what matters is how the range of each part compares with that of all. A part is
known by a number, and every tensor gets an array of these numbers in its own shape: operators that move values move the
numbers in the same way, whatever the axes become on the way to an output.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnxsep.model.io import Model
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

Labels = npt.NDArray[np.int64]

CONVS = ("Conv", "ConvTranspose")
LAYERS = (*CONVS, "Gemm", "MatMul")
# fmt: off
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
})
_UNARY = frozenset({
    "Abs", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "PRelu", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
})
_BINARY = frozenset({
    "Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum",
})
_SPATIAL = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "Resize", "Upsample",
})
# fmt: on
THROUGH = _UNARY | _BINARY | MOVES | {"Resize", "Upsample"}
"""Operators behind which the parts of what they read can still be told apart, place by place."""

_MOST = 4096  # parts of one tensor
_UNLIKE_FACTORS = 4.0  # of a constant vector, above which its factors make parts


def is_layer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node has a constant weight as its second input."""
    return node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in constants


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(found.i) for found in node.attribute if found.name == name), default)


class Labelling:
    """Finds the parts of the tensors of a main graph.

    Args:
        proto: The model.
        values: Every tensor of the main graph for one input, by name.
        fine: Names of tensors whose channels are parts where a layer makes them; elsewhere such a tensor is one part.
        options: How nodes are run.

    Attributes:
        origins: For the number of each part, that of the first of the parts that one layer made together with it.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        values: Mapping[str, npt.NDArray[np.generic]],
        fine: frozenset[str],
        options: RuntimeOptions,
    ) -> None:
        self._proto, self._values, self._fine, self._options = proto, values, fine, options
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._labels: dict[str, Labels] = {}
        self._makers = {name for node in proto.graph.node for name in node.output}
        self.origins: list[int] = [0]

    def run(self) -> dict[str, Labels]:
        """The number of the part of every value, in the shape of the tensor; 0: filled in, by a Pad for example."""
        for entry in self._proto.graph.input:
            if self._is_float(entry.name):
                self._labels[entry.name] = self._channels(entry.name, self._input_axis(entry.name))
        for node in self._proto.graph.node:
            outputs = [name for name in node.output if name and self._is_float(name)]
            found = self._through(node, outputs)
            for name in outputs:
                labels = found.get(name)
                if labels is None or labels.shape != self._values[name].shape:
                    labels = self._made(node, name)
                self._labels[name] = labels
        return self._labels

    def _is_float(self, name: str) -> bool:
        value = self._values.get(name)
        return isinstance(value, np.ndarray) and value.dtype.kind == "f"

    def _input_axis(self, name: str) -> int:
        for node in self._proto.graph.node:
            if name in node.input:
                perm = next((list(found.ints) for found in node.attribute if found.name == "perm"), None)
                if node.op_type == "Transpose" and perm and len(perm) > 1:
                    return int(perm[1])
                return -1 if node.op_type == "MatMul" else 1
        return 1

    def _channels(self, name: str, axis: int) -> Labels:
        """Each index along an axis is a part."""
        shape = self._values[name].shape
        if len(shape) < 2 or not -len(shape) <= axis < len(shape) or not 1 < shape[axis] <= _MOST:
            return self._one(shape)
        numbers = self._fresh(shape[axis], together=name in self._makers)
        places = [1] * len(shape)
        places[axis] = -1
        return np.broadcast_to(numbers.reshape(places), shape)

    def _one(self, shape: tuple[int, ...]) -> Labels:
        return np.broadcast_to(self._fresh(1)[0], shape)

    def _made(self, node: onnx.NodeProto, name: str) -> Labels:
        if name in self._fine and is_layer(node, self._constants):
            return self._channels(name, 1 if node.op_type in CONVS else -1)
        return self._one(self._values[name].shape)

    def _through(self, node: onnx.NodeProto, outputs: list[str]) -> dict[str, Labels]:
        if node.domain not in ("", "ai.onnx") or not outputs or not node.input:
            return {}
        kind = node.op_type
        first = self._labels.get(node.input[0])
        if kind in _UNARY:
            return {outputs[0]: first} if first is not None else {}
        if kind in _BINARY:
            return self._combined(node, outputs[0])
        if kind in _SPATIAL and first is not None:
            return {outputs[0]: _spread(first, self._values[outputs[0]].shape)}
        if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and first is not None:
            shape = self._values[outputs[0]].shape
            return {outputs[0]: first.reshape(shape)} if first.size == np.prod(shape) else {}
        return self._moved(node, outputs) if kind in MOVES else {}

    def _moved(self, node: onnx.NodeProto, outputs: list[str]) -> dict[str, Labels]:
        """The operator itself says where it moves what."""
        known = [name for name in node.input if name in self._labels]
        if all(_is_uniform(self._labels[name]) for name in known) and node.op_type in ("Slice", "Split", "Gather"):
            return {name: self._like(self._labels[known[0]], name) for name in outputs} if known else {}
        feed: dict[str, npt.NDArray[np.generic]] = {}
        for name in node.input:
            if name in self._labels:
                # Values of one tensor may come in several ways: x and its Sigmoid are two parts when they are joined.
                labels = self._again(self._labels[name]) if name != known[0] else self._labels[name]
                feed[name] = labels.astype(np.float32)
            elif name in self._constants:
                array = numpy_helper.to_array(self._constants[name])
                if array.dtype.kind == "f":
                    array = np.full(array.shape, 0 if node.op_type == "Pad" else self._fresh(1)[0], np.float32)
                feed[name] = array
            elif name:
                feed[name] = self._values[name]
        graph = onnx.helper.make_graph(
            [node],
            "one node",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
                )
                for name, array in feed.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version)
        try:
            found = Runner(Model(model), self._options)(feed)
        except (CannotRun, KeyError):
            return {}
        return {name: np.rint(found[name]).astype(np.int64) for name in outputs}

    def _factors(self, array: npt.NDArray[np.generic]) -> Labels | None:
        """Places with the same factor are one part, if the factors are unlike."""
        sizes = np.abs(array.astype(np.float64))
        live = sizes[sizes > 0]
        if not live.size or live.max() <= _UNLIKE_FACTORS * live.min():
            return None
        kinds, places = np.unique(sizes, return_inverse=True)
        return self._fresh(len(kinds))[places.reshape(array.shape)] if len(kinds) <= _MOST else None

    def _again(self, labels: Labels) -> Labels:
        """Parts of their own, with origins of their own, in the same places."""
        if _is_uniform(labels):
            return self._one(labels.shape)
        kinds, places = np.unique(labels, return_inverse=True)
        numbers = self._fresh(len(kinds))
        known: dict[int, int] = {}
        for number, kind in zip(numbers.tolist(), kinds.tolist(), strict=True):
            self.origins[number] = known.setdefault(self.origins[kind], number)
        numbers[kinds == 0] = 0
        return numbers[places.reshape(labels.shape)]

    def _fresh(self, number: int, *, together: bool = False) -> Labels:
        first = len(self.origins)
        self.origins += [first] * number if together else range(first, first + number)
        return np.arange(first, first + number)

    def _like(self, labels: Labels, name: str) -> Labels:
        return np.broadcast_to(labels[(0,) * labels.ndim] if labels.size else np.int64(0), self._values[name].shape)

    def _combined(self, node: onnx.NodeProto, output: str) -> dict[str, Labels]:
        shape = self._values[output].shape
        several: list[Labels] = []
        one: Labels | None = None
        for name in node.input:
            labels = self._labels.get(name)
            if labels is None and name in self._constants and node.op_type in ("Mul", "Div"):
                labels = self._factors(numpy_helper.to_array(self._constants[name]))
            if labels is None:
                continue
            labels = np.broadcast_to(labels, shape)
            if _is_uniform(labels):
                one = labels if one is None else one
            elif not any(labels.shape == other.shape and np.array_equal(labels, other) for other in several):
                several.append(labels)
        if len(several) < 2:
            chosen = several[0] if several else one
            return {output: chosen} if chosen is not None else {}
        pairs = several[0]
        for other in several[1:]:
            width = int(other.max()) + 1
            kinds, places = np.unique(pairs * width + other, return_inverse=True)
            if len(kinds) > _MOST:
                return {output: several[0]}
            numbers = self._fresh(len(kinds))
            known: dict[tuple[int, int], int] = {}
            for number, kind in zip(numbers.tolist(), kinds.tolist(), strict=True):
                both = self.origins[kind // width], self.origins[kind % width]
                self.origins[number] = known.setdefault(both, number)
            pairs = numbers[places.reshape(shape)]
        return {output: pairs}


def _is_uniform(labels: Labels) -> bool:
    return not labels.size or not any(labels.strides) or bool((labels == labels[(0,) * labels.ndim]).all())


def _spread(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """Labels behind a pool or a resize, which mix values of one channel only."""
    if labels.ndim < 2 or len(shape) != labels.ndim or shape[:2] != labels.shape[:2] or not labels.size:
        return np.broadcast_to(np.int64(0), shape)
    corner = labels[tuple(slice(None) if axis < 2 else slice(0, 1) for axis in range(labels.ndim))]
    return np.broadcast_to(corner if (labels == corner).all() else labels[(0,) * labels.ndim], shape)
