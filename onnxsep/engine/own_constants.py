"""Constants that are another one by an Identity, as PyTorch stores equal ones, become constants of their own.

Where channels are taken out of one of them, the others stay as they are.
"""

import onnx

from onnxsep.engine.surgery import INITIALIZERS_ARE_INPUTS, as_input
from onnxsep.graph.scopes import is_standard
from onnxsep.model.io import Model


def with_own_constants(model: Model) -> Model:
    """A copy of a model in which each Identity of an initialiser of the main graph is an initialiser of its name.

    The model itself where there is none.
    """
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    ends = {value.name for value in model.proto.graph.output}
    copies = [
        node
        for node in model.proto.graph.node
        if node.op_type == "Identity" and is_standard(node) and node.input[0] in stored and node.output[0] not in ends
    ]
    if not copies:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for node in copies:
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(stored[node.input[0]])
        tensor.name = node.output[0]
        if proto.ir_version <= INITIALIZERS_ARE_INPUTS:
            proto.graph.input.append(as_input(tensor))
    names = {node.output[0] for node in copies}
    kept = [node for node in proto.graph.node if node.op_type != "Identity" or node.output[0] not in names]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return Model(proto, path=model.path, base_dir=model.base_dir, follow_links=model.follow_links)
