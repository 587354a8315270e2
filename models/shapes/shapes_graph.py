"""A small U-Net for images of shapes as an ONNX graph, written node by node: no exporter, no torch.

O. Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation (2015), with three levels,
strided Convs in the place of pools, padding, and a ConvTranspose of 4 x 4 where a level is left.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
SIZE = 32
CLASSES = 4


class Layer(NamedTuple):
    """A Conv, or a ConvTranspose of stride 2 which doubles the size, with a Relu behind it.

    Attributes:
        name: Name of the node.
        in_channels: Channels that it reads.
        out_channels: Channels that it gives.
        stride: Of a Conv of 3 x 3, in both directions.
        transposed: Whether it is a ConvTranspose, of 4 x 4.
        beside: Name of the layer whose output is put beside the input, along the channels.
    """

    name: str
    in_channels: int
    out_channels: int
    stride: int = 1
    transposed: bool = False
    beside: str | None = None

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """As the operator wants it."""
        if self.transposed:
            return self.in_channels, self.out_channels, 4, 4
        return self.out_channels, self.in_channels, 3, 3


LAYERS = (
    Layer("fine_conv1", 3, 12),
    Layer("fine_conv2", 12, 12),
    Layer("middle_conv1", 12, 24, stride=2),
    Layer("middle_conv2", 24, 24),
    Layer("coarse_conv1", 24, 32, stride=2),
    Layer("coarse_conv2", 32, 32),
    Layer("up1", 32, 24, transposed=True),
    Layer("middle_conv3", 48, 24, beside="middle_conv2"),
    Layer("middle_conv4", 24, 24),
    Layer("up2", 24, 12, transposed=True),
    Layer("fine_conv3", 24, 12, beside="fine_conv2"),
    Layer("fine_conv4", 12, 12),
)
HEAD = "scores_conv"
FEATURES = LAYERS[-1].out_channels

Weights = Mapping[str, npt.NDArray[np.float32]]


def build(weights: Weights, *, metadata: Mapping[str, str], doc_string: str = "") -> onnx.ModelProto:
    """Write the network as ONNX.

    Args:
        weights: ``<layer>.weight`` and ``<layer>.bias`` of each of LAYERS and of HEAD [4, 12, 1, 1].
        metadata: Stored as the metadata_props of the model.
        doc_string: Stored as the doc_string of the model.

    Returns:
        A model with the input ``image`` [batch, 3, 32, 32] and the output ``scores`` [batch, 4, 32, 32].

    Raises:
        KeyError: A weight is missing.
        ValueError: A weight has the wrong shape.
    """
    initializers: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def tensors(name: str, shape: tuple[int, ...], channels: int) -> list[str]:
        for part, wanted in (("weight", shape), ("bias", (channels,))):
            array = weights[f"{name}.{part}"]
            if array.shape != wanted:
                raise ValueError(f"{name}.{part} has the shape {array.shape}; it needs {wanted}")
            initializers.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.{part}"))
        return [f"{name}.weight", f"{name}.bias"]

    def node(op_type: str, name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    x = "image"
    outputs: dict[str, str] = {}
    for layer in LAYERS:
        name, shape = layer.name, layer.weight_shape
        if layer.beside:
            x = node("Concat", f"{name}_concat", [x, outputs[layer.beside]], f"{name}_in", axis=1)
        stride = 2 if layer.transposed else layer.stride
        where = {"kernel_shape": list(shape[2:]), "pads": [1, 1, 1, 1], "strides": [stride, stride]}
        inputs = [x, *tensors(name, shape, layer.out_channels)]
        x = node("ConvTranspose" if layer.transposed else "Conv", name, inputs, f"{name}_out", **where)
        x = outputs[name] = node("Relu", f"{name}_relu", [x], f"{name}_relu_out")
    head = [x, *tensors(HEAD, (CLASSES, FEATURES, 1, 1), CLASSES)]
    node("Conv", HEAD, head, "scores", kernel_shape=[1, 1])

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES, SIZE, SIZE])
    model = helper.make_model(
        helper.make_graph(nodes, "shapes_unet", [image], [scores], initializer=initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/shapes/train_shapes.py",
        doc_string=doc_string,
    )
    helper.set_model_props(model, dict(metadata))
    return model
