"""A newer version of the standard operators, with what the converter of the onnx package gets wrong put right."""

from collections.abc import Iterator

import onnx
from onnx import numpy_helper, shape_inference, version_converter

from onnxsep.errors import spelled
from onnxsep.graph.scopes import is_standard, scopes
from onnxsep.quantization.errors import QuantizationError

_LAST_PLAIN_RESIZE = 10  # before coordinate_transformation_mode
_PLAIN_HARDMAX = 13  # over one axis


def opset_of(proto: onnx.ModelProto) -> int | None:
    """The version of the standard operators that a model uses."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)


def raise_opset(proto: onnx.ModelProto, wanted: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model with a version of the standard operators that is at least the wanted one, and a note if it was not.

    Raises:
        QuantizationError: it cannot be converted.
    """
    version = opset_of(proto)
    if version is None or version >= wanted:
        return proto, ()
    try:
        if version < _PLAIN_HARDMAX <= wanted:
            proto = _flat_hardmax(proto)
        converted = version_converter.convert_version(proto, wanted)
        if version <= _LAST_PLAIN_RESIZE:
            _keep_coordinates(converted)
        converted = shape_inference.infer_shapes(converted)
    except Exception as error:  # the converter raises several unrelated classes
        reason = " ".join(str(error).split())[:300]
        raise QuantizationError(
            f"the model uses opset {version}, quantising it needs {wanted}, and it cannot be converted: {reason};"
            f" export it with a newer opset{hint(wanted)}"
        ) from error
    return converted, (f"opset raised from {version} to {wanted}",)


def hint(wanted: int) -> str:
    """What else helps where a model cannot be converted."""
    return f"; {spelled('per_channel', False)} needs only 11" if wanted == 13 else ""


def _keep_coordinates(proto: onnx.ModelProto) -> None:
    """Let every Resize compute what it did before version 11, as Upsample too.

    Both took output coordinate / scale as the coordinate of the input, and of its fraction, in the nearest mode, the
    runtime makes the smaller neighbour when it enlarges and the larger one when it shrinks. The converter leaves the
    attributes out, and their defaults in version 11 are others.
    """
    for scope in scopes(proto):
        weights = {tensor.name: tensor for tensor in _initializers(proto)}
        for node in scope.body.node:
            if node.op_type != "Resize" or not is_standard(node):
                continue
            attributes = {entry.name: entry for entry in node.attribute}
            if "coordinate_transformation_mode" in attributes:
                node.attribute.remove(attributes["coordinate_transformation_mode"])
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            if attributes["mode"].s == b"nearest" if "mode" in attributes else True:
                scales = weights.get(node.input[2]) if len(node.input) > 2 else None
                shrinks = scales is not None and bool((numpy_helper.to_array(scales) < 1).any())
                if "nearest_mode" in attributes:
                    node.attribute.remove(attributes["nearest_mode"])
                node.attribute.append(onnx.helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))


def _flat_hardmax(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Spell out that Hardmax flattens its input, behind which the converter puts another axis only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = {name for scope in scopes(copy) for node in scope.body.node for name in (*node.input, *node.output)}
    for scope in scopes(copy):
        nodes = []
        for node in scope.body.node:
            if node.op_type != "Hardmax" or not is_standard(node):
                nodes.append(node)
                continue
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            flat, hard, shape = (_free(f"{node.output[0]}_{part}", names) for part in ("flat", "hard", "shape"))
            nodes += [
                onnx.helper.make_node("Flatten", [node.input[0]], [flat], axis=axis),
                onnx.helper.make_node("Hardmax", [flat], [hard], node.name, axis=1),
                onnx.helper.make_node("Shape", [node.input[0]], [shape]),
                onnx.helper.make_node("Reshape", [hard, shape], [node.output[0]]),
            ]
        if len(nodes) > len(scope.body.node):
            kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del scope.body.node[:]
            scope.body.node.extend(kept)
    return copy


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for scope in scopes(proto):
        if isinstance(scope.body, onnx.GraphProto):
            yield from scope.body.initializer
        for node in scope.body.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        tensor = onnx.TensorProto()
                        tensor.CopyFrom(attribute.t)
                        tensor.name = node.output[0]
                        yield tensor
