"""Reading constant weights: initialisers, Constant nodes, and expressions of constants, which are folded."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import FactorizationError
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import Scope, constant_value, display_name, opset_imports
from onnxsep.graph.shapes import infer_shapes, skeleton, tensor_shapes
from onnxsep.graph.view import build_tensor
from onnxsep.model.external import is_external
from onnxsep.model.io import Model, read_tensor

MAX_FOLDED_BYTES = 2**31  # a file of a few bytes may describe a constant of any size


def stored_tensor(scopes: Sequence[Scope], constant: Constant) -> onnx.TensorProto | None:
    """The tensor proto that holds a constant; None for an expression or a Constant node of another form."""
    if not constant.nodes:
        tensor = scopes[constant.scope].initializer(constant.name)
        assert tensor is not None, "matching has found it there"
        return tensor
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
    return _fold(model, scopes, constant)


def _fold(model: Model, scopes: Sequence[Scope], constant: Constant) -> NDArray[np.generic]:
    """Node by node, so that the size of each result is known before it is made."""
    nodes = [scopes[scope].body.node[index] for scope, index in constant.nodes]
    opsets = opset_imports(model.proto, scopes, constant.scope)
    values: dict[str, NDArray[np.generic]] = {}
    for node in nodes:
        for name in filter(None, node.input):
            if name in values:
                continue
            tensor = find_constant(scopes, constant.nodes[-1][0], name)
            if tensor is None:
                raise FactorizationError(f"the constant expression needs {name!r}, which is no dense constant")
            values[name] = read_tensor(model, tensor)
        values.update(zip(filter(None, node.output), _evaluated(model, node, values, opsets), strict=False))
    return values[constant.name]


def _evaluated(
    model: Model,
    node: onnx.NodeProto,
    values: Mapping[str, NDArray[np.generic]],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[NDArray[np.generic]]:
    """The outputs of one node. Its tensors are read here, for the evaluator would open any file that they name.

    Raises:
        FactorizationError: it cannot be evaluated, or would give more than 2 GB.
    """
    graph = onnx.GraphProto(name="constant", node=[node])
    copy = graph.node[0]
    copy.ClearField("domain")  # the evaluator knows ONNX's own domain only by its short name, ""
    for attribute in copy.attribute:
        for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
            if is_external(tensor):
                tensor.CopyFrom(build_tensor(tensor.name, read_tensor(model, tensor)))
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            raise FactorizationError(f"the constant expression holds a sparse tensor, in {display_name(node)!r}")
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    for name in dict.fromkeys(filter(None, node.input)):
        graph.initializer.append(build_tensor(name, values[name]))
    small = onnx.ModelProto(ir_version=model.proto.ir_version, graph=graph)
    small.opset_import.extend(opsets)
    if _promised_bytes(small) > MAX_FOLDED_BYTES:
        raise FactorizationError(f"the constant {next(iter(node.output), '')!r} is too large to be folded (over 2 GB)")
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(small).run(None, {})
    except Exception as error:  # the evaluator raises whatever the operator's code raises
        message = f"the constant expression {node.op_type} cannot be folded: {type(error).__name__}: {error}"
        raise FactorizationError(message) from error
    return [np.asarray(result) for result in results]


def find_constant(scopes: Sequence[Scope], scope: int, name: str) -> onnx.TensorProto | None:
    """The initialiser, or the value of the Constant node, that a name means in a scope; None for anything else."""
    owner: int | None = scope
    while owner is not None:
        if (tensor := scopes[owner].initializer(name)) is not None:
            return tensor
        if (node := scopes[owner].maker(name)) is not None:
            return constant_value(node)
        owner = scopes[owner].parent
    return None


def _promised_bytes(small: onnx.ModelProto) -> int:
    """The bytes that the outputs of a model of one node will have, as if they were float32; 0 where nobody knows."""
    inferred = infer_shapes(skeleton(small))
    shapes = tensor_shapes(inferred.graph)
    total = 0
    for output in small.graph.output:
        shape = shapes.get(output.name)
        if shape is not None and all(isinstance(size, int) for size in shape):
            total += 4 * math.prod(size for size in shape if isinstance(size, int))
    return total
