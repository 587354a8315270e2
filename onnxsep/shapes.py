"""A light copy of a model, without its weights, and the shapes of its tensors.

The copy has the same nodes in the same places, so that matching, counting and printing never touch a weight; it costs
kilobytes for a model of gigabytes.
"""

import logging
import math
from collections.abc import Mapping

import onnx
from onnx import shape_inference

_LOG = logging.getLogger(__name__)
LARGE = 1024  # elements; shapes, axes and pads are far smaller, weights that matter are larger
Shape = tuple[int | str | None, ...]


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which tensors of more than ``LARGE`` elements keep name, type and dimensions but hold no data.

    They are marked as external data without a file, which shape inference and the structure checker accept.
    """
    light = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name == "graph":
            _light_graph(value, light.graph)
        elif descriptor.name == "functions":
            for function in value:
                _light_body(function, light.functions.add())
        elif descriptor.name != "training_info":
            _copy_field(light, descriptor.name, value)
    return light


def infer_shapes(light: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """ONNX's own shape inference on a ``skeleton``; the model as it is where inference fails.

    Args:
        light: a skeleton; its inputs get ``input_shapes``.
        input_shapes: shapes that replace those in the model, by input name.
    """
    for value in light.graph.input:
        if input_shapes and value.name in input_shapes:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in input_shapes[value.name]:
                shape.dim.add().dim_value = size
    try:
        return shape_inference.infer_shapes(light, data_prop=True)
    except Exception as error:  # a model with one odd operator still has Convs; sizes are then unknown
        _LOG.debug("shape inference failed: %s", error)
        return light


def tensor_shapes(body: onnx.GraphProto | onnx.FunctionProto) -> dict[str, Shape]:
    """Shapes known within one graph, by tensor name: integers, names of symbolic dimensions, None for unknown."""
    shapes: dict[str, Shape] = {}
    if isinstance(body, onnx.FunctionProto):
        return shapes
    for value in (*body.value_info, *body.input, *body.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(_dim(dim) for dim in value.type.tensor_type.shape.dim)
    for tensor in body.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        # Some exporters write 0 or -1 for "any size".
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


def _light_graph(source: onnx.GraphProto, light: onnx.GraphProto) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == "initializer":
            for tensor in value:
                _light_tensor(tensor, light.initializer.add())
        elif descriptor.name == "node":
            for node in value:
                _light_node(node, light.node.add())
        else:
            _copy_field(light, descriptor.name, value)


def _light_body(source: onnx.FunctionProto, light: onnx.FunctionProto) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == "node":
            for node in value:
                _light_node(node, light.node.add())
        else:
            _copy_field(light, descriptor.name, value)


def _light_node(source: onnx.NodeProto, light: onnx.NodeProto) -> None:
    if not any(_holds_data(attribute) for attribute in source.attribute):
        light.CopyFrom(source)
        return
    for descriptor, value in source.ListFields():
        if descriptor.name != "attribute":
            _copy_field(light, descriptor.name, value)
            continue
        for attribute in value:
            copy = light.attribute.add()
            if not _holds_data(attribute):
                copy.CopyFrom(attribute)
                continue
            copy.name, copy.type, copy.doc_string = attribute.name, attribute.type, attribute.doc_string
            if attribute.type == onnx.AttributeProto.GRAPH:
                _light_graph(attribute.g, copy.g)
            else:
                _light_tensor(attribute.t, copy.t)


def _holds_data(attribute: onnx.AttributeProto) -> bool:
    if attribute.ref_attr_name:  # it names an argument of the function instead of holding anything
        return False
    kind = onnx.AttributeProto
    return attribute.type == kind.GRAPH or (attribute.type == kind.TENSOR and _size(attribute.t) > LARGE)


def _light_tensor(source: onnx.TensorProto, light: onnx.TensorProto) -> None:
    if _size(source) <= LARGE and source.data_location != onnx.TensorProto.EXTERNAL:
        light.CopyFrom(source)
        return
    light.name, light.data_type = source.name, source.data_type
    light.dims.extend(source.dims)
    light.data_location = onnx.TensorProto.EXTERNAL
    entry = light.external_data.add()
    entry.key, entry.value = "location", "left-out"


def _size(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _copy_field(target: object, name: str, value: object) -> None:
    field = getattr(target, name)
    if hasattr(field, "extend"):
        field.extend(value)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    else:
        setattr(target, name, value)
