"""Finding every convolution of a model: those with constant weights as ConvSite, the others as Rejected."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx

from onnxsep.constants import read_constant, stored_tensor
from onnxsep.errors import FactorizationError
from onnxsep.first import first_convs
from onnxsep.graph import FLOAT_TYPES, ONNX_TYPES, OTHER_CONVOLUTIONS, View
from onnxsep.io import Model
from onnxsep.scopes import Owners, Scope, display_name, is_standard, names_within, scopes, training_names
from onnxsep.shapes import Shape, infer_shapes, skeleton
from onnxsep.types import AutoPad, Constant, Conv, ConvSite, Place, Rejected

METADATA_PREFIX = "onnxsep."


@dataclass(frozen=True)
class Sites:
    """All convolutions in graph order, and the light model with inferred shapes that they were found in."""

    found: tuple[ConvSite | Rejected, ...]
    scopes: tuple[Scope, ...]  # of the source model itself
    light: onnx.ModelProto
    notes: tuple[str, ...] = ()


def find_sites(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Sites:
    """Look at every node of every graph and function; reads no weight, except where an expression hides its shape.

    Raises:
        UnsupportedModelError: the graph cannot be read.
    """
    problems: list[str] = []
    light = infer_shapes(skeleton(model), input_shapes, problems)
    view = View(light)
    source = scopes(model.proto)
    finder = _Finder(model, source, view, first_convs(light), _Uses(view.scopes))
    found: list[ConvSite | Rejected] = []
    for scope in view.scopes:
        for index, node in enumerate(scope.body.node):
            if not is_standard(node):
                continue
            if node.op_type in OTHER_CONVOLUTIONS:
                found.append(finder.reject(scope, index, OTHER_CONVOLUTIONS[node.op_type]))
            elif node.op_type == "Conv":
                found.append(finder.conv(scope, index))
    return Sites(tuple(found), tuple(source), light, tuple(problems))


@dataclass(frozen=True)
class _Use:
    """One use of a tensor: by what, in words; the node, where it is one; and whether it is a Conv's weight there."""

    user: str
    place: Place | None
    as_weight: bool = False


class _Uses:
    """What uses each tensor, by the scope that it belongs to and its name."""

    def __init__(self, all_scopes: Sequence[Scope]) -> None:
        self._owners = Owners(all_scopes)
        self._uses: dict[tuple[int, str], list[_Use]] = defaultdict(list)
        for scope in all_scopes:
            for index, node in enumerate(scope.body.node):
                user, place = f"{node.op_type} {display_name(node)!r}", (scope.index, index)
                is_conv = is_standard(node) and node.op_type == "Conv"
                for position, name in enumerate(node.input):
                    self._add(scope, name, _Use(user, place, as_weight=is_conv and position == 1))
                for graph in (graph for attribute in node.attribute for graph in attribute.graphs):
                    for name in names_within(graph):
                        self._add(scope, name, _Use(user, place))
            if isinstance(scope.body, onnx.FunctionProto):
                for name in scope.body.output:
                    self._add(scope, name, _Use("an output of the function", None))
                continue
            for output in scope.body.output:
                self._add(scope, output.name, _Use("an output of the graph", None))
            for annotation in scope.body.quantization_annotation:
                for entry in annotation.quant_parameter_tensor_names:
                    self._add(scope, entry.value, _Use("a quantisation annotation", None))

    def of(self, scope: int, name: str) -> list[_Use]:
        """The uses of the tensor that a name means in a scope."""
        return [use for owner in self._owners.owners(scope, name)[:1] for use in self._uses[owner, name]]

    def _add(self, scope: Scope, name: str, use: _Use) -> None:
        for owner in self._owners.owners(scope.index, name)[:1]:
            self._uses[owner, name].append(use)


class _Finder:
    def __init__(
        self,
        model: Model,
        source: Sequence[Scope],
        view: View,
        first: set[Place],
        uses: _Uses,
    ) -> None:
        self._model, self._source, self._view, self._first, self._uses = model, source, view, first, uses
        self._training = set(training_names(model.proto))

    def reject(self, scope: Scope, index: int, reason: str) -> Rejected:
        node = scope.body.node[index]
        return Rejected(display_name(node), node.op_type, scope.where, reason, (scope.index, index))

    def conv(self, scope: Scope, index: int) -> ConvSite | Rejected:
        """The site of a Conv node, or why its geometry or weight is not constant."""
        node = scope.body.node[index]
        constant = self._view.constant(scope.index, index, 1)
        if isinstance(constant, str):
            return self.reject(scope, index, constant)
        try:
            shape, dtype = self._weight_type(constant)
        except FactorizationError as error:
            return self.reject(scope, index, str(error))
        if dtype not in FLOAT_TYPES:
            return self.reject(scope, index, f"its weight has the type {onnx.TensorProto.DataType.Name(dtype)}")
        conv = conv_geometry(node, shape)
        if isinstance(conv, str):
            return self.reject(scope, index, conv)
        if len(node.device_configurations if hasattr(node, "device_configurations") else ()):
            return self.reject(scope, index, "its device configuration (sharding) cannot be carried to the new nodes")
        input_shape = self._view.shape(scope.index, node.input[0])
        pinned = [use.user for use in self._uses.of(constant.scope, constant.name) if not use.as_weight]
        pinned += self._kept_by(constant, conv)
        if scope.namespace == 0 and constant.name in self._training:
            pinned.append("the training information")
        return ConvSite(
            name=display_name(node),
            conv=conv,
            dtype=FLOAT_TYPES[dtype],
            input_size=_sizes(input_shape, conv.dims),
            batch=_batch(input_shape),
            weight=constant,
            place=(scope.index, index),
            where=scope.where,
            first=(scope.index, index) in self._first,
            bias=self._bias(scope, index) if conv.bias else None,
            made_by=next((entry.value for entry in node.metadata_props if entry.key == METADATA_PREFIX + "mode"), ""),
            stored=stored_tensor(self._source, constant) is not None,
            pinned=tuple(pinned),
        )

    def _bias(self, scope: Scope, index: int) -> Constant | None:
        constant = self._view.constant(scope.index, index, 2)
        return constant if isinstance(constant, Constant) else None

    def _kept_by(self, constant: Constant, conv: Conv) -> Iterator[str]:
        """What else uses a tensor as large as the weight that an expression computes the weight from, in words.

        Such a tensor stays in the file although the expression goes. Shapes and scalars are too small to matter.
        """
        for place in constant.nodes:
            for name in self._view.scopes[place[0]].body.node[place[1]].input:
                if _elements(self._view.shape(place[0], name)) >= conv.weight_size:
                    yield from (use.user for use in self._uses.of(place[0], name) if use.place not in constant.nodes)

    def _weight_type(self, constant: Constant) -> tuple[tuple[int, ...], int]:
        tensor = stored_tensor(self._source, constant)
        if tensor is not None:
            return tuple(tensor.dims), tensor.data_type
        values = read_constant(self._model, self._source, constant)
        return values.shape, ONNX_TYPES.get(values.dtype.name, onnx.TensorProto.UNDEFINED)


def conv_geometry(node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> Conv | str:
    """The geometry that a Conv node's attributes give, or the reason why they give none."""
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return "its attributes are arguments of the function"
    attributes: dict[str, Any] = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    dims = len(weight_shape) - 2
    group = attributes.get("group", 1)
    kernel = tuple(attributes.get("kernel_shape", weight_shape[2:]))
    strides = tuple(attributes.get("strides") or (1,) * dims)
    dilations = tuple(attributes.get("dilations") or (1,) * dims)
    pads = tuple(attributes.get("pads") or (0,) * (2 * dims))
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode() or "NOTSET"
    if dims < 1 or min(weight_shape, default=0) < 1:
        return f"its weight has the shape {list(weight_shape)}, which is no convolution's"
    if kernel != weight_shape[2:]:
        return f"kernel_shape {list(kernel)} does not agree with its weight of shape {list(weight_shape)}"
    if len(strides) != dims or len(dilations) != dims or len(pads) != 2 * dims:
        return f"strides, dilations or pads do not have {dims} axes as its weight has"
    if group < 1 or weight_shape[0] % group or min(*strides, *dilations) < 1:
        return f"it is malformed: group {group}, strides {list(strides)}, dilations {list(dilations)}"
    if auto_pad not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"):
        return f"unknown auto_pad {auto_pad!r}"
    return Conv(
        in_channels=weight_shape[1] * group,
        out_channels=weight_shape[0],
        kernel_shape=kernel,
        strides=strides,
        pads=pads if auto_pad == "NOTSET" else (0,) * (2 * dims),
        dilations=dilations,
        group=group,
        bias=len(node.input) > 2 and bool(node.input[2]),
        auto_pad=cast(AutoPad, auto_pad),
    )


def _sizes(shape: Shape | None, dims: int) -> tuple[int, ...] | None:
    if shape is None or len(shape) != dims + 2:
        return None
    sizes = tuple(size for size in shape[2:] if isinstance(size, int))
    return sizes if len(sizes) == dims else None


def _elements(shape: Shape | None) -> int:
    """Number of elements; 0 where the shape is not known."""
    return 0 if shape is None else math.prod(size if isinstance(size, int) else 0 for size in shape)


def _batch(shape: Shape | None) -> int | None:
    return shape[0] if shape and isinstance(shape[0], int) else None


def read_weight(model: Model, sites: Sites, site: ConvSite) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weight of a site in double precision, [out_channels, in_channels / group, *kernel_shape].

    Raises:
        FactorizationError: the weight holds NaN or infinity.
    """
    weight = read_constant(model, sites.scopes, site.weight).astype(np.float64)
    if not np.isfinite(weight).all():
        raise FactorizationError("its weight holds NaN or infinity")
    return weight
