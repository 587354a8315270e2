"""What is done to the quantiser's result: the user's names, metadata and interface back."""

import onnx

from onnxsep.graph.marks import KEY, Marks, graph_keys, set_own_mark
from onnxsep.graph.scopes import display_name, scopes
from onnxsep.quantization.preparing import drop_unused_imports


def finish(result: onnx.ModelProto, source: onnx.ModelProto, renamed: dict[str, str]) -> None:
    """Complete a quantised model, in place; what onnxsep says of its nodes stands in their own metadata.

    Args:
        result: From the quantiser.
        source: The user's model.
        renamed: Old names of nodes by those that they got for the time being (``preparing.Prepared``).
    """
    _restore_interface(result, source)
    _restore_nodes(result, source, renamed)
    kept = {entry.name: entry for entry in source.graph.value_info}
    produced = {name for node in result.graph.node for name in node.output}
    del result.graph.value_info[:]
    result.graph.value_info.extend(entry for name, entry in kept.items() if name in produced)
    drop_unused_imports(result, source)


def _restore_interface(result: onnx.ModelProto, source: onnx.ModelProto) -> None:
    inputs = {entry.name for entry in result.graph.input}
    wanted = [entry for entry in source.graph.input if entry.name in inputs]
    for field, entries in (("input", wanted), ("output", source.graph.output)):
        copies = [_copy(entry) for entry in entries]
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(copies)
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        result.ClearField(name)
        if source.HasField(name):
            setattr(result, name, getattr(source, name))
    del result.metadata_props[:]
    result.metadata_props.extend(entry for entry in source.metadata_props if entry.key != KEY)
    result.graph.name = source.graph.name
    result.graph.ClearField("doc_string")
    if source.graph.HasField("doc_string"):
        result.graph.doc_string = source.graph.doc_string
    if hasattr(source.graph, "metadata_props"):
        del result.graph.metadata_props[:]
        result.graph.metadata_props.extend(source.graph.metadata_props)
    needed = onnx.helper.find_min_ir_version_for(
        [entry for entry in result.opset_import if entry.domain in ("", "ai.onnx")], ignore_unknown=True
    )
    result.ir_version = max(source.ir_version, needed, 4)


def _copy(entry: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(entry)
    return copy


def _restore_nodes(result: onnx.ModelProto, source: onnx.ModelProto, renamed: dict[str, str]) -> None:
    """The users' names of nodes that were given one, their metadata and doc strings."""
    marks = Marks(source)
    originals = {display_name(node): node for node in source.graph.node}
    users = {display_name(node) for scope in scopes(source) for node in scope.body.node}
    for node in result.graph.node:
        given = node.name
        node.name = renamed.get(given, given)
        original = originals.get(node.name or given)
        if node.name not in users:
            node.ClearField("name")
        if original is None or original.op_type not in node.op_type:
            continue
        if original.doc_string:
            node.doc_string = original.doc_string
        del node.metadata_props[:]
        node.metadata_props.extend(original.metadata_props)
        set_own_mark(node, marks.of(0, original))
    all_scopes = scopes(result)
    for scope, graph in zip(all_scopes, graph_keys(all_scopes), strict=True):
        for node in scope.body.node if scope.kind == "subgraph" else ():
            if said := marks.within(graph, node):
                set_own_mark(node, said)
