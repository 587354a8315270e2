"""Reading constant weights: initialisers, Constant nodes, and expressions of constants, which are folded."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import FactorizationError
from onnxsep.graph import build_tensor
from onnxsep.io import Model, read_tensor
from onnxsep.scopes import Scope, constant_value, opset_imports
from onnxsep.types import Constant

MAX_FOLDED_BYTES = 2**31  # a file of a few bytes may describe a constant of any size


def stored_tensor(scopes: Sequence[Scope], constant: Constant) -> onnx.TensorProto | None:
    """The tensor proto that holds a constant; None for an expression or a Constant node of another form."""
    if not constant.nodes:
        body = scopes[constant.scope].body
        assert isinstance(body, onnx.GraphProto)
        return next(tensor for tensor in body.initializer if tensor.name == constant.name)
    scope, index = constant.nodes[-1]
    return constant_value(scopes[scope].body.node[index])


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
        tensor = find_constant(scopes, constant.nodes[-1][0], name)
        if tensor is None:
            raise FactorizationError(f"the constant expression needs {name!r}, which is no dense constant")
        graph.initializer.append(build_tensor(name, read_tensor(model, tensor)))
    small = onnx.ModelProto(ir_version=model.proto.ir_version, graph=graph)
    small.opset_import.extend(opset_imports(model.proto, scopes, constant.scope))
    try:
        with np.errstate(all="ignore"):
            (values,) = ReferenceEvaluator(small).run(None, {})
    except Exception as error:  # the evaluator raises whatever the operator's code raises
        kinds = " -> ".join(node.op_type for node in nodes)
        message = f"the constant expression {kinds} cannot be folded: {type(error).__name__}: {error}"
        raise FactorizationError(message) from error
    return np.asarray(values)


def find_constant(scopes: Sequence[Scope], scope: int, name: str) -> onnx.TensorProto | None:
    """The initialiser, or the value of the Constant node, that a name means in a scope; None for anything else."""
    owner: int | None = scope
    while owner is not None:
        body = scopes[owner].body
        for tensor in body.initializer if isinstance(body, onnx.GraphProto) else ():
            if tensor.name == name:
                return tensor
        for node in body.node:
            if name in node.output:
                return constant_value(node)
        owner = scopes[owner].parent
    return None


def _promised_bytes(model: Model, scopes: Sequence[Scope], constant: Constant) -> int:
    """The largest size that a ConstantOfShape or Expand of the expression asks for, in bytes of float32."""
    largest = 0
    for scope, index in constant.nodes:
        node = scopes[scope].body.node[index]
        if node.op_type not in ("ConstantOfShape", "Expand", "Tile", "Range", "OneHot"):
            continue
        for name in node.input:
            tensor = find_constant(scopes, scope, name)
            if tensor is not None and tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) <= 16:
                sizes = read_tensor(model, tensor).astype(object)
                largest = max(largest, 4 * int(np.prod(np.maximum(sizes, 1))))
    return largest
