"""What must hold of a model before anything else looks at it: text, nodes and nesting are as ONNX's format says.

onnx and ONNX Runtime take much of this for granted, and some of it ends the process where it does not hold. Sizes of
shapes are no part of it: an exporter may write any number for "unknown", and ``onnxsep.graph.inference`` drops those.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto

from onnxsep.errors import ModelLoadError
from onnxsep.model.functions import check_calls
from onnxsep.model.tensors import Body, bodies

# A protobuf message may be nested a hundred times, and a graph within a graph takes three: graph, node, attribute.
_DEEPEST = 33
_STANDARD = ("", "ai.onnx")


def check_form(proto: onnx.ModelProto) -> None:
    """Check what :func:`onnxsep.model.io.load` promises of text, nodes, attributes, nested graphs and functions.

    Raises:
        ModelLoadError: Text is not UTF-8; a node has no operator, too few inputs or outputs, or an attribute of another
            type than its operator's, or that stands for an argument outside functions; graphs are nested too deep;
            functions call themselves.
    """
    _check_depth(proto)
    own = {(function.domain, function.name) for function in proto.functions}
    for _, text in _text_fields(proto, {"graph", "functions", "training_info"}):
        _check_text(text)
    versions = _versions(proto.opset_import)
    _check_versions(versions)
    for body, in_function in bodies(proto):
        if isinstance(body, onnx.FunctionProto):
            versions = _versions(body.opset_import)
        for _, text in _text_fields(body, {"node", "initializer", "sparse_initializer"}):
            _check_text(text)
        for tensor in getattr(body, "initializer", ()):
            _check_text(tensor.name, tensor.doc_string)
        for node in body.node:
            _check_node(node, versions, own)
            if not in_function:
                _check_references(node)
    check_calls(proto)


def _check_versions(versions: Mapping[str, int]) -> None:
    if (version := versions.get("", 1)) < 1:
        raise ModelLoadError(f"it says that its operators are of version {version}. The file is damaged.")


def _check_depth(proto: onnx.ModelProto) -> None:
    pending: list[tuple[Body, int]] = [(proto.graph, 1), *((function, 1) for function in proto.functions)]
    for info in proto.training_info:
        pending += [(info.initialization, 1), (info.algorithm, 1)]
    while pending:
        body, depth = pending.pop()
        if depth > _DEEPEST:
            raise ModelLoadError(
                f"its graphs are nested more than {_DEEPEST} deep, which no ONNX file can hold. Build it with fewer"
                " graphs within graphs."
            )
        for node in body.node:
            for attribute in node.attribute if node.attribute else ():
                pending += [(graph, depth + 1) for graph in attribute.graphs]
                if attribute.HasField("g"):
                    pending.append((attribute.g, depth + 1))


def _text_fields(top: Message, left_out: set[str]) -> Iterator[tuple[str, object]]:
    """Every text of a message and of what it holds, but for the fields of the message itself that are left out."""
    pending = [top]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            if message is top and field.name in left_out:
                continue
            repeated = hasattr(value, "extend")
            if field.message_type is not None:
                pending += value if repeated else [value]
            elif field.type == field.TYPE_STRING:
                for text in value if repeated else (value,):
                    yield field.name, text


def _check_text(*texts: object) -> None:
    """Refuse what is not UTF-8: protobuf hands out bytes, not str, for it."""
    for text in texts:
        if not isinstance(text, str):
            raise ModelLoadError(
                f"a name or another text in it is not UTF-8: {bytes(text)[:60]!r}. The file is damaged."  # type: ignore[call-overload]
            )


@dataclass(frozen=True)
class _Signature:
    """What an operator needs at least, and the types of its attributes."""

    inputs: int
    outputs: int
    types: Mapping[str, int]


@lru_cache(maxsize=4096)
def _signature(op_type: str, version: int, domain: str) -> _Signature | None:
    """The signature of an operator; None where the installed onnx does not know it, or not this version of it."""
    if version > _newest(domain):
        return None
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except Exception:  # the class that it raises is not public
        return None
    types = {name: _type_number(attribute.type) for name, attribute in schema.attributes.items()}
    return _Signature(schema.min_input, schema.min_output, types)


def _type_number(kind: Any) -> int:
    return int(getattr(kind, "value", kind))  # onnx's annotations do not tell that it is an enumeration


@lru_cache(maxsize=8)
def _newest(domain: str) -> int:
    return max((schema.since_version for schema in onnx.defs.get_all_schemas() if schema.domain == domain), default=0)


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """The version of each domain's operators; the lower one where it is given twice."""
    found: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain in _STANDARD else entry.domain
        found[domain] = min(entry.version, found.get(domain, entry.version))
    return found


def _check_node(node: onnx.NodeProto, versions: Mapping[str, int], own: set[tuple[str, str]]) -> None:
    _check_text(node.op_type, node.domain, node.name, node.overload, node.doc_string, *node.input, *node.output)
    for entry in node.metadata_props:
        _check_text(entry.key, entry.value)
    label = f"node {node.op_type} {(node.name or next(iter(node.output), ''))!r}"
    if not node.op_type:
        raise ModelLoadError(f"{label} names no operator. The file is damaged.")
    domain = "" if node.domain in _STANDARD else node.domain
    signature = None
    if (node.domain, node.op_type) not in own and -(2**31) < versions.get(domain, 1) < 2**31:
        signature = _signature(node.op_type, versions.get(domain, 1), domain)
    if signature is not None:
        for what, have, need in (
            ("input", len(node.input), signature.inputs),
            ("output", len(node.output), signature.outputs),
        ):
            if have < need:
                raise ModelLoadError(
                    f"{label} has {have} {what}s, and {node.op_type} has at least {need}. The file is damaged, or its"
                    " exporter is at fault."
                )
    for attribute in node.attribute:
        _check_attribute(label, attribute, signature, typed=domain == "" or signature is not None)


def _check_references(node: onnx.NodeProto) -> None:
    """Outside functions there are no arguments that an attribute could stand for."""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise ModelLoadError(
                f"node {node.op_type} {(node.name or next(iter(node.output), ''))!r}: its attribute {attribute.name!r}"
                f" stands for the argument {attribute.ref_attr_name!r} of a function, and the node is in none. The file"
                " is damaged, or its exporter is at fault."
            )


def _check_attribute(label: str, attribute: onnx.AttributeProto, signature: _Signature | None, *, typed: bool) -> None:
    """``typed`` says that somebody will read it: an attribute of an unknown operator only goes from file to file."""
    _check_text(attribute.name, attribute.ref_attr_name, attribute.doc_string)
    kind = attribute.type
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        _check_text(tensor.name, tensor.doc_string)
    wanted = None if signature is None else signature.types.get(attribute.name)
    if kind == AttributeProto.UNDEFINED and not typed:
        return  # files of the first versions of ONNX have none
    if kind == AttributeProto.UNDEFINED or (wanted is not None and kind != wanted):
        have = "no type" if kind == AttributeProto.UNDEFINED else f"the type {_type_name(kind)}"
        need = "" if wanted is None else f", and the operator takes {_type_name(wanted)}"
        raise ModelLoadError(
            f"{label}: its attribute {attribute.name!r} has {have}{need}. The file is damaged, or its exporter is at"
            " fault."
        )


def _type_name(number: int) -> str:
    return str(AttributeProto.AttributeType.Name(number)) if number in AttributeProto.AttributeType.values() else "?"
