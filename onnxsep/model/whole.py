"""A model with all of its weights in it."""

import onnx

from onnxsep.model.external import is_external
from onnxsep.model.io import Model
from onnxsep.model.tensors import tensor_protos


def inlined(model: Model) -> Model:
    """A copy of a model for a machine that does not have its files.

    Raises:
        ModelLoadError: Weights cannot be read.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in tensor_protos(proto):
        if is_external(tensor):
            tensor.raw_data = bytes(model.data_folder().read(tensor))
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    return Model(proto)
