"""The operation that computes each node with torch, or the reason why there is none."""

from typing import Any

import onnx
from onnx import defs, helper

from onnxsep.errors import MissingDependencyError, UnsupportedModelError
from onnxsep.graph.scopes import display_name, is_standard
from onnxsep.training.attributes import INSTALL, Attributes, Operation, one_line
from onnxsep.training.reference import has_float_output, reference_call
from onnxsep.training.registered import Registered, is_imported

# Attributes that old exporters write and that say nothing about what is computed.
_MEANINGLESS = {"consumed_inputs", "is_test"}
_QUANTISED = "quantised weights are integers; fine-tune first, and quantise the result"
_REASONS = {
    **dict.fromkeys(
        (
            *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
            *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        ),
        _QUANTISED,
    ),
    "SequenceMap": "what runs for each tensor of a sequence is not followed in training; write it as a Loop",
    **dict.fromkeys(
        ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"),
        "it draws random numbers, so the model has no outputs that could be compared",
    ),
}


def import_torch() -> Any:
    """The package torch.

    Raises:
        MissingDependencyError: It is not installed, or its import fails.
    """
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, RuntimeError, ...
        raise MissingDependencyError(f"training needs torch ({one_line(error)}); {INSTALL}") from error
    return torch


def check_installed() -> None:
    """Import what training needs, to know before any work is done that it is there.

    Raises:
        MissingDependencyError: It is not.
    """
    import_torch()


def convert(node: onnx.NodeProto, opset: int, others: Registered, *, learns: bool = True) -> Operation:
    """The operation that computes a node, which holds no graphs.

    Args:
        node: A node of a normalised graph.
        opset: The version of ONNX's own operators.
        others: Converters for operators that onnxsep has no code for.
        learns: Whether weights that are trained are in front of it, so that gradients must go through it.

    Raises:
        UnsupportedModelError: The node cannot be computed; it names operator, version and node.
        MissingDependencyError: onnx2torch could know the operator, and cannot be imported.
    """
    import_torch()
    from onnxsep.training.operators import OPERATORS

    build = OPERATORS.get(node.op_type) if is_standard(node) else None
    if build is None:
        return _without_builder(node, opset, others, learns)
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    attributes = Attributes(values, opset, max((i for i, name in enumerate(node.output, 1) if name), default=1))
    attributes.ignore(*_MEANINGLESS)
    try:
        call = build(attributes)
    except (NotImplementedError, TypeError, ValueError, KeyError) as error:  # attributes may be of any type
        raise unsupported(node, opset, one_line(error)) from error
    unknown = attributes.unread()
    if unknown:
        raise unsupported(node, opset, f"its attribute {unknown[0]!r} is not known")
    return Operation(tuple(node.input), call)


def _without_builder(node: onnx.NodeProto, opset: int, others: Registered, learns: bool) -> Operation:
    """A node that the table has no builder for: by ONNX's evaluator where no gradient is needed, or as registered."""
    reason = _REASONS.get(node.op_type) if is_standard(node) else None
    if reason is None and (not learns or not has_float_output(node, opset)):
        call = reference_call(node, opset)
        if call is not None:
            return Operation(tuple(node.input), call)
    operation = None
    if reason is None or is_imported():  # onnx2torch has none of those with reasons; somebody may have added one
        try:
            operation = others.operation(node)
        except NotImplementedError as error:
            raise unsupported(node, opset, str(error)) from error
    if operation is None:
        raise unsupported(
            node, opset, reason or "onnxsep has no torch code for it, and no converter is registered with onnx2torch"
        )
    return operation


def unsupported(node: onnx.NodeProto, opset: int, reason: str) -> UnsupportedModelError:
    """The error that a node cannot be computed with torch."""
    if is_standard(node):
        kind = f"{node.op_type}-{_since(node.op_type, opset) or opset}"
    else:
        kind = f"{node.domain}.{node.op_type}"
    return UnsupportedModelError(f"the model cannot be trained with torch: {kind} {display_name(node)!r}: {reason}")


def _since(op_type: str, opset: int) -> int | None:
    try:
        return int(defs.get_schema(op_type, opset).since_version)
    except Exception:  # onnx raises a class of its own C++ module; the operator is not known
        return None
