"""ONNX operators as torch functions: ours for layers with weights and for what onnx2torch lacks, else onnx2torch's.

onnx2torch copies weights into its modules (a shared weight becomes several, that of a Gemm is transposed), needs static
shapes for pools and norms, and knows few versions newer than opset 13. So the operators below take their weights as
inputs and read shapes when they run. For all others its converter of the same version is used, or that of another
version with the same meaning for the node at hand.

An operation is called with the tensors of the node's inputs (None for one that is left out) and gives a tensor, or
several in a tuple.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import defs, helper

from onnxsep.errors import MissingDependencyError, UnsupportedModelError
from onnxsep.scopes import display_name, is_standard
from onnxsep.training import operators

_INSTALL = "install it with: pip install onnxsep[finetune]"
_NEEDS_TORCHVISION = ("NonMaxSuppression", "RoiAlign")
_QUANTISED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
}
# Attributes that old exporters write and that say nothing about what is computed.
_MEANINGLESS = {"consumed_inputs", "is_test"}


@dataclass(frozen=True)
class Operation:
    """What computes a node.

    Attributes:
        inputs: Names of the tensors that ``call`` takes; "" for one that is left out.
        call: The function; ``training`` is an argument of ours alone, onnx2torch's modules have a state for it.
        module: onnx2torch's module, or None where the function is ours.
    """

    inputs: tuple[str, ...]
    call: Callable[..., Any]
    module: Any = None


def import_torch() -> Any:
    """The package torch.

    Raises:
        MissingDependencyError: It is not installed, or its import fails.
    """
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, RuntimeError, ...
        raise MissingDependencyError(f"training needs torch ({_one_line(error)}); {_INSTALL}") from error
    return torch


@functools.cache
def import_onnx2torch() -> Callable[..., Any]:
    """onnx2torch's ``get_converter``.

    Raises:
        MissingDependencyError: It is not installed, or its import fails.
    """
    import_torch()
    with _torchvision():
        try:
            from onnx2torch.node_converters import get_converter
        except Exception as error:
            raise MissingDependencyError(f"training needs onnx2torch ({_one_line(error)}); {_INSTALL}") from error
    converter: Callable[..., Any] = get_converter
    return converter


def check_installed() -> None:
    """Import what training needs, to know before any work is done that it is there.

    Raises:
        MissingDependencyError: It is not.
    """
    import_onnx2torch()


@contextmanager
def _torchvision() -> Iterator[None]:
    """Lets onnx2torch import torchvision, which it needs for two operators only, where there is none that works."""
    try:
        import torchvision  # noqa: F401 - a build for another torch raises RuntimeError here
    except Exception:
        saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    else:
        yield
        return
    stub, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    for name in ("box_convert", "nms", "roi_align"):
        setattr(ops, name, _no_torchvision)
    stub.ops = ops  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": stub, "torchvision.ops": ops})
    try:
        yield
    finally:  # later imports of torchvision must fail as they did
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]
        sys.modules.update(saved)


def _no_torchvision(*_: Any, **__: Any) -> Any:
    raise UnsupportedModelError(f"{' and '.join(_NEEDS_TORCHVISION)} need torchvision, which cannot be imported here")


def convert(node: onnx.NodeProto, opset: int, graph: Any) -> Operation:
    """The operation that computes a node.

    Args:
        node: A node of a normalised graph.
        opset: The version of ONNX's own operators.
        graph: The graph as onnx2torch's OnnxGraph.

    Raises:
        UnsupportedModelError: Neither onnxsep nor onnx2torch can compute the node; it names operator, version and node.
    """
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    own = operators.OPERATORS.get(node.op_type) if is_standard(node) else None
    if own is not None:
        unknown = set(attributes) - own.attributes - _MEANINGLESS
        if unknown:
            raise unsupported(node, opset, f"its attribute {sorted(unknown)[0]!r} is not known")
        try:
            call = own.build(_as_text(attributes), len(node.output))
        except NotImplementedError as error:
            raise unsupported(node, opset, str(error)) from error
        return Operation(tuple(node.input), call)
    return _of_onnx2torch(node, attributes, opset, graph)


def unsupported(node: onnx.NodeProto, opset: int, reason: str) -> UnsupportedModelError:
    """The error that a node cannot be computed with torch."""
    if is_standard(node):
        kind = f"{node.op_type}-{_since(node.op_type, opset) or opset}"
    else:
        kind = f"{node.domain}.{node.op_type}"
    return UnsupportedModelError(f"the model cannot be trained with torch: {kind} {display_name(node)!r}: {reason}")


def _as_text(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- onnx2torch's converters


def _of_onnx2torch(node: onnx.NodeProto, attributes: dict[str, Any], opset: int, graph: Any) -> Operation:
    get_converter = import_onnx2torch()
    from onnx2torch.onnx_node import OnnxNode

    if not is_standard(node):
        raise unsupported(node, opset, "onnx2torch has no converter for it")
    if node.op_type in _NEEDS_TORCHVISION:
        try:
            import torchvision  # noqa: F401
        except Exception as error:
            raise unsupported(node, opset, f"it needs torchvision ({_one_line(error)})") from error
    for version in _equivalent_versions(node, attributes, opset):
        try:
            converter = get_converter(domain="", operation_type=node.op_type, version=version)
        except NotImplementedError:
            continue
        try:
            module, mapping = converter(OnnxNode(node, unique_name=display_name(node)), graph)
        except Exception as error:  # it raises NotImplementedError, and KeyError where it expects a constant
            raise unsupported(node, opset, f"onnx2torch: {_one_line(error)}") from error
        return Operation(tuple(mapping.inputs), module, module)
    if node.op_type in _QUANTISED:
        raise unsupported(node, opset, "quantised weights are integers; fine-tune first, and quantise the result")
    raise unsupported(node, opset, "onnx2torch has no converter for it")


def _since(op_type: str, opset: int) -> int | None:
    try:
        return int(defs.get_schema(op_type, opset).since_version)
    except Exception:  # onnx raises a class of its own C++ module; the operator is not known
        return None


def _equivalent_versions(node: onnx.NodeProto, attributes: dict[str, Any], opset: int) -> Iterator[int]:
    """Versions of the operator that mean the same for this node: its own, then older ones, then newer ones."""
    own = _since(node.op_type, opset)
    if own is None:
        return
    yield own
    schemas = {
        schema.since_version: schema
        for schema in defs.get_all_schemas_with_history()
        if schema.name == node.op_type and schema.domain == ""
    }
    older = sorted((version for version in schemas if version < own), reverse=True)
    newer = sorted(version for version in schemas if version > own)
    for version in (*older, *newer):
        if _same_meaning(node, attributes, schemas[own], schemas[version]):
            yield version


def _same_meaning(node: onnx.NodeProto, attributes: dict[str, Any], own: Any, other: Any) -> bool:
    """Whether another version differs in its types only, or in what the node does not use."""
    for name in set(own.attributes) | set(other.attributes):
        if name in own.attributes and name in other.attributes:
            if name not in attributes and _default(own, name) != _default(other, name):
                return False
        elif name in attributes and name not in other.attributes:
            return False
    given = [index for index, name in enumerate(node.input) if name]
    return [_formal(own.inputs, index) for index in given] == [_formal(other.inputs, index) for index in given]


def _default(schema: Any, name: str) -> Any:
    attribute = schema.attributes[name]
    return attribute.default_value.SerializeToString() if attribute.default_value.name else None


def _formal(parameters: Sequence[Any], index: int) -> str | None:
    """What an input is called in a schema; the last one may stand for any number of inputs."""
    if index < len(parameters):
        return str(parameters[index].name)
    return str(parameters[-1].name) if parameters and "Variadic" in str(parameters[-1].option) else None
