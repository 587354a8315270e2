"""Models in which every node says for itself how onnxsep made it."""

import onnx

from onnxsep.graph.marks import onto_nodes


def marked(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes say in their own metadata what the model's say of them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    onto_nodes(copy)
    return copy
