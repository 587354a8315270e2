"""ResNet-20 for CIFAR-10 as an ONNX graph, written node by node: no exporter, no torch.

The network of K. He et al., Deep Residual Learning for Image Recognition (2015), section 4.2, with n = 3: nineteen 3x3
Convs in three stages of 16, 32 and 64 channels. Where a stage begins, the shortcut is a 1x1 Conv of stride 2.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
CLASSES = 10
WIDTHS = (16, 32, 64)
BLOCKS = 3  # of each stage


class ConvLayer(NamedTuple):
    """A Conv of a square kernel, padded so that stride 1 keeps the size.

    Attributes:
        name: Name of the node.
        in_channels: Channels that it reads.
        out_channels: Channels that it gives.
        kernel: Height and width of the kernel.
        stride: Stride in both directions.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1


class Block(NamedTuple):
    """Two Convs with a Relu behind the first, added to a shortcut, and a Relu behind the sum.

    Attributes:
        name: Start of the names of its nodes.
        first: The Conv that reads the block's input.
        second: The Conv behind it.
        shortcut: The Conv beside them, or None where the input is added as it is.
    """

    name: str
    first: ConvLayer
    second: ConvLayer
    shortcut: ConvLayer | None


STEM = ConvLayer("stem_conv", 3, WIDTHS[0])


def _blocks() -> tuple[Block, ...]:
    blocks = []
    channels = STEM.out_channels
    for stage, width in enumerate(WIDTHS, 1):
        for number in range(1, BLOCKS + 1):
            name = f"stage{stage}_block{number}"
            stride = 2 if stage > 1 and number == 1 else 1
            blocks.append(
                Block(
                    name,
                    ConvLayer(f"{name}_conv1", channels, width, stride=stride),
                    ConvLayer(f"{name}_conv2", width, width),
                    None if stride == 1 else ConvLayer(f"{name}_shortcut", channels, width, 1, stride),
                )
            )
            channels = width
    return tuple(blocks)


BLOCK_LIST = _blocks()
CONVS = (STEM, *(conv for block in BLOCK_LIST for conv in block[1:] if isinstance(conv, ConvLayer)))
FEATURES = WIDTHS[-1]

Weights = Mapping[str, npt.NDArray[np.float32]]


def build(weights: Weights, *, metadata: Mapping[str, str], doc_string: str = "") -> onnx.ModelProto:
    """Build the model.

    Args:
        weights: `NAME.weight` [out, in, k, k] and `NAME.bias` [out] of each Conv, `classifier.weight` [10, 64] and
            `classifier.bias` [10].
        metadata: The model's metadata.
        doc_string: What the model is.

    Returns:
        A model with the input `image` [batch, 3, 32, 32] and the output `logits` [batch, 10].

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

    def node(op_type: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = "logits" if name == "classifier" else f"{name}_out"
        nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def conv(layer: ConvLayer, x: str) -> str:
        size = [layer.kernel, layer.kernel]
        shape = (layer.out_channels, layer.in_channels, *size)
        inputs = [x, weight(f"{layer.name}.weight", shape), weight(f"{layer.name}.bias", shape[:1])]
        pads, strides = [layer.kernel // 2] * 4, [layer.stride] * 2
        return node("Conv", layer.name, inputs, group=1, kernel_shape=size, pads=pads, strides=strides)

    x = node("Relu", "stem_relu", [conv(STEM, "image")])
    for block in BLOCK_LIST:
        inner = node("Relu", f"{block.name}_relu1", [conv(block.first, x)])
        shortcut = conv(block.shortcut, x) if block.shortcut else x
        x = node("Add", f"{block.name}_add", [conv(block.second, inner), shortcut])
        x = node("Relu", f"{block.name}_relu2", [x])
    x = node("Flatten", "flatten", [node("GlobalAveragePool", "pool", [x])], axis=1)
    dense = [weight("classifier.weight", (CLASSES, FEATURES)), weight("classifier.bias", (CLASSES,))]
    node("Gemm", "classifier", [x, *dense], transB=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "cifar10_resnet20", [image], [logits], initializer=initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/cifar/train_cifar.py",
        doc_string=doc_string,
    )
    helper.set_model_props(model, dict(metadata))
    return model
