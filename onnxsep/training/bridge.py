"""A model as a torch module, and its trained weights back into the same graph, by name.

The graph stays the user's: nothing is exported from torch. Weights are torch parameters in the layout of the ONNX
tensors, one for each tensor however many nodes read it, so that they go back as they are.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxsep.errors import OptionError
from onnxsep.external import is_external
from onnxsep.io import Model, read_tensor
from onnxsep.scopes import hold_tensor
from onnxsep.tensors import DATA_FIELDS
from onnxsep.training.converters import convert, import_onnx2torch, import_torch
from onnxsep.training.module import Step, module_class
from onnxsep.training.normalize import Normalized, normalized_copy

# Inputs of a node that are weights. Elementwise operators are listed apart: most of their constants are no weights.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Sum")
_STATISTICS = (3, 4)  # running mean and variance of a BatchNormalization


@dataclass(frozen=True)
class TorchGraph:
    """A model as a torch module.

    Attributes:
        module: A ``torch.nn.Module``, in evaluation mode. Called with a dict of input tensors by name, it gives a dict
            of the outputs by name, in the model's order. Floats are float32 whatever the model's type. In training
            mode BatchNormalization uses the batch's statistics and updates the running ones, and Dropout drops.
        parameters: The ``torch.nn.Parameter`` of each weight, bias and affine constant by its name in the ONNX graph
            (an initialiser, or the output of a Constant node). All of them want gradients.
        stored: The type in which each parameter and buffer is stored in the model.
    """

    module: Any
    parameters: dict[str, Any]
    stored: dict[str, np.dtype[Any]]

    @property
    def buffers(self) -> dict[str, Any]:
        """The running statistics of BatchNormalization by initialiser name, as they are now."""
        tensors: dict[str, Any] = self.module.statistics()
        return tensors

    def tensors(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Input tensors for ``module``, on its device; floats become float32."""
        torch = import_torch()
        made = {}
        for name, values in feeds.items():
            array = np.array(values, np.float32 if _is_float(values.dtype) else None, order="C")
            made[name] = torch.from_numpy(array).to(self.module.device())
        return made

    def arrays(self, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """The present values of parameters and running statistics, in the model's own layout and types.

        Args:
            names: Which ones; all by default.
        """
        tensors = {**self.parameters, **self.buffers}
        chosen = tensors if names is None else names
        return {name: _stored(tensors[name].detach().cpu().numpy(), self.stored[name]) for name in chosen}


def to_torch(model: Model) -> TorchGraph:
    """Turn a model's main graph into a torch module; the model is not changed.

    Raises:
        MissingDependencyError: torch or onnx2torch is not installed.
        UnsupportedModelError: An operator cannot be computed with torch; the message names it, its version and node.
        ModelLoadError: An external weight cannot be read.
    """
    import_onnx2torch()
    normalized = normalized_copy(model)
    graph = _onnx2torch_graph(normalized.graph)
    steps = list(_steps(normalized, graph))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in normalized.graph.initializer}
    weights, statistics = _weights(normalized, arrays), _statistics(normalized)
    weights -= statistics
    module = module_class()(normalized, steps, arrays, weights, statistics)
    module.eval()
    stored = {name: normalized.stored[name] for name in (*weights, *statistics)}
    return TorchGraph(module, module.weights(), stored)


def write_back(model: Model, arrays: Mapping[str, NDArray[Any]]) -> Model:
    """A copy of the model in which these tensors hold new values; everything else is as it was, byte for byte.

    Args:
        model: The model that the tensors belong to.
        arrays: New values by name, of initialisers or outputs of Constant nodes of the main graph, in the stored
            shape and type. What was in a data file is then in the proto; ``onnxsep.save`` puts initialisers into the
            new data file if they are named in its ``externalize``.

    Raises:
        OptionError: There is no such tensor, or the shape or type differs.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        value = hold_tensor(node) if arrays.keys() & set(node.output) else None
        if value is not None:
            tensors[node.output[0]] = value
    for name, array in arrays.items():
        if name not in tensors:
            raise OptionError(f"there is no weight {name!r} in the model's main graph to write to")
        _replace(model, name, tensors[name], array)
    return Model(proto, path=model.path, base_dir=model.base_dir, follow_links=model.follow_links)


def _replace(model: Model, name: str, tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    dtype = read_tensor(model, tensor).dtype
    if tuple(tensor.dims) != array.shape or dtype != array.dtype:
        raise OptionError(
            f"the weight {name!r} is {dtype} of shape {list(tensor.dims)} in the model; the new values are"
            f" {array.dtype} of shape {list(array.shape)}"
        )
    if is_external(tensor):
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    for field in DATA_FIELDS:
        tensor.ClearField(field)
    tensor.raw_data = np.ascontiguousarray(array, dtype).tobytes()


def _stored(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values in their stored type, never infinite where they were finite; an array that shares nothing."""
    if dtype.itemsize < values.dtype.itemsize:
        largest = float(np.finfo(np.float16).max) if dtype == np.float16 else float(np.finfo(np.float32).max)
        values = np.where(np.isfinite(values), np.clip(values, -largest, largest), values)
    return np.array(values, dtype)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


# ---------------------------------------------------------------- from the graph to the module


def _onnx2torch_graph(graph: onnx.GraphProto) -> Any:
    from onnx2torch.onnx_graph import OnnxGraph

    return OnnxGraph(graph)


def _steps(normalized: Normalized, graph: Any) -> Iterator[Step]:
    """The nodes with their operations, and after which one each tensor is needed no more."""
    nodes = list(normalized.graph.node)
    operations = [convert(node, normalized.opset, graph) for node in nodes]
    last: dict[str, int] = {}
    for index, operation in enumerate(operations):
        last.update(dict.fromkeys(operation.inputs, index))
    kept = set(normalized.outputs.values())
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        if name and name not in kept:
            ends.setdefault(index, []).append(name)
    for index, (node, operation) in enumerate(zip(nodes, operations, strict=True)):
        yield Step(node, operation, tuple(ends.get(index, ())))


def _weights(normalized: Normalized, arrays: Mapping[str, NDArray[Any]]) -> set[str]:
    """Names of the float tensors that layers use as weights, also through Reshape, Transpose and the like."""
    sources: dict[str, set[str]] = {name: ({name} if name in normalized.stored else set()) for name in arrays}
    behind_layer: set[str] = set()
    found: set[str] = set()
    for node in normalized.graph.node:
        given = [name for name in node.input if name]
        if all(name in sources for name in given):  # a constant expression: its weights are those of its inputs
            used = set[str]().union(*(sources[name] for name in given))
            sources.update((name, used) for name in node.output)
            continue
        positions: Sequence[int] = _WEIGHTS.get(node.op_type, ())
        behind = any(name in behind_layer for name in given)
        if node.op_type in _ELEMENTWISE and behind:  # in front of the first layer it is preprocessing
            positions = [index for index, name in enumerate(given) if _is_per_channel(arrays.get(name))]
        for index in positions:
            found |= sources.get(node.input[index], set()) if index < len(node.input) else set()
        if behind or node.op_type in LAYERS:
            behind_layer.update(node.output)
    return found


def _is_per_channel(values: NDArray[Any] | None) -> bool:
    """Whether a constant has values along exactly one axis: a bias or a scale, not a threshold, not a grid of boxes."""
    return values is not None and sum(size > 1 for size in values.shape) == 1


def _statistics(normalized: Normalized) -> set[str]:
    norms = [node for node in normalized.graph.node if node.op_type == "BatchNormalization"]
    return {node.input[index] for node in norms for index in _STATISTICS} & set(normalized.stored)
