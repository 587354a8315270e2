"""Reading constant weights: initialisers, Constant nodes, and expressions of constants, which are folded."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import FactorizationError
from onnxsep.graph import build_tensor
from onnxsep.io import Model, read_tensor
from onnxsep.scopes import Scope, initializer_names
from onnxsep.types import Constant

MAX_FOLDED_BYTES = 2**31  # a file of a few bytes may describe a constant of any size


def stored_tensor(scopes: Sequence[Scope], constant: Constant) -> onnx.TensorProto | None:
    """The tensor proto that holds a constant; None for an expression or a Constant node of another form."""
    if not constant.nodes:
        body = scopes[constant.scope].body
        assert isinstance(body, onnx.GraphProto)
        return next(tensor for tensor in body.initializer if tensor.name == constant.name)
    scope, index = constant.nodes[-1]
    node = scopes[scope].body.node[index]
    if node.op_type == "Constant":
        return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    return None


def read_constant(model: Model, scopes: Sequence[Scope], constant: Constant) -> NDArray[np.generic]:
    """The values of a constant in their stored type; an expression is evaluated by ONNX's reference evaluator.

    Raises:
        FactorizationError: the expression cannot be evaluated, or its result would be larger than 2 GB.
    """
    tensor = stored_tensor(scopes, constant)
    if tensor is not None:
        return read_tensor(model, tensor)
    if _promised_bytes(model, scopes, constant) > MAX_FOLDED_BYTES:
        raise FactorizationError(f"the constant {constant.name!r} is too large to be folded (over 2 GB)")
    return _fold(model, scopes, constant)


def _fold(model: Model, scopes: Sequence[Scope], constant: Constant) -> NDArray[np.generic]:
    nodes = [scopes[scope].body.node[index] for scope, index in constant.nodes]
    made = {name for node in nodes for name in node.output}
    graph = onnx.GraphProto(name="constant")
    graph.node.extend(nodes)
    for node in graph.node:
        node.ClearField("domain")  # the evaluator knows ONNX's own domain only by its short name, ""
    graph.output.add().name = constant.name
    for name in {name for node in nodes for name in node.input if name} - made:
        holder = _holder(scopes, constant.nodes[-1][0], name)
        graph.initializer.append(build_tensor(name, read_tensor(model, holder)))
    root = scopes[constant.scope]
    while root.parent is not None:
        root = scopes[root.parent]
    opsets = root.body.opset_import if isinstance(root.body, onnx.FunctionProto) else model.proto.opset_import
    small = onnx.ModelProto(ir_version=model.proto.ir_version, graph=graph)
    small.opset_import.extend(opsets)
    try:
        with np.errstate(all="ignore"):
            (values,) = ReferenceEvaluator(small).run(None, {})
    except Exception as error:  # the evaluator raises whatever the operator's code raises
        kinds = " -> ".join(node.op_type for node in nodes)
        message = f"the constant expression {kinds} cannot be folded: {type(error).__name__}: {error}"
        raise FactorizationError(message) from error
    return np.asarray(values)


def _holder(scopes: Sequence[Scope], scope: int, name: str) -> onnx.TensorProto:
    """The initialiser of that name, looked up from the inner graph outwards."""
    owner: int | None = scope
    while owner is not None:
        body = scopes[owner].body
        if name in initializer_names(scopes[owner]) and isinstance(body, onnx.GraphProto):
            return next(tensor for tensor in body.initializer if tensor.name == name)
        owner = scopes[owner].parent
    raise FactorizationError(f"the constant expression needs {name!r}, which is no dense initialiser")


def _promised_bytes(model: Model, scopes: Sequence[Scope], constant: Constant) -> int:
    """The largest size that a ConstantOfShape or Expand of the expression asks for, in bytes of float32."""
    largest = 0
    for position, (scope, index) in enumerate(constant.nodes):
        node = scopes[scope].body.node[index]
        if node.op_type not in ("ConstantOfShape", "Expand", "Tile", "Range", "OneHot"):
            continue
        for name in node.input:
            values = _small_value(model, scopes, scope, name, constant, position)
            if values is not None and values.dtype.kind == "i" and values.size <= 16:
                largest = max(largest, 4 * int(np.prod(np.maximum(values.astype(object), 1))))
    return largest


def _small_value(
    model: Model, scopes: Sequence[Scope], scope: int, name: str, constant: Constant, position: int
) -> NDArray[np.generic] | None:
    """A shape operand, where it is an initialiser or a Constant node."""
    for place in constant.nodes[:position]:
        node = scopes[place[0]].body.node[place[1]]
        if name in node.output:
            return next((read_tensor(model, entry.t) for entry in node.attribute if entry.name == "value"), None)
    try:
        return read_tensor(model, _holder(scopes, scope, name))
    except FactorizationError:
        return None
