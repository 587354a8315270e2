"""New values in the place of stored weights: in initialisers and Constant nodes, wherever in the model they stand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.graph.constants import stored_tensor
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import Scope, hold_tensor, scopes
from onnxsep.model.external import is_external
from onnxsep.model.io import Model
from onnxsep.model.tensors import DATA_FIELDS


def with_values(model: Model, values: Mapping[Constant, NDArray[np.generic]]) -> tuple[Model, tuple[str, ...]]:
    """A copy of the model in which some stored weights have new values; all else is as it was, byte for byte.

    Args:
        model: the source; it is not changed.
        values: by weight, in the stored type; another shape becomes the tensor's shape.

    Returns:
        The copy, and the names of its new initialisers of the main graph that were in a data file, where
        ``onnxsep.save`` puts them again.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    found, moved = scopes(proto), []
    for constant, array in values.items():
        if constant.nodes:
            scope, index = constant.nodes[-1]
            hold_tensor(found[scope].body.node[index])
        tensor = _tensor(found, constant)
        if is_external(tensor) and not constant.nodes and constant.scope == 0:
            moved.append(constant.name)
        set_values(tensor, array)
    copy = Model(proto, path=model.path, base_dir=model.base_dir, follow_links=model.follow_links)
    return copy, tuple(moved)


def _tensor(found: Sequence[Scope], constant: Constant) -> onnx.TensorProto:
    tensor = stored_tensor(found, constant)
    assert tensor is not None, "only stored weights are changed"
    return tensor


def set_values(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    """Put an array into a tensor of the same type; its name, doc string and metadata stay."""
    if is_external(tensor):
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    for data in DATA_FIELDS:
        tensor.ClearField(data)
    del tensor.dims[:]
    tensor.dims.extend(array.shape)
    little = array.dtype.newbyteorder("<") if array.dtype.isbuiltin == 1 else array.dtype
    tensor.raw_data = np.ascontiguousarray(array, little).tobytes()
