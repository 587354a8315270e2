"""No byte without a use: what a quantised model says twice, or need not say, is left out.

Of a small network's int8 file the weights are half. Nothing here changes what is computed, or how ONNX Runtime fuses
it.
"""

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from onnxsep.graph.default_attributes import leave_out_defaults
from onnxsep.graph.index import Index
from onnxsep.graph.marks import SOURCE, into_model, own_mark, set_own_mark
from onnxsep.graph.scopes import is_standard, scopes, used_names
from onnxsep.quantization.float_biases import use_float_biases
from onnxsep.quantization.naming import free_name, rename, shorten_tensors, tensor_names
from onnxsep.quantization.settings import Settings

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_CONVERT = ("QuantizeLinear", "DequantizeLinear")
_ZERO_POINT = 2  # its place among their inputs
_CONV_ZERO_POINT = 5  # that of the weight, among the inputs of QLinearConv
# The runtime puts the default in for what these read and give. It does not where nodes only move values, and products
# of matrices want a zero point for each scale.
_TAKE_DEFAULT = frozenset({"Add", "AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "Mul"})


def compact(result: onnx.ModelProto, source: onnx.ModelProto, settings: Settings) -> None:
    """Make a finished quantised model small, in place.

    Args:
        result: From ``finishing``; what onnxsep says of nodes stands in their own metadata.
        source: The user's model.
        settings: ``names`` and ``biases`` count.
    """
    short = settings.names == "short"
    kept = _ends(result) if short else tensor_names(source) - _inner_names(result)
    used = _used(result)
    if settings.float_biases:
        use_float_biases(result, for_new_runtimes=settings.biases == "float")
    _one_zero_point_for_all_channels(result)
    _share_constants(result, kept)
    _share_conversions(result)
    _leave_out_zero_points(result)
    _remove(result, used - _used(result))
    leave_out_defaults(result)
    if short:
        _forget(result)
    _keep_infos(result, set() if short else kept)
    shorten_tensors(result, kept)
    into_model(result)


def _ends(proto: onnx.ModelProto) -> set[str]:
    return {entry.name for entry in (*proto.graph.input, *proto.graph.output)}


def _used(proto: onnx.ModelProto) -> set[str]:
    return {name for scope in scopes(proto) for name in used_names(scope)}


def _remove(proto: onnx.ModelProto, names: Collection[str]) -> None:
    tensors = proto.graph.initializer
    for place in reversed([place for place, tensor in enumerate(tensors) if tensor.name in names]):
        del tensors[place]


def _inner_names(proto: onnx.ModelProto) -> set[str]:
    """What is computed between nodes that took the place of one: these names are ours too."""
    index = Index(proto)
    found = set()
    for node in proto.graph.node:
        source = own_mark(node).get(SOURCE)
        for name in node.output if source else ():
            readers = list(_readers(index, name))
            if readers and all(reader is not None and own_mark(reader).get(SOURCE) == source for reader in readers):
                found.add(name)
    return found - _ends(proto)


def _readers(index: Index, name: str) -> Iterator[onnx.NodeProto | None]:
    """What reads a tensor, or the floats that its integers are made floats again to; None for other uses."""
    for use in index.uses(name):
        node = None if use.place is None or use.scope else index.node(use.place)
        if node is not None and node.op_type in _CONVERT:
            yield from _readers(index, node.output[0])
        else:
            yield node


def _one_zero_point_for_all_channels(proto: onnx.ModelProto) -> None:
    """QLinearConv needs a zero point of its weight, but one does for channels that have the same."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    made: dict[str, str] = {}
    for node in proto.graph.node:
        point = tensors.get(node.input[_CONV_ZERO_POINT]) if node.op_type == "QLinearConv" else None
        if point is None or len(point.dims) != 1:
            continue
        values = numpy_helper.to_array(point)
        if values.size and (values == values[0]).all():
            if point.name not in made:
                made[point.name] = free_name(f"{point.name}_of_all", {*tensors, *made.values()})
                proto.graph.initializer.append(numpy_helper.from_array(values[0], made[point.name]))
            node.input[_CONV_ZERO_POINT] = made[point.name]


def _share_constants(proto: onnx.ModelProto, kept: Collection[str]) -> None:
    """Merge equal initialisers: scales and zero points mostly. Those with names that stay go on for themselves."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    merged: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        if tensor.name not in kept:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            if first.setdefault(key, tensor.name) != tensor.name:
                merged[tensor.name] = first[key]
    _remove(proto, merged)
    rename(proto, merged)


def _share_conversions(proto: onnx.ModelProto) -> None:
    """Merge QuantizeLinear and DequantizeLinear nodes that do the same to the same tensor."""
    ends = _ends(proto)
    first: dict[tuple[object, ...], str] = {}
    merged: dict[str, str] = {}
    gone = []
    for place, node in enumerate(proto.graph.node):
        if node.op_type not in _CONVERT or not is_standard(node) or node.output[0] in ends:
            continue
        settings = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
        key = (node.op_type, *(merged.get(name, name) for name in node.input), *settings)
        if first.setdefault(key, node.output[0]) != node.output[0]:
            merged[node.output[0]] = first[key]
            gone.append(place)
    for place in reversed(gone):
        del proto.graph.node[place]
    rename(proto, merged)


def _leave_out_zero_points(proto: onnx.ModelProto) -> None:
    """Zero points that are 0, as they are without being given: of any type behind DequantizeLinear, else of uint8."""
    index = Index(proto)
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or not _is_zero(index, node) or not _readers_take_default(index, node):
            continue
        maker = index.maker(node.input[0])
        if maker is None:
            if index.tensor(node.input[0]) is not None:
                del node.input[_ZERO_POINT:]
        elif maker.op_type == "QuantizeLinear" and _is_zero(index, maker, onnx.TensorProto.UINT8):
            computed = index.maker(maker.input[0])
            if computed is not None and computed.op_type in _TAKE_DEFAULT and len(index.uses(node.input[0])) == 1:
                del node.input[_ZERO_POINT:]
                del maker.input[_ZERO_POINT:]


def _is_zero(index: Index, node: onnx.NodeProto, type_: int | None = None) -> bool:
    tensor = index.tensor(node.input[_ZERO_POINT]) if len(node.input) > _ZERO_POINT else None
    if tensor is None or type_ not in (None, tensor.data_type):
        return False
    return not numpy_helper.to_array(tensor).astype(np.float32).any()


def _readers_take_default(index: Index, node: onnx.NodeProto) -> bool:
    uses = index.uses(node.output[0])
    readers = [index.node(use.place) for use in uses if use.place is not None and not use.scope]
    return len(readers) == len(uses) > 0 and all(reader.op_type in _TAKE_DEFAULT for reader in readers)


def _forget(proto: onnx.ModelProto) -> None:
    """Names, texts and metadata of nodes, and of what onnxsep says all but what keeps float layers from being split."""
    for scope in scopes(proto):
        stored = scope.body.initializer if isinstance(scope.body, onnx.GraphProto) else ()
        weights = {tensor.name for tensor in stored if tensor.data_type in _FLOATS}
        for node in scope.body.node:
            said = own_mark(node)
            said.pop(SOURCE, None)
            for field in ("name", "doc_string", "metadata_props"):
                node.ClearField(field)
            if len(node.input) > 1 and node.input[1] in weights:
                set_own_mark(node, said)


def _keep_infos(proto: onnx.ModelProto, kept: Collection[str]) -> None:
    """Leave out types of tensors whose names go."""
    for scope in scopes(proto):
        if isinstance(scope.body, onnx.GraphProto):
            infos = [entry for entry in scope.body.value_info if entry.name in kept]
            copies = onnx.GraphProto(value_info=infos)
            del scope.body.value_info[:]
            scope.body.value_info.extend(copies.value_info)
