"""Random weights in the place of those that a rewrite made, of the size that the old outputs had."""

from collections.abc import Container, Mapping
from dataclasses import replace

import numpy as np
import onnx
from cifar import Floats
from onnx import numpy_helper

from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions


def redrawn(source: Model, result: Model, images: Floats | None, seed: int) -> Model:
    """The result with new Convs drawn: normal with the variance 2 / inputs (K. He et al. 2015), biases 0.

    With images, from the front to the back, the last new Convs before a tensor that both models have are then scaled so
    that it spreads as it does in the source, for otherwise sums over blocks grow (D. Mishkin and J. Matas 2016).
    """
    rng, proto = np.random.default_rng(seed), onnx.ModelProto()
    proto.CopyFrom(result.proto)
    known = {tensor.name for tensor in source.proto.graph.initializer}
    stored = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name not in known}
    for node in proto.graph.node:
        own = [stored[name] for name in node.input[1:] if name in stored] if node.op_type == "Conv" else []
        for tensor in own:
            shape = tuple(tensor.dims)
            deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.0
            _store(tensor, rng.normal(0, deviation, shape))
    drawn = replace(result, proto=proto, path=None, pristine=False, stored=None)
    if images is None:
        return drawn
    shared = {name for node in source.proto.graph.node for name in node.output}
    makers = {name: node for node in proto.graph.node for name in node.output}
    for node in list(proto.graph.node):
        if node.output[0] in shared and (last := _last_convs(node, makers, shared, set(stored))):
            wanted, found = (_spread(model, node.output[0], images) for model in (source, drawn))
            for conv in last:
                _store(stored[conv.input[1]], numpy_helper.to_array(stored[conv.input[1]]) * wanted / max(found, 1e-9))
    return drawn


def _last_convs(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], shared: Container[str], stored: Container[str]
) -> list[onnx.NodeProto]:
    """The first new Convs on each way back from a node, without those that read another of them."""

    def before(current: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [makers[name] for name in current.input if name in makers and name not in shared]

    def back(current: onnx.NodeProto) -> list[onnx.NodeProto]:
        if current.op_type == "Conv":
            return [current] if current.input[1] in stored else []
        return [conv for one in before(current) for conv in back(one)]

    def reads(current: onnx.NodeProto) -> bool:
        return any(one in found or reads(one) for one in before(current))

    found = back(node)
    return [conv for conv in found if not reads(conv)]


def _store(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _spread(model: Model, name: str, images: Floats) -> float:
    """The root mean square deviation of a tensor from its mean over images and positions."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    watched = replace(model, proto=proto, path=None, pristine=False, stored=None)
    (values,) = Runner(watched, RuntimeOptions())({proto.graph.input[0].name: images}).values()
    axes = (0, *range(2, values.ndim))
    return float(np.sqrt(np.square(values - values.mean(axis=axes, keepdims=True)).mean()))
