"""Weights that a model stores as integers, behind DequantizeLinear: layers that compute with them are float layers."""

import onnx

from onnxsep.graph.scopes import constant_value, is_standard, scopes, used_names
from onnxsep.model.io import Model
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions


def float_weights(proto: onnx.ModelProto) -> int:
    """Put initializers in the place of DequantizeLinear nodes of the main graph whose inputs are constants.

    Args:
        proto: The model, which holds all its weights; changed in place.

    Returns:
        How many there were; 0 also where the runtime does not compute them.
    """
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if (value := constant_value(node)) is not None:
            constants[node.output[0]] = value
    found = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and is_standard(node)
        and all(not name or name in constants for name in node.input)
    ]
    if not found:
        return 0
    values = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    values.graph.name = "weights"
    values.graph.node.extend(found)
    for name in dict.fromkeys(name for node in found for name in node.input if name):
        copy = values.graph.initializer.add()
        copy.CopyFrom(constants[name])
        copy.name = name
    for node in found:
        values.graph.output.add(name=node.output[0])
    try:
        weights = Runner(Model(values), RuntimeOptions(threads=1))({})
    except CannotRun:
        return 0
    for node in found:
        graph.node.remove(node)
        graph.initializer.append(onnx.numpy_helper.from_array(weights[node.output[0]], node.output[0]))
    used = {name for scope in scopes(proto) for name in used_names(scope)}
    used.update(entry.name for entry in graph.output)
    for name in {name for node in found for name in node.input} - used:
        if name in constants:
            for tensor in [tensor for tensor in graph.initializer if tensor.name == name]:
                graph.initializer.remove(tensor)
    return len(found)
