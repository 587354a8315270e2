"""Build ResNet50V2 as an ONNX model with seeded weights; nothing is downloaded.

The layers, their order and their names are those of ``keras.applications.ResNet50V2`` (include_top, one class per
output). With 10 classes that is the network of "Structural Compression of ResNet-like Convolutional Neural Networks
using Separable Convolutions" (Kastanos): 23,585,290 parameters, the four vectors of each BatchNormalization counted.

The weights are random, so the answers mean nothing. Counts, file sizes, timings and numeric checks do.

    python models/resnet50v2.py resnet50v2.onnx --image-size 224 --seed 0
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]


class Stage(NamedTuple):
    """A stack of residual blocks.

    Attributes:
        name: Prefix of the layer names, such as ``conv2``.
        filters: Channels of the bottleneck; the stage gives 4 times as many.
        blocks: Number of blocks.
        last_stride: Stride of the last block. Keras strides in the last block of a stage, not in the first one.
    """

    name: str
    filters: int
    blocks: int
    last_stride: int


STAGES = (Stage("conv2", 64, 3, 2), Stage("conv3", 128, 4, 2), Stage("conv4", 256, 6, 2), Stage("conv5", 512, 3, 1))
EPSILON = 1.001e-5  # of every BatchNormalization in Keras' ResNets
OPSET = 17
IR_VERSION = 8
MIN_IMAGE_SIZE = 32  # Keras refuses smaller images
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.float64))


class _Graph:
    """Nodes and weights in the making. Every method adds one layer and returns the name of its output tensor.

    The output of a node has the name of the node, which is the name of the Keras layer.
    """

    def __init__(self, seed: int, dtype: np.dtype[Any]) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op_type: str, name: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        output = output or name
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def weight(self, name: str, values: Array) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(self.dtype, copy=False), name))
        return name

    def normal(self, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Array:
        """Draw normal values, always in float32, so that models of other types hold the same weights, rounded."""
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(std)
        if mean:
            values += np.float32(mean)
        return values

    def conv(self, name: str, x: str, shape: tuple[int, int, int], *, stride: int = 1, bias: bool = True) -> str:
        """Add a square Conv with He-normal weights; shape is (in_channels, out_channels, kernel size)."""
        in_channels, out_channels, kernel = shape
        # Keras pads in a layer of its own (ZeroPadding2D) before each strided or 3x3 Conv. A Conv pads with zeros, too,
        # so the two are one node here.
        pad = kernel // 2
        std = math.sqrt(2.0 / (in_channels * kernel * kernel))
        inputs = [x, self.weight(f"{name}.weight", self.normal((out_channels, in_channels, kernel, kernel), std))]
        if bias:
            inputs.append(self.weight(f"{name}.bias", self.normal((out_channels,), 0.02)))
        return self.node(
            "Conv",
            name,
            inputs,
            dilations=[1, 1],
            group=1,
            kernel_shape=[kernel, kernel],
            pads=[pad] * 4,
            strides=[stride, stride],
        )

    def batch_norm_relu(self, name: str, x: str, channels: int, mean_square: float = 1.0) -> str:
        """Add ``<name>_bn`` and ``<name>_relu``; mean_square is what the values of x have (see _residual_block)."""
        inputs = [
            x,
            self.weight(f"{name}_bn.gamma", self.normal((channels,), 0.1, mean=1.0)),
            self.weight(f"{name}_bn.beta", self.normal((channels,), 0.1)),
            self.weight(f"{name}_bn.mean", self.normal((channels,), 0.1)),
            # The exponential keeps every variance above zero.
            self.weight(f"{name}_bn.variance", np.exp(self.normal((channels,), 0.1)) * np.float32(mean_square)),
        ]
        normalised = self.node("BatchNormalization", f"{name}_bn", inputs, epsilon=EPSILON)
        return self.node("Relu", f"{name}_relu", [normalised])


def _residual_block(
    graph: _Graph, name: str, x: str, in_channels: int, filters: int, *, stride: int, first: bool, mean_square: float
) -> str:
    """Add one pre-activation bottleneck block (Keras: residual_block_v2).

    Args:
        graph: Where the layers go.
        name: Prefix of the layer names, such as ``conv2_block1``.
        x: Input tensor, [batch, in_channels, height, width].
        in_channels: Channels of x.
        filters: Channels of the bottleneck.
        stride: Stride of the 3x3 Conv and of the shortcut.
        first: Whether this is the first block of its stage, whose shortcut is a Conv.
        mean_square: About the mean square that the values of x have in a network with He-normal weights. The running
            variance of the pre-activation is set to it, so that the values do not grow from block to block.

    Returns:
        The output tensor, [batch, 4 * filters, ceil(height / stride), ceil(width / stride)].
    """
    preact = graph.batch_norm_relu(f"{name}_preact", x, in_channels, mean_square)
    if first:
        shortcut = graph.conv(f"{name}_0_conv", preact, (in_channels, 4 * filters, 1), stride=stride)
    elif stride > 1:
        # Keras gives this layer no name of its own.
        shortcut = graph.node("MaxPool", f"{name}_0_pool", [x], kernel_shape=[1, 1], strides=[stride, stride])
    else:
        shortcut = x
    y = graph.conv(f"{name}_1_conv", preact, (in_channels, filters, 1), bias=False)
    y = graph.batch_norm_relu(f"{name}_1", y, filters)
    y = graph.conv(f"{name}_2_conv", y, (filters, filters, 3), stride=stride, bias=False)
    y = graph.batch_norm_relu(f"{name}_2", y, filters)
    y = graph.conv(f"{name}_3_conv", y, (filters, 4 * filters, 1))
    return graph.node("Add", f"{name}_out", [shortcut, y])


def build(
    seed: int = 0,
    image_size: int = 224,
    classes: int = 10,
    batch: int | str = 1,
    dtype: npt.DTypeLike = np.float32,
    *,
    softmax: bool = True,
) -> onnx.ModelProto:
    """Build the model in memory.

    Args:
        seed: Seed of the weights; the same seed gives the same bytes.
        image_size: Height and width of the input in pixels, at least 32.
        classes: Number of outputs, at least 1.
        batch: Images per run, at least 1, or the name of a free dimension.
        dtype: Type of the weights, the input and the output: float32, float16 or float64.
        softmax: Whether the output is ``predictions``, which sum to 1, or the ``logits`` before the softmax.

    Returns:
        A model (opset 17, IR version 8) with the input ``image`` [batch, 3, image_size, image_size] and one output
        [batch, classes].

    Raises:
        ValueError: An argument is out of its range.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}; ResNet50V2 needs at least {MIN_IMAGE_SIZE}")
    if classes < 1:
        raise ValueError(f"classes is {classes}; give at least 1")
    if not batch or (isinstance(batch, int) and batch < 1):
        raise ValueError(f"batch is {batch!r}; give a number of at least 1, or a name for a free dimension")
    if np.dtype(dtype) not in DTYPES:
        raise ValueError(f"dtype is {np.dtype(dtype)}; use one of {', '.join(map(str, DTYPES))}")

    graph = _Graph(seed, np.dtype(dtype))
    x = graph.conv("conv1_conv", "image", (3, 64, 7), stride=2)
    # Nothing rectifies the values before this pool, so the zeros of the padding can be the largest ones of their
    # window. A MaxPool of ONNX pads with minus infinity: here the padding has to be a node. Its amounts come from a
    # Constant node, so that the initialisers are the parameters and nothing else.
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pool1_pad.pads")
    amounts = graph.node("Constant", "pool1_pad.pads", [], value=pads)
    x = graph.node("Pad", "pool1_pad", [x, amounts], mode="constant")
    x = graph.node("MaxPool", "pool1_pool", [x], kernel_shape=[3, 3], strides=[2, 2])

    channels, mean_square = 64, 5.0  # the largest of nine values of variance 2
    for stage in STAGES:
        for index in range(1, stage.blocks + 1):
            first = index == 1
            stride = stage.last_stride if index == stage.blocks else 1
            name = f"{stage.name}_block{index}"
            x = _residual_block(
                graph, name, x, channels, stage.filters, stride=stride, first=first, mean_square=mean_square
            )
            channels = 4 * stage.filters
            # The branch adds about 1 to the shortcut; the Conv in the shortcut of a first block starts anew at 1.
            mean_square = 2.0 if first else mean_square + 1.0
    x = graph.batch_norm_relu("post", x, channels, mean_square)
    x = graph.node("GlobalAveragePool", "avg_pool", [x])
    x = graph.node("Flatten", "flatten", [x], axis=1)
    dense = graph.weight("predictions.weight", graph.normal((classes, channels), math.sqrt(2.0 / channels)))
    bias = graph.weight("predictions.bias", graph.normal((classes,), 0.02))
    x = graph.node("Gemm", "predictions", [x, dense, bias], output="logits", transB=1)
    if softmax:
        x = graph.node("Softmax", "predictions_softmax", [x], output="predictions", axis=1)

    element = helper.np_dtype_to_tensor_dtype(graph.dtype)
    proto = helper.make_graph(
        graph.nodes,
        "resnet50v2",
        [helper.make_tensor_value_info("image", element, [batch, 3, image_size, image_size])],
        [helper.make_tensor_value_info(x, element, [batch, classes])],
        initializer=graph.weights,
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/resnet50v2.py",
        doc_string=f"Keras ResNet50V2 with random weights (seed {seed}); for counts and numeric checks only.",
    )


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write ResNet50V2 with seeded random weights as ONNX.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--image-size", type=int, default=224, metavar="N", help="height and width, default 224")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights, default 0")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of outputs, default 10")
    parser.add_argument("--batch", default="1", metavar="N|NAME", help="batch size, or a name for a free one")
    parser.add_argument("--dtype", default="float32", choices=[str(dtype) for dtype in DTYPES])
    parser.add_argument("--logits", action="store_true", help="leave out the softmax")
    args = parser.parse_args()
    batch = int(args.batch) if args.batch.lstrip("-").isdigit() else args.batch
    try:
        model = build(args.seed, args.image_size, args.classes, batch, args.dtype, softmax=not args.logits)
    except ValueError as error:
        parser.error(str(error))
    try:
        onnx.save(model, args.out)
    except OSError as error:
        parser.exit(1, f"cannot write {args.out}: {error.strerror}\n")
    parameters = sum(math.prod(weight.dims) for weight in model.graph.initializer)
    print(f"{args.out}: {parameters:,} parameters, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
