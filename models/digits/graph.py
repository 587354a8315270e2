"""The digits network as an ONNX graph, written node by node: no exporter, no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
CLASSES = 10


class ConvLayer(NamedTuple):
    """A 3x3 Conv with padding 1, followed by a Relu.

    Attributes:
        name: Name of the node.
        in_channels: Channels that it reads.
        out_channels: Channels that it gives.
        stride: Stride in both directions.
        skip_from: Name of the layer whose output is added before the Relu, or None.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int = 1
    skip_from: str | None = None


LAYERS = (
    ConvLayer("stem_conv", 1, 32),
    ConvLayer("block1_conv1", 32, 32),
    ConvLayer("block1_conv2", 32, 32, skip_from="stem_conv"),
    ConvLayer("down_conv", 32, 64, stride=2),
    ConvLayer("block2_conv1", 64, 64),
    ConvLayer("block2_conv2", 64, 64, skip_from="down_conv"),
    ConvLayer("head_conv", 64, 128),
)
FEATURES = LAYERS[-1].out_channels

Weights = Mapping[str, npt.NDArray[np.float32]]


def build(weights: Weights, *, metadata: Mapping[str, str], doc_string: str) -> onnx.ModelProto:
    """Write the network as ONNX.

    Args:
        weights: ``<layer>.weight`` [out_channels, in_channels, 3, 3] and ``<layer>.bias`` [out_channels] of each of
            LAYERS; ``classifier.weight`` [10, 128] and ``classifier.bias`` [10].
        metadata: Stored as the metadata_props of the model.
        doc_string: Stored as the doc_string of the model.

    Returns:
        A model with the input ``image`` [batch, 1, 8, 8], from 0 to 1, and the output ``logits`` [batch, 10].

    Raises:
        KeyError: A weight is missing.
        ValueError: A weight has the wrong shape.
    """
    initializers: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, shape: tuple[int, ...]) -> str:
        if weights[name].shape != shape:
            raise ValueError(f"weight {name} has the shape {weights[name].shape}; it needs {shape}")
        initializers.append(numpy_helper.from_array(weights[name].astype(np.float32), name))
        return name

    def node(op_type: str, name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    x = "image"
    outputs: dict[str, str] = {}
    for layer in LAYERS:
        x = node(
            "Conv",
            layer.name,
            [
                x,
                weight(f"{layer.name}.weight", (layer.out_channels, layer.in_channels, 3, 3)),
                weight(f"{layer.name}.bias", (layer.out_channels,)),
            ],
            f"{layer.name}_out",
            dilations=[1, 1],
            group=1,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[layer.stride, layer.stride],
        )
        if layer.skip_from:
            name = layer.name.replace("_conv2", "_add")
            x = node("Add", name, [x, outputs[layer.skip_from]], f"{name}_out")
        name = layer.name.replace("_conv", "_relu")
        x = outputs[layer.name] = node("Relu", name, [x], f"{name}_out")
    x = node("GlobalAveragePool", "pool", [x], "pool_out")
    x = node("Flatten", "flatten", [x], "flatten_out", axis=1)
    dense = [weight("classifier.weight", (CLASSES, FEATURES)), weight("classifier.bias", (CLASSES,))]
    node("Gemm", "classifier", [x, *dense], "logits", transB=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    proto = helper.make_graph(nodes, "digits_cnn", [image], [logits], initializer=initializers)
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/digits/train.py",
        doc_string=doc_string,
    )
    helper.set_model_props(model, dict(metadata))
    return model
