"""Attributes that say what holds without them."""

import onnx

from onnxsep.graph.index import Index
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import is_standard, opset_imports, scopes

# What the text of an operator says of attributes whose defaults depend on the number of axes, and the version of its
# own since which it does.
_WINDOWS = {"AveragePool": 11, "Conv": 11, "ConvInteger": 10, "ConvTranspose": 11, "LpPool": 11, "MaxPool": 11}
_WINDOWS["QLinearConv"] = 10
_FILLED = {"dilations": 1, "pads": 0, "strides": 1}
_WEIGHT = {"Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3}  # its place among the inputs


def leave_out_defaults(proto: onnx.ModelProto) -> None:
    """Remove the attributes of ONNX's own operators that equal their defaults in the versions of the model, in place.

    A ``kernel_shape`` goes too where it is that of a constant weight.
    """
    all_scopes = scopes(proto)
    index = Index(proto, all_scopes)
    for scope in all_scopes:
        version = {entry.domain or "ai.onnx": entry.version for entry in opset_imports(proto, all_scopes, scope.index)}
        for number, node in enumerate(scope.body.node):
            opset = version.get(node.domain or "ai.onnx")
            if not node.attribute or opset is None:
                continue
            schema = _schema(node, opset)
            if schema is None:
                continue
            for place in reversed(range(len(node.attribute))):
                entry = node.attribute[place]
                if not entry.ref_attr_name and _is_default(index, (scope.index, number), schema, entry):
                    del node.attribute[place]


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "" if is_standard(node) else node.domain)
    except onnx.defs.SchemaError:  # an operator of somebody else's, or a newer one
        return None


def _is_default(index: Index, place: Place, schema: onnx.defs.OpSchema, entry: onnx.AttributeProto) -> bool:
    node = index.node(place)
    known = schema.attributes.get(entry.name)
    if known is None:
        return False
    default = known.default_value
    if default.type != onnx.AttributeProto.UNDEFINED:
        return default.type == entry.type and _value(default) == _value(entry)
    since = _WINDOWS.get(node.op_type) if is_standard(node) else None
    if since is None or schema.since_version < since:
        return False
    if entry.name == "kernel_shape":
        return node.op_type in _WEIGHT and list(entry.ints) == _kernel(index, place, node.input[_WEIGHT[node.op_type]])
    return entry.name in _FILLED and set(entry.ints) == {_FILLED[entry.name]}


def _value(entry: onnx.AttributeProto) -> bytes:
    bare = onnx.AttributeProto()
    bare.CopyFrom(entry)
    bare.ClearField("name")
    bare.ClearField("doc_string")
    return bare.SerializeToString(deterministic=True)


def _kernel(index: Index, place: Place, weight: str) -> list[int] | None:
    """The kernel of a weight that is stored, also as integers behind DequantizeLinear; None for others."""
    maker = index.maker(weight, place[0])
    if maker is not None and maker.op_type == "DequantizeLinear" and is_standard(maker):
        weight = maker.input[0]
    tensor = index.tensor(weight, place[0])
    return None if tensor is None else list(tensor.dims[2:])
