"""Nodes by ONNX's reference evaluator: constants, and what torch has no operator for and that needs no gradient."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import UnsupportedModelError
from onnxsep.graph.constants import MAX_FOLDED_BYTES
from onnxsep.graph.scopes import display_name, is_standard

_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "Sum", "Where", "BitShift", "BitwiseAnd", "BitwiseOr"),
    *("BitwiseXor", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
}
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"}


def evaluate(node: onnx.NodeProto, values: Mapping[str, NDArray[Any]], opset: int) -> Sequence[NDArray[Any]] | None:
    """The outputs of one of ONNX's own nodes; None where the evaluator cannot compute them, or not all of them.

    Args:
        node: The node, without nested graphs.
        values: Its inputs by name.
        opset: The version of ONNX's own operators.

    Raises:
        UnsupportedModelError: An output would be larger than 2 GB.
    """
    if 4 * _elements(node, [values[name] for name in node.input if name]) > MAX_FOLDED_BYTES:
        raise UnsupportedModelError(
            f"the constant that {node.op_type} {display_name(node)!r} computes is too large (over 2 GB); a network"
            " that is trained cannot hold it"
        )
    graph = onnx.GraphProto(name="constant", node=[node])
    for name in filter(None, node.output):
        graph.output.add().name = name
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())
    small = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(small).run(None, {})
    except Exception:  # it raises whatever the operator's code raises; the node is then computed at run time
        return None
    arrays = [np.asarray(array) for array in results]
    return arrays if len(arrays) == len(node.output) else None


def _elements(node: onnx.NodeProto, values: Sequence[NDArray[Any]]) -> int:
    """How many elements an output has at most, for operators that make much of little; 0 for the others."""
    try:
        if node.op_type == "ConstantOfShape":
            return math.prod(values[0].ravel().tolist())
        if node.op_type == "Expand":
            return math.prod(np.broadcast_shapes(values[0].shape, tuple(values[1].tolist())))
        if node.op_type == "Tile":
            return int(values[0].size * math.prod(values[1].ravel().tolist()))
        if node.op_type == "Range":
            start, limit, delta = (array.ravel().tolist()[0] for array in values)
            count: int = math.ceil((limit - start) / delta)
            return max(0, count)
        if node.op_type == "Pad":
            before, after = np.split(values[1].ravel(), 2)
            return math.prod(map(sum, zip(values[0].shape, before.tolist(), after.tolist(), strict=True)))
        if node.op_type in _BROADCASTING:
            return math.prod(np.broadcast_shapes(*(array.shape for array in values)))
    except (ValueError, IndexError, ZeroDivisionError, OverflowError, TypeError):  # another form, or a wrong one
        pass
    return 0


def has_float_output(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an output may be of floats, by the operator's schema; an operator that is not known may have one."""
    try:
        schema = defs.get_schema(node.op_type, opset, node.domain)
    except Exception:  # onnx raises a class of its own C++ module
        return True
    types = [kind for output in schema.outputs for kind in output.types]
    return bool(_FLOATS & set(types)) or not types


def reference_call(node: onnx.NodeProto, opset: int) -> Callable[..., Any] | None:
    """Computes a node from torch tensors, without gradients; None where the evaluator does not know the operator.

    Tensors of text, which torch does not have, are arrays.
    """
    if not is_standard(node) or any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return None
    graph = onnx.GraphProto(name="node", node=[node])
    for name in dict.fromkeys(filter(None, node.input)):
        graph.input.add().name = name
    for name in filter(None, node.output):
        graph.output.add().name = name
    try:
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
    except Exception:  # whatever it raises where it has no code for an operator
        return None
    import torch

    def call(*tensors: Any) -> Any:
        given = zip(node.input, tensors, strict=True)
        device = next((t.device for t in tensors if isinstance(t, torch.Tensor)), torch.device("cpu"))
        feeds = {name: _array(tensor) for name, tensor in given if name}
        if node.op_type == "NonMaxSuppression":  # its code takes the first element of what may be scalars
            feeds = {name: np.atleast_1d(array) for name, array in feeds.items()}
        with np.errstate(all="ignore"):
            found = iter(evaluator.run(None, feeds))
        return tuple(_tensor(np.asarray(next(found)), device) if name else None for name in node.output)

    def _array(tensor: Any) -> Any:
        return tensor.detach().float().cpu().numpy() if _is_float(tensor) else np.asarray(_on_cpu(tensor))

    def _on_cpu(tensor: Any) -> Any:
        return tensor.cpu() if isinstance(tensor, torch.Tensor) else tensor

    def _is_float(tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()

    def _tensor(array: NDArray[Any], device: Any) -> Any:
        if array.dtype.kind not in "fiub":
            return array
        return torch.from_numpy(np.array(array, np.float32 if array.dtype.kind == "f" else None)).to(device)

    return call
