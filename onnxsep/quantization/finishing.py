"""What is done to the quantiser's result: the user's names, metadata and interface back, and no byte without a use.

Of a small network's int8 file the names that the quantiser makes are the larger part, so they are shortened.
"""

from collections.abc import Collection, Iterator
from itertools import count

import onnx

from onnxsep.graph.scopes import display_name, scopes
from onnxsep.quantization.preparing import drop_unused_imports


def finish(result: onnx.ModelProto, source: onnx.ModelProto, renamed: dict[str, str], *, keep_names: bool) -> None:
    """Complete a quantised model, in place.

    Args:
        result: From the quantiser.
        source: The user's model.
        renamed: Old names of nodes by those that they got for the time being (``preparing.Prepared``).
        keep_names: Leave the names that the quantiser made as they are.
    """
    _restore_interface(result, source)
    _restore_nodes(result, source, renamed)
    known = tensor_names(source)
    _share_constants(result, known)
    kept = {entry.name: entry for entry in source.graph.value_info}
    produced = {name for node in result.graph.node for name in node.output}
    del result.graph.value_info[:]
    result.graph.value_info.extend(entry for name, entry in kept.items() if name in produced)
    if not keep_names:
        _shorten(result, known)
        users = {display_name(node) for scope in scopes(source) for node in scope.body.node}
        for node in result.graph.node:
            if node.name not in users:
                node.ClearField("name")
    drop_unused_imports(result, source)


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    """Every name of a tensor in a model."""
    names: set[str] = set()
    for scope in scopes(proto):
        body = scope.body
        names.update(name for node in body.node for name in (*node.input, *node.output))
        if isinstance(body, onnx.GraphProto):
            names.update(entry.name for entry in (*body.input, *body.output, *body.value_info))
            names.update(tensor.name for tensor in body.initializer)
        else:
            names.update((*body.input, *body.output))
    return names


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
    result.metadata_props.extend(source.metadata_props)
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
    originals = {node.name: node for node in source.graph.node if node.name}
    for node in result.graph.node:
        node.name = renamed.get(node.name, node.name)
        original = originals.get(node.name)
        if original is None or original.op_type not in node.op_type:
            continue
        if original.doc_string:
            node.doc_string = original.doc_string
        if hasattr(original, "metadata_props"):
            del node.metadata_props[:]
            node.metadata_props.extend(original.metadata_props)


def _share_constants(result: onnx.ModelProto, known: set[str]) -> None:
    """Merge equal initialisers that the quantiser made: zero points mostly. Their users are in the main graph."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    merged: dict[str, str] = {}
    kept = []
    for tensor in result.graph.initializer:
        if tensor.name not in known:
            array = onnx.numpy_helper.to_array(tensor)
            key = (tensor.data_type, tuple(tensor.dims), array.tobytes())
            if first.setdefault(key, tensor.name) != tensor.name:
                merged[tensor.name] = first[key]
                continue
        kept.append(tensor)
    if not merged:
        return
    copies = onnx.GraphProto()
    copies.initializer.extend(kept)
    del result.graph.initializer[:]
    result.graph.initializer.extend(copies.initializer)
    rename(result, merged)


def _shorten(result: onnx.ModelProto, known: set[str]) -> None:
    """Give tensors that are not the user's the shortest names that are free."""
    names: dict[str, str] = {}
    made: dict[str, None] = {}  # a set that keeps its order
    for tensor in result.graph.initializer:
        made[tensor.name] = None
    for node in result.graph.node:
        made.update(dict.fromkeys(node.output))
    free = short_names(known | tensor_names(result))
    for name in made:
        if not name or name in known:
            continue
        short = next(free)
        if len(short) < len(name):
            names[name] = short
    rename(result, names)


def short_names(taken: Collection[str]) -> Iterator[str]:
    """The shortest names for tensors that nothing else has."""
    return (name for name in map(_base36, count()) if name not in taken)


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return f"q{digits}"


def rename(proto: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors of the main graph everywhere; no nested graph has a tensor of its own with such a name."""
    for scope in scopes(proto):
        if scope.namespace:
            continue
        for node in scope.body.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name in names:
                        field[index] = names[name]
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
