"""Build the two baselines of paper 004 (G. Sobolewski et al.) as ONNX models with seeded weights, without a download.

- ``resnet101``: torchvision's ResNet-101 (K. He et al., 2015, table 1; the 3 x 3 Conv of a bottleneck strides) for 32 x
  32 pixels: the first Conv is 3 x 3 with stride 1, there is no max pool, 100 classes. 42,697,380 trainable parameters.
- ``vgg19``: VGG-19 with BatchNormalization (K. Simonyan and A. Zisserman, 2014, column E) for 32 x 32 pixels: biases in
  its Convs, five max pools, a classifier 512 - 4096 - 4096 - 10. 38,958,922 trainable parameters.

``--width 0.25`` makes narrow twins, for tests. Names are those that torchvision's exports have. The weights are random,
so the answers mean nothing. Counts, file sizes, timings and numeric checks do.

    python models/sobolewski.py resnet101.onnx --network resnet101
    python models/sobolewski.py vgg19.onnx --network vgg19
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

STAGES = (
    (64, 3),
    (128, 4),
    (256, 23),
    (512, 3),
)  # channels of the bottlenecks and their number; each gives 4 times them
VGG = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and number of the Convs before each pool
CLASSES = {"resnet101": 100, "vgg19": 10}
IMAGE_SIZE = 32
OPSET, IR_VERSION = 17, 8


class _Graph:
    """Nodes and weights in the making. Every method adds a layer and returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def _weight(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> str:
        values = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(std) + np.float32(mean)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, name: str, x: str, channels: tuple[int, int], kernel: int, *, stride: int = 1, bias: bool) -> str:
        """A square Conv with He-normal weights; channels are those in and out."""
        std = math.sqrt(2 / (channels[0] * kernel * kernel))
        inputs = [x, self._weight(f"{name}.weight", (channels[1], channels[0], kernel, kernel), std)]
        if bias:
            inputs.append(self._weight(f"{name}.bias", (channels[1],), 0.02))
        pads, kernels = [kernel // 2] * 4, [kernel] * 2
        return self.node("Conv", name, *inputs, kernel_shape=kernels, pads=pads, strides=[stride] * 2)

    def batch_norm(self, name: str, x: str, channels: int, gamma: float = 1.0) -> str:
        """A BatchNormalization; before it, values of a He-normal Conv behind a Relu have a variance of about 1."""
        parts = (("weight", 0.1, gamma), ("bias", 0.1, 0.0), ("running_mean", 0.1, 0.0), ("running_var", 0.1, 1.0))
        return self.node(
            "BatchNormalization",
            name,
            x,
            *(self._weight(f"{name}.{part}", (channels,), std, mean) for part, std, mean in parts),
            epsilon=1e-5,
        )

    def relu(self, name: str, x: str) -> str:
        return self.node("Relu", name, x)

    def linear(self, name: str, x: str, sizes: tuple[int, int]) -> str:
        weight = self._weight(f"{name}.weight", (sizes[1], sizes[0]), math.sqrt(2 / sizes[0]))
        return self.node("Gemm", name, x, weight, self._weight(f"{name}.bias", (sizes[1],), 0.02), transB=1)


def build(network: str, seed: int = 0, *, width: float = 1.0, batch: int | str = "batch") -> onnx.ModelProto:
    """Build a baseline in memory.

    Args:
        network: resnet101 or vgg19.
        seed: Seed of the weights; the same seed gives the same bytes.
        width: All channels but those of the input and the classes are this share of the paper's, 8 at least.
        batch: Images per run, or the name of a free dimension.

    Returns:
        A model (opset 17) with the input ``image`` [batch, 3, 32, 32] and the output ``logits`` [batch, classes].

    Raises:
        ValueError: There is no such network, or the width is not above 0.
    """
    if network not in CLASSES:
        raise ValueError(f"the network {network!r} is none of {', '.join(CLASSES)}")
    if not width > 0:
        raise ValueError(f"width is {width}; give a share above 0")
    graph = _Graph(seed)
    x = (_resnet101 if network == "resnet101" else _vgg19)(graph, width)
    graph.nodes[-1].output[0] = "logits"
    assert x == f"{graph.nodes[-1].name}_out"
    float32 = onnx.TensorProto.FLOAT
    proto = helper.make_graph(
        graph.nodes,
        network,
        [helper.make_tensor_value_info("image", float32, [batch, 3, IMAGE_SIZE, IMAGE_SIZE])],
        [helper.make_tensor_value_info("logits", float32, [batch, CLASSES[network]])],
        initializer=graph.weights,
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/sobolewski.py",
        doc_string=f"{network} with random weights (seed {seed}); for counts and numeric checks only.",
    )


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width))


def _resnet101(graph: _Graph, width: float) -> str:
    before = _scaled(64, width)
    x = graph.conv("conv1", "image", (3, before), 3, bias=False)
    x = graph.relu("relu", graph.batch_norm("bn1", x, before))
    for stage, (channels, blocks) in enumerate(STAGES, 1):
        inner = _scaled(channels, width)
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _bottleneck(graph, f"layer{stage}.{block}", x, (before, inner), stride)
            before = 4 * inner
    x = graph.node("Flatten", "flatten", graph.node("GlobalAveragePool", "avgpool", x), axis=1)
    return graph.linear("fc", x, (before, CLASSES["resnet101"]))


def _bottleneck(graph: _Graph, name: str, x: str, channels: tuple[int, int], stride: int) -> str:
    before, inner = channels
    y = graph.conv(f"{name}.conv1", x, (before, inner), 1, bias=False)
    y = graph.relu(f"{name}.relu1", graph.batch_norm(f"{name}.bn1", y, inner))
    y = graph.conv(f"{name}.conv2", y, (inner, inner), 3, stride=stride, bias=False)
    y = graph.relu(f"{name}.relu2", graph.batch_norm(f"{name}.bn2", y, inner))
    y = graph.conv(f"{name}.conv3", y, (inner, 4 * inner), 1, bias=False)
    y = graph.batch_norm(f"{name}.bn3", y, 4 * inner, gamma=0.3)  # or 33 additions would let the values grow
    if stride > 1 or before != 4 * inner:
        x = graph.conv(f"{name}.downsample.0", x, (before, 4 * inner), 1, stride=stride, bias=False)
        x = graph.batch_norm(f"{name}.downsample.1", x, 4 * inner)
    return graph.relu(f"{name}.relu3", graph.node("Add", f"{name}.add", y, x))


def _vgg19(graph: _Graph, width: float) -> str:
    x, before, place = "image", 3, 0
    for channels, convs in VGG:
        for _ in range(convs):
            after = _scaled(channels, width)
            x = graph.conv(f"features.{place}", x, (before, after), 3, bias=True)
            x = graph.relu(f"features.{place + 2}", graph.batch_norm(f"features.{place + 1}", x, after))
            before, place = after, place + 3
        x = graph.node("MaxPool", f"features.{place}", x, kernel_shape=[2, 2], strides=[2, 2])
        place += 1
    x = graph.node("Flatten", "flatten", x, axis=1)
    hidden = _scaled(4096, width)
    x = graph.relu("classifier.1", graph.linear("classifier.0", x, (before, hidden)))
    x = graph.relu("classifier.4", graph.linear("classifier.3", x, (hidden, hidden)))
    return graph.linear("classifier.6", x, (hidden, CLASSES["vgg19"]))


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a baseline of paper 004 with seeded random weights as ONNX.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--network", required=True, choices=list(CLASSES))
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights, default 0")
    parser.add_argument("--width", type=float, default=1.0, metavar="SHARE", help="share of the channels, default 1")
    args = parser.parse_args()
    try:
        model = build(args.network, args.seed, width=args.width)
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
