"""What must hold of every result before it is handed out."""

import onnx

from onnxsep.errors import PassError
from onnxsep.graph.inference import infer
from onnxsep.graph.scopes import scopes
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import Model


def ensure_valid(source: Model, result: onnx.ModelProto) -> str | None:
    """Check a result with onnx.checker and strict shape inference.

    Args:
        source: the model that was rewritten.
        result: the skeleton of the result (``onnxsep.graph.shapes.skeleton``).

    Returns:
        None, or a note where the source itself was not valid, so that nothing can be asked of the result.

    Raises:
        PassError: the source is valid and the result is not; this is a bug.
    """
    problem = _problem(result)
    if problem is None:
        return None
    before = _problem(skeleton(source))
    if before is None:
        raise PassError(f"the rewritten graph is not valid, which is a bug of the mode or of onnxsep: {problem}")
    return f"the source is not valid for onnx.checker, so the result was not checked: {before}"


def _problem(light: onnx.ModelProto) -> str | None:
    checked = onnx.ModelProto()
    checked.CopyFrom(light)
    for scope in scopes(checked):
        for node in scope.body.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    _empty(attribute.t)
        if isinstance(scope.body, onnx.GraphProto):
            for tensor in scope.body.initializer:
                _empty(tensor)
    try:
        onnx.checker.check_model(checked)
        infer(light, strict=True)
    except Exception as error:  # both raise several unrelated classes
        return " ".join(str(error).split())[:300]
    return None


def _empty(tensor: onnx.TensorProto) -> None:
    """The checker refuses tensors without data unless they have no elements."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        del tensor.dims[:]
        tensor.dims.append(0)
