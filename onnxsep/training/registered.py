"""Operators that onnxsep has no torch code for, with the converters that are registered with onnx2torch.

Those are onnx2torch's own, and what anyone has added with its ``add_converter``, for operators of other domains too. It
is imported when such an operator is met, never before.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
from onnx import defs, helper

from onnxsep.errors import MissingDependencyError
from onnxsep.graph.scopes import display_name, is_standard
from onnxsep.training.attributes import INSTALL, Operation, one_line

_TORCHVISION = ("NonMaxSuppression", "RoiAlign")  # onnx2torch computes these with it


class Registered:
    """The registered converters, for the nodes of one model.

    Args:
        graph: The normalised graph.
        versions: The version of each domain's operators.
    """

    def __init__(self, graph: onnx.GraphProto, versions: Mapping[str, int]) -> None:
        self._proto, self._versions = graph, versions

    @functools.cached_property
    def _graph(self) -> Any:
        from onnx2torch.onnx_graph import OnnxGraph

        return OnnxGraph(self._proto)

    def operation(self, node: onnx.NodeProto) -> Operation | None:
        """The operation that computes a node; None where no converter is registered for it.

        The module that a converter makes stays in evaluation mode: what it may keep about batches has no place in the
        graph. Its own copies of weights are not trained, for the same reason.

        Raises:
            MissingDependencyError: onnx2torch, or torchvision where it needs that, cannot be imported.
            NotImplementedError: The converter cannot do the node; it says why.
        """
        find = _get_converter(node)
        domain = "" if is_standard(node) else node.domain
        for version in _versions(node, self._versions.get(domain, 1)):
            try:
                converter = find(operation_type=node.op_type, version=version, domain=domain)
            except NotImplementedError:
                continue
            return self._made(node, converter)
        return None

    def _made(self, node: onnx.NodeProto, converter: Callable[..., Any]) -> Operation:
        from onnx2torch.onnx_node import OnnxNode

        if is_standard(node) and node.op_type in _TORCHVISION:
            try:
                import torchvision  # noqa: F401
            except Exception as error:  # a build for another torch raises RuntimeError
                raise NotImplementedError(
                    f"it needs torchvision, which cannot be imported ({one_line(error)})"
                ) from error
        try:
            module, mapping = converter(OnnxNode(node, unique_name=display_name(node)), self._graph)
            parameters = list(inspect.signature(module.forward).parameters)
        except Exception as error:  # KeyError where a constant is expected, and whatever else a converter raises
            raise NotImplementedError(
                f"its converter for onnx2torch: {type(error).__name__}: {one_line(error)}"
            ) from error
        module.eval().requires_grad_(False)
        outputs = list(mapping.outputs)

        def call(*tensors: Any) -> Any:
            first = next((place for place, tensor in enumerate(tensors) if tensor is None), len(tensors))
            behind = zip(parameters[first:], tensors[first:], strict=False)
            result = module(*tensors[:first], **{name: tensor for name, tensor in behind if tensor is not None})
            results = dict(zip(outputs, result if isinstance(result, tuple | list) else [result], strict=False))
            return tuple(results.get(name) for name in node.output)

        return Operation(tuple(mapping.inputs), call, module)


@functools.cache
def _import() -> Callable[..., Any]:
    with _torchvision():
        from onnx2torch.node_converters.registry import get_converter
    found: Callable[..., Any] = get_converter
    return found


def _get_converter(node: onnx.NodeProto) -> Callable[..., Any]:
    """onnx2torch's ``get_converter``."""
    try:
        return _import()
    except Exception as error:
        name = node.op_type if is_standard(node) else f"{node.domain}.{node.op_type}"
        raise MissingDependencyError(
            f"{name} {display_name(node)!r} can only be trained with a converter for onnx2torch, which cannot be"
            f" imported ({one_line(error)}); {INSTALL}"
        ) from error


def is_imported() -> bool:
    """Whether onnx2torch is imported, so that there may be converters for operators that it lacks."""
    return sys.modules.get("onnx2torch.node_converters.registry") is not None


@contextmanager
def _torchvision() -> Iterator[None]:
    """Lets onnx2torch import torchvision, which it needs for two operators only, where there is none that works."""
    if is_imported():
        yield
        return
    try:
        import torchvision  # noqa: F401 - a build for another torch raises RuntimeError here
    except Exception:
        saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    else:
        yield
        return
    stub, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    for name in ("box_convert", "nms", "roi_align"):
        setattr(ops, name, None)  # never called: without torchvision the two operators are refused before
    stub.ops = ops  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": stub, "torchvision.ops": ops})
    try:
        yield
    finally:  # later imports of torchvision must fail as they did
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]
        sys.modules.update(saved)


# ---------------------------------------------------------------- versions


def _versions(node: onnx.NodeProto, opset: int) -> Iterator[int]:
    """Versions of the operator that mean the same for this node: its own, then older ones, then newer ones."""
    schemas = {
        schema.since_version: schema
        for schema in defs.get_all_schemas_with_history()
        if schema.name == node.op_type and schema.domain == ("" if is_standard(node) else node.domain)
    }
    own = max((version for version in schemas if version <= opset), default=None)
    if own is None:
        yield opset
        return
    yield own
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    older = sorted((version for version in schemas if version < own), reverse=True)
    newer = sorted(version for version in schemas if version > own)
    for version in (*older, *newer):
        if _same_meaning(node, attributes, schemas[own], schemas[version]):
            yield version


def _same_meaning(node: onnx.NodeProto, attributes: Mapping[str, Any], own: Any, other: Any) -> bool:
    """Whether another version differs in its types only, or in what the node does not use."""
    for name in set(own.attributes) | set(other.attributes):
        if name in own.attributes and name in other.attributes:
            if name not in attributes and _default(own, name) != _default(other, name):
                return False
        elif name in attributes and name not in other.attributes:
            return False
        elif name not in attributes and _default(own if name in own.attributes else other, name) is not None:
            return False  # RoiAlign-16: what its new attribute is by default is not what RoiAlign-10 does
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
