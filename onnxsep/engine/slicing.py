"""Taking channels out of a model, and the source that the result must equal."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.engine.channels import Channels, Cut
from onnxsep.engine.families import Gone
from onnxsep.engine.sites import Sites
from onnxsep.engine.storing import with_values
from onnxsep.graph.constants import read_constant, stored_tensor
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import Scope, scopes
from onnxsep.graph.shapes import stub
from onnxsep.model.io import Model


def take_out(source: Model, sites: Sites, channels: Channels, gone: Gone) -> tuple[Model, tuple[str, ...]]:
    """A copy of the source without some channels: weights, groups and stated shapes change, and nothing else.

    Returns:
        The copy, and the names of changed initialisers that were in a data file.
    """
    values: dict[Constant, NDArray[np.generic]] = {}
    for cut in _affected(channels, gone):
        array = read_constant(source, sites.scopes, cut.constant)
        for axis, ids in cut.axes.items():
            array = np.compress(~gone[ids], array, axis=axis)
        values[cut.constant] = array
    values |= _lengths(source, sites.scopes, channels, gone)
    result, moved = with_values(source, values)
    _restate(result.proto.graph, channels, gone, {constant.name: array.shape for constant, array in values.items()})
    return result, moved


def take_out_sizes(light: onnx.ModelProto, channels: Channels, gone: Gone) -> onnx.ModelProto:
    """The same of a skeleton: shapes alone, no weight is read."""
    result = onnx.ModelProto()
    result.CopyFrom(light)
    found, shapes = scopes(result), dict[str, tuple[int, ...]]()
    for cut in _affected(channels, gone):
        tensor = stored_tensor(found, cut.constant)
        assert tensor is not None, "only stored weights are changed"
        shape = list(tensor.dims)
        for axis, ids in cut.axes.items():
            shape[axis] = int(np.count_nonzero(~gone[ids]))
        tensor.CopyFrom(stub(tensor.name, tensor.data_type, shape))
        shapes[cut.constant.name] = tuple(shape)
    _restate(result.graph, channels, gone, shapes)
    lengths = dict(_lengths(Model(light), found, channels, gone))
    return with_values(Model(result), lengths)[0].proto if lengths else result


def _restate(graph: onnx.GraphProto, channels: Channels, gone: Gone, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Groups of depthwise Convs, and the shapes that a graph states."""
    for (_, index), ids in channels.depthwise.items():
        for attribute in graph.node[index].attribute:
            if attribute.name == "group":
                attribute.i = int(np.count_nonzero(~gone[ids]))
    for value in (*graph.value_info, *graph.input):  # weights are inputs too, up to IR version 3
        dims = value.type.tensor_type.shape.dim
        track = channels.tracks.get(value.name)
        if value.name in shapes and len(dims) == len(shapes[value.name]):
            for dim, size in zip(dims, shapes[value.name], strict=True):
                dim.dim_value = size
        elif track is not None and len(dims) > 1 and gone[track.ids].any():
            dims[1].dim_value = int(np.count_nonzero(~gone[track.ids]))


def mask_readers(source: Model, sites: Sites, channels: Channels, gone: Gone) -> Model:
    """A copy of the source in which nobody reads these channels: what would read them is zero."""
    values: dict[Constant, NDArray[np.generic]] = {}
    for cut in _affected(channels, gone):
        if cut.reads is not None and gone[cut.axes[cut.reads]].any():
            array = read_constant(source, sites.scopes, cut.constant).copy()
            np.moveaxis(array, cut.reads, 0)[gone[cut.axes[cut.reads]]] = 0
            values[cut.constant] = array
    return with_values(source, values)[0]


def _affected(channels: Channels, gone: Gone) -> Iterator[Cut]:
    """One use of each constant that loses something; all uses of a constant agree."""
    seen = set[Constant]()
    for cut in channels.cuts:
        if cut.constant not in seen and any(gone[ids].any() for ids in cut.axes.values()):
            seen.add(cut.constant)
            yield cut


def _lengths(
    source: Model, found: Sequence[Scope], channels: Channels, gone: Gone
) -> Iterator[tuple[Constant, NDArray[np.generic]]]:
    """Shapes of Reshapes that say how many entries there are, and what they are when some have gone."""
    for constant, ids in channels.lengths.items():
        if gone[ids].any():
            shape = read_constant(source, found, constant).copy()
            shape[1] = np.count_nonzero(~gone[ids])
            yield constant, shape
