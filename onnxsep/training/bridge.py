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

from onnxsep.errors import OptionError, UnsupportedModelError
from onnxsep.graph.scopes import hold_tensor, is_standard, scopes
from onnxsep.model.external import is_external
from onnxsep.model.io import Model, read_tensor
from onnxsep.model.tensors import DATA_FIELDS
from onnxsep.training.attributes import Operation, one_line
from onnxsep.training.converters import convert, import_torch, unsupported
from onnxsep.training.module import Step, module_class
from onnxsep.training.nested import NESTED, Body, nested
from onnxsep.training.node_order import branches, every_node, reads
from onnxsep.training.normalize import Normalized, normalized_copy, trained_outputs, writable_tensors
from onnxsep.training.registered import Registered

# Inputs of a node that are weights. Elementwise operators are listed apart: most of their constants are no weights.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "DeformConv": (1, 3),
    "Einsum": (0, 1, 2),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "DeformConv", "Einsum", "LSTM", "GRU", "RNN")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Sum")
_STATISTICS = slice(3, 5)  # running mean and variance of a BatchNormalization


@dataclass(frozen=True)
class TorchGraph:
    """A model as a torch module.

    Attributes:
        module: A ``torch.nn.Module``, in evaluation mode. Called with a dict of input tensors by name, it gives a dict
            of the outputs that can be trained on (floats that depend on an input) by name, in the model's order. Floats
            are float32 whatever the model's type. In training mode BatchNormalization uses the batch's statistics and
            updates the running ones, and Dropout drops.
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
        """Input tensors for ``module``, on its device; floats become float32. Text stays an array."""
        torch = import_torch()
        made = {}
        read = set(self.module.inputs())
        for name, values in feeds.items():
            if name not in read or values.dtype.kind in "OUS":
                made[name] = values
                continue
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
        MissingDependencyError: torch is not installed; or onnx2torch, and an operator needs it.
        UnsupportedModelError: An operator cannot be computed with torch; the message names it, its version and node.
        ModelLoadError: An external weight cannot be read.
    """
    import_torch()
    normalized = normalized_copy(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in normalized.graph.initializer}
    weights, statistics = _weights(normalized, arrays), _statistics(normalized)
    weights -= statistics
    nodes, ends = normalized.graph.node, set(normalized.outputs.values())
    others = Registered(normalized.graph, normalized.versions)
    steps = list(_steps(nodes, ends, normalized.opset, others, set(weights)))
    if not trained_outputs(model.proto.graph):
        raise UnsupportedModelError("the model cannot be trained: it has no output of floats that depends on an input")
    module = module_class()(normalized, steps, arrays, weights, statistics)
    module.eval()
    stored = {name: normalized.stored[name] for name in (*weights, *statistics)}
    return TorchGraph(module, module.weights(), stored)


def write_back(model: Model, arrays: Mapping[str, NDArray[Any]]) -> Model:
    """A copy of the model in which these tensors hold new values; everything else is as it was, byte for byte.

    Args:
        model: The model that the tensors belong to.
        arrays: New values by name, of initialisers or outputs of Constant nodes of the main graph or a branch in it,
            in the stored shape and type. What was in a data file is then in the proto; ``onnxsep.save`` puts
            initialisers into the new data file if they are named in its ``externalize``.

    Raises:
        OptionError: There is no such tensor, or the shape or type differs.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for scope in scopes(proto):
        for node in scope.body.node:
            if not arrays.keys().isdisjoint(node.output):
                hold_tensor(node)  # what is written goes into the node, also where it held numbers
    tensors = writable_tensors(proto)
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


def _steps(
    nodes: Sequence[onnx.NodeProto], outputs: Collection[str], opset: int, others: Registered, learnt: set[str]
) -> Iterator[Step]:
    """The nodes with their operations, and after which one each tensor is needed no more.

    Args:
        nodes: Of the main graph or a branch.
        outputs: The tensors that it gives.
        opset: The version of ONNX's own operators.
        others: Converters for operators that onnxsep has no code for.
        learnt: Names of weights, and of all that depends on them; it grows.
    """
    operations = []
    for node in nodes:
        names = reads(node)
        learns = not learnt.isdisjoint(names)
        if node.op_type in NESTED and is_standard(node):
            operations.append(_nested(node, names, opset, others, learnt))
        else:
            operations.append(convert(node, opset, others, learns=learns))
        if learns:
            learnt.update(node.output)
    last = {name: index for index, operation in enumerate(operations) for name in operation.inputs}
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        if name and name not in outputs:
            ends.setdefault(index, []).append(name)
    for index, (node, operation) in enumerate(zip(nodes, operations, strict=True)):
        yield Step(node, operation, tuple(ends.get(index, ())))


def _nested(node: onnx.NodeProto, names: Sequence[str], opset: int, others: Registered, learnt: set[str]) -> Operation:
    """A node that holds graphs; they see what they capture."""
    bodies = {}
    for entry in node.attribute:
        if entry.HasField("g"):
            if not learnt.isdisjoint(names):
                learnt.update(value.name for value in entry.g.input)
            ends = [value.name for value in entry.g.output]
            steps = list(_steps(entry.g.node, ends, opset, others, learnt))
            bodies[entry.name] = Body(tuple(value.name for value in entry.g.input), tuple(ends), steps)
    try:
        return nested(node, names, opset, bodies)
    except KeyError as error:
        raise unsupported(node, opset, f"its attribute {error} is missing") from error
    except NotImplementedError as error:
        raise unsupported(node, opset, one_line(error)) from error


def _weights(normalized: Normalized, arrays: Mapping[str, NDArray[Any]]) -> set[str]:
    """Names of the float tensors that layers use as weights, also through Reshape, Transpose and the like."""
    sources: dict[str, set[str]] = {name: ({name} if name in normalized.stored else set()) for name in arrays}
    behind_layer: set[str] = set()
    found: set[str] = set()
    given_by = {  # what the inputs of a Loop's body may be
        value.name: reads(node)
        for node in every_node(normalized.graph.node)
        for graph in branches(node)
        for value in graph.input
    }

    def is_behind(name: str) -> bool:
        return name in behind_layer or any(map(is_behind, given_by.get(name, ())))

    for node in every_node(normalized.graph.node):
        given = reads(node)
        if all(name in sources for name in given):  # a constant expression: its weights are those of its inputs
            used = set[str]().union(*(sources[name] for name in given))
            sources.update((name, used) for name in node.output)
            continue
        positions: Sequence[int] = _WEIGHTS.get(node.op_type, ())
        behind = any(map(is_behind, (*given, *_ends(node))))
        if node.op_type in _ELEMENTWISE and behind:  # in front of the first layer it is preprocessing
            positions = [index for index, name in enumerate(node.input) if _is_per_channel(arrays.get(name))]
        for index in positions:
            found |= sources.get(node.input[index], set()) if index < len(node.input) else set()
        if behind or node.op_type in LAYERS:
            behind_layer.update(node.output)
    return found


def _ends(node: onnx.NodeProto) -> list[str]:
    """The tensors that the branches of a node give."""
    return [value.name for graph in branches(node) for value in graph.output]


def _is_per_channel(values: NDArray[Any] | None) -> bool:
    """Whether a constant has values along exactly one axis: a bias or a scale, not a threshold, not a grid of boxes."""
    return values is not None and sum(size > 1 for size in values.shape) == 1


def _statistics(normalized: Normalized) -> set[str]:
    norms = [node for node in every_node(normalized.graph.node) if node.op_type == "BatchNormalization"]
    return {name for node in norms for name in node.input[_STATISTICS]} & set(normalized.stored)
