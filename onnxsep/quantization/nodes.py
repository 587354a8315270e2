"""Which nodes the quantiser is to take, what became of each, and why the others stay in float."""

from collections.abc import Collection, Mapping, Sequence

import onnx

from onnxsep.errors import spelled
from onnxsep.graph.index import Index
from onnxsep.graph.scopes import scopes
from onnxsep.options.patterns import matches, no_match
from onnxsep.quantization.calibrating import float_tensors
from onnxsep.quantization.report import QuantizedNode

_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_TYPE_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}

_INTEGER = ("QuantizeLinear", "QGemm", "QEmbedLayerNormalization")
# What may read integers as it reads floats, and gives the same ones on.
_MOVES = (
    *("Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)


_MOVED_BEHIND = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_NESTED = "a nested graph reads what is made of it, and the runtime fails where that comes from integers"


def excluded_by(
    patterns: Sequence[str], source: onnx.ModelProto, prepared: onnx.ModelProto
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The nodes that the user wants in float.

    Args:
        patterns: Globs.
        source: The user's model.
        prepared: The model that is quantised.

    Returns:
        The reason by the name of the node; and a note for each pattern whose nodes were all folded away.

    Raises:
        OptionError: a pattern matches no node.
    """
    found: dict[str, str] = {}
    notes = []
    for pattern in patterns:
        hits = [node.name for node in prepared.graph.node if matches(node.name, pattern)]
        if not hits:
            if not any(matches(node.name, pattern) for node in source.graph.node):
                raise no_match("exclude", pattern, [node.name for node in source.graph.node if node.name], "node")
            notes.append(f"{spelled('exclude')} {pattern!r}: the nodes that it matches were folded into others")
        for name in hits:
            found.setdefault(name, f"{spelled('exclude')} {pattern!r}")
    return found, tuple(notes)


def not_for_quantizing(proto: onnx.ModelProto, op_types: Collection[str]) -> dict[str, str]:
    """Nodes of quantisable operators that the quantiser cannot take, with the reason."""
    types = float_tensors(proto)
    types.update((tensor.name, tensor.data_type) for tensor in proto.graph.initializer)
    found = {}
    for node in proto.graph.node:
        if node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
            continue
        names = [name for name in (*node.input, *node.output) if name]
        wide = next((types[name] for name in names if types.get(name) in _FLOATS), None)
        if wide is not None:
            found[node.name] = f"it computes in {_TYPE_NAMES[wide]}, and only float32 is quantised"
        elif unknown := next((name for name in names if name not in types), None):
            found[node.name] = f"the type of {unknown!r} is not known"
    return found


def moved_into_nested_graphs(
    proto: onnx.ModelProto, op_types: Collection[str], left: Collection[str]
) -> dict[str, str]:
    """Nodes whose integers would reach a nested graph through a MaxPool in float, or the like, with the reason.

    The runtime's optimiser moves a DequantizeLinear behind such a node. Where a nested graph reads what the node gives,
    it takes that for an operand of the If or Loop, and the process ends.

    Args:
        proto: The prepared model.
        op_types: Operators that are quantised.
        left: Names of nodes that stay in float.
    """
    if not any(scope.kind == "subgraph" for scope in scopes(proto)):
        return {}
    index = Index(proto)
    found: dict[str, str] = {}
    for node in proto.graph.node:
        in_float = node.op_type not in op_types or node.name in left
        if node.op_type in _MOVED_BEHIND and in_float and any(use.scope for use in index.uses(node.output[0])):
            maker: onnx.NodeProto | None = node
            while maker is not None and maker.op_type in _MOVED_BEHIND:
                maker = index.maker(maker.input[0])
                if maker is not None and maker.op_type in op_types and maker.name not in left:
                    found[maker.name] = _NESTED
    return found


def to_calibrate(proto: onnx.ModelProto, op_types: Collection[str], left: Collection[str]) -> list[str]:
    """The activations whose range the quantiser needs, in graph order."""
    types = float_tensors(proto)
    found: dict[str, None] = {}
    for node in proto.graph.node:
        if node.op_type in op_types and node.name not in left:
            names = (*node.input, *node.output)
            found.update((name, None) for name in names if types.get(name) == onnx.TensorProto.FLOAT)
    return list(found)


def outcome(
    prepared: onnx.ModelProto,
    result: onnx.ModelProto,
    op_types: Collection[str],
    left: Mapping[str, str],
    renamed: Mapping[str, str],
) -> tuple[QuantizedNode, ...]:
    """What became of each node.

    Args:
        prepared: The model before.
        result: As the quantiser gave it, with its own names.
        op_types: Operators that the quantiser knows.
        left: Reasons by the names of nodes that were kept from the quantiser.
        renamed: Old names by the ones that nodes got for the time being.
    """
    after = {node.name: node for node in result.graph.node}
    integer = _integer_tensors(result)
    rows = []
    for node in prepared.graph.node:
        if node.op_type == "Constant":
            continue
        name = renamed.get(node.name) or node.name
        if node.name in left:
            reason = left[node.name]
        elif node.op_type not in op_types or node.domain not in ("", "ai.onnx"):
            reason = "the runtime's quantiser does not know this operator"
        elif node.name in after and not any(source in integer for source in after[node.name].input):
            reason = "its inputs are not quantised, or its weight is not constant"
        else:
            reason = ""
        # The quantiser drops an activation whose effect the range of its output has already.
        folded = not reason and node.name not in after
        rows.append(
            QuantizedNode(
                name=name,
                op_type=node.op_type,
                status="left" if reason else "folded" if folded else "quantized",
                reason=reason,
            )
        )
    return tuple(rows)


def _integer_tensors(result: onnx.ModelProto) -> set[str]:
    """Tensors that are quantised, or come straight from one that is."""
    found: set[str] = set()  # the nodes are in topological order
    integers: set[str] = set()
    for node in result.graph.node:
        if node.op_type == "DequantizeLinear":
            found.update(node.output)
            continue
        makes = node.op_type in _INTEGER or node.op_type.startswith("QLinear")
        if makes or (node.op_type in _MOVES and node.input[0] in integers):
            integers.update(node.output)
    return found | integers
