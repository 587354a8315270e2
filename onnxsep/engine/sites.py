"""Finding every convolution of a model: those with constant weights as ConvSite, the others as Rejected.

For those who ask for it, every Gemm and MatMul too, and every ConvTranspose that is not only Rejected.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import onnx

from onnxsep.engine.matches import ConvSite, OpType, Rejected
from onnxsep.engine.surroundings import alike, behind_first, normalization_before, normalization_behind
from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant, stored_tensor
from onnxsep.graph.first_convs import first_convs
from onnxsep.graph.geometry import conv_geometry, linear_geometry
from onnxsep.graph.index import Index, Use
from onnxsep.graph.marks import KEY, Marks
from onnxsep.graph.nonnegative import is_nonnegative
from onnxsep.graph.places import Constant, Place
from onnxsep.graph.scopes import Scope, display_name, is_standard, scopes, training_names
from onnxsep.graph.shapes import KnownShapes, Measured, Shape, infer_shapes, skeleton
from onnxsep.graph.transposing import turned
from onnxsep.graph.view import FLOAT_TYPES, ONNX_TYPES, OTHER_CONVOLUTIONS, View
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.model.tensors import type_name

_LINEAR = ("Gemm", "MatMul")
_TRANSPOSED = "ConvTranspose"
_NO_TRANSPOSED = {_TRANSPOSED: "ConvTranspose is not supported: only Conv is rewritten"}
_QUANTISED = {
    "MatMulInteger": "MatMulInteger: its weight is quantised already",
    "QLinearMatMul": "QLinearMatMul: its weight is quantised already",
}


@dataclass(frozen=True)
class Sites:
    """All convolutions in graph order, and the light model with inferred shapes that they were found in."""

    found: tuple[ConvSite | Rejected, ...]
    scopes: tuple[Scope, ...]  # of the source model itself
    light: onnx.ModelProto
    marks: Marks
    notes: tuple[str, ...] = ()
    inferred: bool = True  # shape inference did not fail


def find_sites(
    model: Model,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    linear_layers: bool = False,
    transposed: bool = False,
    measured: Measured | None = None,
) -> Sites:
    """Look at every node of every graph and function; reads no weight, except where an expression hides its shape.

    Args:
        model: the model.
        input_shapes: shapes for inputs whose dimensions are free, by input name.
        linear_layers: list Gemm and MatMul nodes too.
        transposed: give the sites of ConvTranspose nodes, and not only their names.
        measured: sizes of tensors that are known from a run (``onnxsep.running.sizes``).

    Raises:
        UnsupportedModelError: the graph cannot be read.
    """
    problems: list[str] = []
    plain = skeleton(model)
    light = infer_shapes(plain, input_shapes, problems, measured)
    wanted = ("Conv", *([_TRANSPOSED] if transposed else []), *(_LINEAR if linear_layers else ()))
    view = View(light, wanted)
    source = scopes(model.proto)
    first = first_convs(light, linear_layers=linear_layers)
    marks = Marks(model.proto, source)
    if marks.unreadable:
        problems.append(
            f"the metadata entry {KEY!r} cannot be read: what onnxsep made before counts as the model's own"
        )
    finder = _Finder(model, source, view, first, marks, _fixed_sizes(model, light, bool(input_shapes or measured)))
    others = {**OTHER_CONVOLUTIONS, **({} if transposed else _NO_TRANSPOSED), **(_QUANTISED if linear_layers else {})}
    found: list[ConvSite | Rejected] = []
    for scope in view.scopes:
        for index, node in enumerate(scope.body.node):
            if not is_standard(node):
                continue
            if node.op_type in others:
                found.append(finder.reject(scope, index, others[node.op_type]))
            elif node.op_type in wanted:
                found.append(finder.site(scope, index))
    found = alike(finder.pinned(found, wanted))
    return Sites(tuple(found), tuple(source), light, marks, tuple(problems), inferred=light is not plain)


class _Finder:
    def __init__(
        self,
        model: Model,
        source: Sequence[Scope],
        view: View,
        first: set[Place],
        marks: Marks,
        fixed: Callable[[], KnownShapes],
    ) -> None:
        self._model, self._source, self._view, self._first = model, source, view, first
        self._marks, self._fixed = marks, fixed
        self._training = set(training_names(model.proto))

    def reject(self, scope: Scope, index: int, reason: str) -> Rejected:
        node = scope.body.node[index]
        return Rejected(display_name(node), node.op_type, scope.where, reason, (scope.index, index))

    def site(self, scope: Scope, index: int) -> ConvSite | Rejected:
        """The site of a Conv, ConvTranspose, Gemm or MatMul node, or why its geometry or weight is not constant."""
        node = scope.body.node[index]
        constant = self._view.constant(scope.index, index, 1)
        if isinstance(constant, str):
            return self.reject(scope, index, self._no_weight(scope, index, constant))
        try:
            shape, dtype = self._weight_type(constant)
        except FactorizationError as error:
            return self.reject(scope, index, str(error))
        if dtype not in FLOAT_TYPES:
            return self.reject(scope, index, f"its weight has the type {type_name(dtype)}")
        geometry = self._geometry(scope, index, shape)
        if isinstance(geometry, str):
            return self.reject(scope, index, geometry)
        conv, transposed = geometry
        if len(node.device_configurations if hasattr(node, "device_configurations") else ()):
            return self.reject(scope, index, "its device configuration (sharding) cannot be carried to the new nodes")
        input_shape = self._view.shape(scope.index, node.input[0])
        return ConvSite(
            name=display_name(node),
            conv=conv,
            dtype=FLOAT_TYPES[dtype],
            input_size=_sizes(input_shape, conv.dims) if conv.dims else _no_sizes(input_shape),
            batch=_batch(input_shape) if conv.dims else _rows(input_shape),
            weight=constant,
            place=(scope.index, index),
            where=scope.where,
            first=(scope.index, index) in self._first,
            bias=self._bias(scope, index) if conv.bias else None,
            made_by=self._marks.of(scope.index, node).get("mode", ""),
            stored=stored_tensor(self._source, constant) is not None,
            op_type=cast(OpType, node.op_type),
            transposed=transposed,
            one_size=_says_its_output(node),
            rectified=is_nonnegative(self._view.index, scope.index, node.input[0]),
            smooth=behind_first(self._view.index, scope.index, node.input[0], self._first),
            input_moments=normalization_before(self._view.index, scope.index, node.input[0]),
            normalization=normalization_behind(self._view, scope.index, node.output[0]),
        )

    def pinned(self, found: Sequence[ConvSite | Rejected], wanted: Sequence[str]) -> list[ConvSite | Rejected]:
        """The same sites with what else uses their weights: everything but the nodes that may be replaced."""
        rejected = {item.place for item in found if isinstance(item, Rejected)}
        return [
            item if isinstance(item, Rejected) else replace(item, pinned=self._pinned(item, wanted, rejected))
            for item in found
        ]

    def _pinned(self, site: ConvSite, wanted: Sequence[str], rejected: AbstractSet[Place]) -> tuple[str, ...]:
        index = self._view.index
        users = [
            _user(index, use)
            for use in index.uses(site.weight.name, site.weight.scope)
            if not self._reads_weight(use, wanted) or use.place in rejected
        ]
        users += self._kept_by(site.weight, site.conv)
        if self._view.scopes[site.place[0]].namespace == 0 and site.weight.name in self._training:
            users.append("the training information")
        return tuple(users)

    def _reads_weight(self, use: Use, wanted: Sequence[str]) -> bool:
        """Whether a node that may be replaced has the tensor as its weight."""
        node = None if use.place is None else self._node(use.place)
        return node is not None and use.position == 1 and is_standard(node) and node.op_type in wanted

    def _no_weight(self, scope: Scope, index: int, reason: str) -> str:
        """Why a node has no constant weight; of a linear one the constant operand must be the second."""
        is_linear = scope.body.node[index].op_type in _LINEAR
        if is_linear and isinstance(self._view.constant(scope.index, index, 0), Constant):
            return "its constant operand is the first one; only a constant second operand can be replaced"
        return reason

    def _geometry(self, scope: Scope, index: int, weight_shape: tuple[int, ...]) -> tuple[Conv, bool] | str:
        """The geometry and whether the weight is stored transposed, or the reason why there is none."""
        node = scope.body.node[index]
        if node.op_type in _LINEAR:
            return linear_geometry(node, weight_shape, self._bias_shape(scope, index))
        shape = self._fixed().of(scope.index, node.input[0]) if _says_its_output(node) else None
        conv = conv_geometry(node, weight_shape, _sizes(shape, len(weight_shape) - 2))
        return conv if isinstance(conv, str) else (conv, conv.transposed)

    def _bias_shape(self, scope: Scope, index: int) -> Shape | None:
        """The shape of a Gemm's C, which a function's body does not tell unless it is a constant."""
        node = scope.body.node[index]
        if node.op_type != "Gemm" or len(node.input) < 3 or not node.input[2]:
            return None
        constant = self._bias(scope, index)
        try:
            return self._view.shape(scope.index, node.input[2]) if constant is None else self._weight_type(constant)[0]
        except FactorizationError:
            return None

    def _bias(self, scope: Scope, index: int) -> Constant | None:
        constant = self._view.constant(scope.index, index, 2)
        return constant if isinstance(constant, Constant) else None

    def _node(self, place: Place) -> onnx.NodeProto:
        return self._view.scopes[place[0]].body.node[place[1]]

    def _kept_by(self, constant: Constant, conv: Conv) -> Iterator[str]:
        """What else uses a tensor as large as the weight that an expression computes the weight from, in words.

        Such a tensor stays in the file although the expression goes. Shapes and scalars are too small to matter.
        """
        for place in constant.nodes:
            for name in self._node(place).input:
                if _elements(self._view.shape(place[0], name)) >= conv.weight_size:
                    uses = self._view.index.uses(name, place[0])
                    yield from (_user(self._view.index, use) for use in uses if use.place not in constant.nodes)

    def _weight_type(self, constant: Constant) -> tuple[tuple[int, ...], int]:
        tensor = stored_tensor(self._source, constant)
        if tensor is not None:
            return tuple(tensor.dims), tensor.data_type
        values = read_constant(self._model, self._source, constant)
        return values.shape, ONNX_TYPES.get(values.dtype.name, onnx.TensorProto.UNDEFINED)


def _says_its_output(node: onnx.NodeProto) -> bool:
    """Whether a ConvTranspose has the size of its output as an attribute."""
    return node.op_type == _TRANSPOSED and any(entry.name == "output_shape" and entry.ints for entry in node.attribute)


def _fixed_sizes(model: Model, light: onnx.ModelProto, given: bool) -> Callable[[], KnownShapes]:
    """The shapes that the model itself tells, without those given for this run; found when they are asked for."""
    return cache(lambda: KnownShapes(scopes(infer_shapes(skeleton(model)) if given else light)))


def _user(index: Index, use: Use) -> str:
    """What uses a tensor, in words."""
    if use.place is None:
        return use.what
    node = index.node(use.place)
    return f"{node.op_type} {display_name(node)!r}"


def _sizes(shape: Shape | None, dims: int) -> tuple[int, ...] | None:
    if shape is None or len(shape) != dims + 2:
        return None
    sizes = tuple(size for size in shape[2:] if isinstance(size, int))
    return sizes if len(sizes) == dims else None


def _no_sizes(shape: Shape | None) -> tuple[int, ...] | None:
    """What a Gemm or MatMul has instead of spatial sizes: (), or None where the number of its rows is not known."""
    known = shape is not None and all(isinstance(size, int) for size in shape[1:-1])
    return () if known else None


def _rows(shape: Shape | None) -> int | None:
    """The rows of a Gemm's or MatMul's input, a free first dimension counted as 1."""
    if shape is None or _no_sizes(shape) is None:
        return None
    return math.prod(size for size in shape[:-1] if isinstance(size, int))


def _elements(shape: Shape | None) -> int:
    """Number of elements; 0 where the shape is not known."""
    return 0 if shape is None else math.prod(size if isinstance(size, int) else 0 for size in shape)


def _batch(shape: Shape | None) -> int | None:
    return shape[0] if shape and isinstance(shape[0], int) else None


def read_weight(model: Model, sites: Sites, site: ConvSite) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weight of a site in double precision, [out_channels, in_channels / group, *kernel_shape].

    It is so for a ConvTranspose, and [out_channels, in_channels] for a Gemm or MatMul, however it is stored.

    Raises:
        FactorizationError: the weight holds NaN or infinity.
    """
    weight = read_constant(model, sites.scopes, site.weight).astype(np.float64)
    if not np.isfinite(weight).all():
        raise FactorizationError("its weight holds NaN or infinity")
    return turned(weight, site.conv.group) if site.transposed else weight
