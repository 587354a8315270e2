"""A light copy of a model, without its weights, and the shapes of its tensors.

The copy has the same nodes in the same places, so that matching, counting and printing never touch a weight; it costs
kilobytes for a model of gigabytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx
from google.protobuf.message import Message
from onnx import numpy_helper

from onnxsep.graph.inference import InferenceError, forget_impossible_sizes, infer
from onnxsep.graph.scopes import Scope, scopes
from onnxsep.model.io import Model, read_tensor

LARGE = 64  # elements; what shape inference reads (shapes, axes, scales) is smaller
Shape = tuple[int | str | None, ...]
Measured = Mapping[tuple[int, str], tuple[int, tuple[int, ...]]]
"""Element type and sizes of tensors that are known from a run, by scope and name."""


def skeleton(model: Model | onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which tensors of more than ``LARGE`` elements keep name, type and dimensions but hold no data.

    They are marked as external data without a file, which shape inference accepts. Smaller ones are in the copy even
    where the source keeps them in a data file. Doc strings and training information are left out.
    """
    source = model if isinstance(model, Model) else Model(model)
    light = onnx.ModelProto()
    _copy_fields(source, source.proto, light)
    forget_impossible_sizes(light)
    return light


def infer_shapes(
    light: onnx.ModelProto,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    problems: list[str] | None = None,
    measured: Measured | None = None,
) -> onnx.ModelProto:
    """ONNX's own shape inference on a ``skeleton``; the model as it is where inference fails.

    Args:
        light: a skeleton; its inputs get ``input_shapes``.
        input_shapes: shapes that replace those in the model, by input name.
        problems: gets the reason where inference fails.
        measured: sizes of tensors that are known from a run.
    """
    for value in light.graph.input:
        if input_shapes and value.name in input_shapes:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in input_shapes[value.name]:
                shape.dim.add().dim_value = size
    if measured:
        _declare(light, measured)
    try:
        found, note = infer(light)
    except InferenceError as error:  # a model with one odd operator still has Convs; sizes are then unknown
        if problems is not None:
            problems.append(f"shape inference failed, so sizes are not known: {error}")
        return light
    if note and problems is not None:
        problems.append(note)
    return found


def _declare(light: onnx.ModelProto, measured: Measured) -> None:
    """Write measured sizes into the graphs that hold the tensors."""
    all_scopes = scopes(light)
    for number in {scope for scope, _ in measured}:
        body = all_scopes[number].body
        values = {value.name: value for value in body.value_info}
        if isinstance(body, onnx.GraphProto):
            values.update((value.name, value) for value in (*body.input, *body.output))
        for (scope, name), (kind, sizes) in measured.items():
            if scope == number:
                value = values[name] if name in values else body.value_info.add()
                value.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, sizes))


def tensor_shapes(body: onnx.GraphProto | onnx.FunctionProto) -> dict[str, Shape]:
    """Shapes known within one graph, by tensor name: integers, names of symbolic dimensions, None for unknown."""
    found = ((name, _shape(declared)) for name, declared in _declared(body).items())
    return {name: shape for name, shape in found if shape is not None}


_Declared = onnx.ValueInfoProto | onnx.TensorProto


class KnownShapes:
    """Shapes of the tensors that a scope sees, those of the graphs around it included.

    Nothing is read before somebody asks: of a million tensors a few are of interest.

    Args:
        all_scopes: of a model with inferred shapes.
    """

    def __init__(self, all_scopes: Sequence[Scope]) -> None:
        self._scopes = all_scopes
        self._declared: dict[int, Mapping[str, _Declared]] = {}

    def of(self, scope: int, name: str) -> Shape | None:
        """The shape of a tensor, as ``tensor_shapes`` gives it; None where it is not known."""
        found = (_shape(declared) for declared in self._all(scope, name))
        return next((shape for shape in found if shape is not None), None)

    def element_type(self, scope: int, name: str) -> int:
        """The element type of a tensor; 0 where it is not known."""
        found = (
            one.data_type if isinstance(one, onnx.TensorProto) else one.type.tensor_type.elem_type
            for one in self._all(scope, name)
        )
        return next(filter(None, found), 0)

    def _all(self, scope: int, name: str) -> Iterator[_Declared]:
        """What says something of a tensor, in this scope and those around it."""
        owner: int | None = scope
        while owner is not None:
            if owner not in self._declared:
                self._declared[owner] = _declared(self._scopes[owner].body)
            if name in self._declared[owner]:
                yield self._declared[owner][name]
            owner = self._scopes[owner].parent


def _declared(body: onnx.GraphProto | onnx.FunctionProto) -> dict[str, _Declared]:
    """What says the shape of each tensor of a graph; an initialiser above all."""
    if isinstance(body, onnx.FunctionProto):
        return {}
    found: dict[str, _Declared] = {value.name: value for value in (*body.value_info, *body.input, *body.output)}
    found.update((tensor.name, tensor) for tensor in body.initializer)
    return found


def _shape(declared: _Declared) -> Shape | None:
    if isinstance(declared, onnx.TensorProto):
        return tuple(declared.dims)
    tensor = declared.type.tensor_type
    return tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        # Some exporters write 0 or -1 for "any size".
        return dim.dim_value if dim.dim_value > 0 else None
    return dim.dim_param or None


# What may hold a tensor, however deep; everything else is copied as a whole.
_HOLDERS = (onnx.GraphProto, onnx.NodeProto, onnx.AttributeProto, onnx.FunctionProto, onnx.SparseTensorProto)


def _copy_fields(model: Model, source: Message, light: Message) -> None:
    for field, value in source.ListFields():
        if field.name in ("doc_string", "training_info"):
            continue
        copy = getattr(light, field.name)
        if isinstance(value, Message):
            copy.SetInParent()
            _copy_message(model, value, copy)
        elif hasattr(value, "add"):
            for item in value:
                _copy_message(model, item, copy.add())
        elif hasattr(value, "extend"):
            copy.extend(value)
        else:
            setattr(light, field.name, value)


def _copy_message(model: Model, source: Message, light: Message) -> None:
    if isinstance(source, onnx.TensorProto) and isinstance(light, onnx.TensorProto):
        _copy_tensor(model, source, light)
    elif isinstance(source, onnx.NodeProto) and not source.attribute:  # most nodes; there may be a million
        light.CopyFrom(source)
        light.ClearField("doc_string")
    elif isinstance(source, _HOLDERS):
        _copy_fields(model, source, light)
    else:
        light.CopyFrom(source)


def _copy_tensor(model: Model, source: onnx.TensorProto, light: onnx.TensorProto) -> None:
    external = source.data_location == onnx.TensorProto.EXTERNAL
    if math.prod(source.dims) <= LARGE:
        if not external:
            light.CopyFrom(source)
            return
        values = None if model.base_dir is None else read_tensor(model, source)
        # Shapes, axes and scales are of numpy's own types; the others cannot be written by older onnx.
        if values is not None and values.dtype.isbuiltin == 1:
            light.CopyFrom(numpy_helper.from_array(values, source.name))
            return
    light.CopyFrom(stub(source.name, source.data_type, source.dims))


def stub(name: str, data_type: int, dims: Sequence[int]) -> onnx.TensorProto:
    """A tensor that has a type and a shape but no data."""
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "left-out"
    return tensor
