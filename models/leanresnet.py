"""Build the residual networks of "LeanResNet" (Ephrath, Ruthotto, Haber, Treister) as ONNX models with seeded weights.

The full networks A to F of table 2: an opening 3 x 3 Conv, then blocks of steps y + K2 relu(N(K1 relu(N(y)))), where
each K is a 3 x 3 Conv and N a BatchNormalization, then average pooling and a linear classifier. In their lean form,
which ``onnxsep rewrite --mode lean`` (or ``--lean`` here) makes of them, every Conv but the opening one is a 1 x 1 Conv
plus a depthwise cross.

The paper leaves some things open. Its numbers of parameters (4.3 and 17 million for A and E, 0.5 and 2.0 when lean) are
those of this reading, the two vectors of each BatchNormalization that are trained counted. Two do not agree with the
paper's own rule: 1.8 for F (here 2.4) and 2.9 for the lean C (here 3.1).

- The first step of every block but the first doubles the channels, in its first Conv (which strides by 2), so a block
  of n steps has 2 n Convs. Its shortcut has no weights: 2 x 2 average pooling, zeros for the new channels.
- One more BatchNormalization and Relu stand before the pooling, as pre-activation networks need.
- A, B, E and F have 10 classes (CIFAR-10, STL-10), C and D 100 (CIFAR-100). No Conv has a bias, the classifier has one.

The weights are random, so the answers mean nothing. Counts, file sizes, timings and numeric checks do.

    python models/leanresnet.py leanresnet_a.onnx --network A
    python models/leanresnet.py leanresnet_a_lean.onnx --network A --lean
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


class Network(NamedTuple):
    """A row of table 2: the channels and the number of steps of every block; and what it was trained for."""

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    classes: int
    image_size: int


NETWORKS = {
    "A": Network((32, 64, 128, 256), (2, 3, 3, 3), 10, 32),
    "B": Network((12, 24, 48, 96), (2, 3, 3, 3), 10, 32),
    "C": Network((64, 128, 256, 512), (3, 5, 7, 4), 100, 32),
    "D": Network((24, 48, 96, 192), (3, 5, 7, 4), 100, 32),
    "E": Network((32, 64, 128, 256, 512), (2, 3, 3, 3, 3), 10, 96),
    "F": Network((12, 24, 48, 96, 192), (2, 3, 3, 3, 3), 10, 96),
}
OPSET = 17
IR_VERSION = 8


class _Graph:
    """Nodes and weights in the making. Every method adds one layer and returns the name of its output, and its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op_type: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: Array) -> str:
        kept = values if values.dtype == np.int64 else values.astype(np.float32)
        self.weights.append(numpy_helper.from_array(kept, name))
        return name

    def normal(self, shape: tuple[int, ...], std: float) -> Array:
        return self.rng.standard_normal(shape) * std

    def conv(self, name: str, x: str, c_in: int, c_out: int, *, stride: int = 1) -> str:
        """A 3 x 3 Conv with He-normal weights and no bias."""
        weight = self.weight(f"{name}.weight", self.normal((c_out, c_in, 3, 3), math.sqrt(2 / (9 * c_in))))
        return self.node(
            "Conv",
            name,
            [x, weight],
            kernel_shape=[3, 3],
            pads=[1] * 4,
            strides=[stride] * 2,
            dilations=[1, 1],
            group=1,
        )

    def batch_norm_relu(self, name: str, x: str, channels: int, mean_square: float = 1.0) -> str:
        """``<name>_bn`` and ``<name>_relu``; mean_square is about what the values of x have."""
        inputs = [
            x,
            self.weight(f"{name}_bn.gamma", 1 + self.normal((channels,), 0.1)),
            self.weight(f"{name}_bn.beta", self.normal((channels,), 0.1)),
            self.weight(f"{name}_bn.mean", self.normal((channels,), 0.1)),
            # The exponential keeps every variance above zero.
            self.weight(f"{name}_bn.variance", np.exp(self.normal((channels,), 0.1)) * mean_square),
        ]
        return self.node("Relu", f"{name}_relu", [self.node("BatchNormalization", f"{name}_bn", inputs, epsilon=1e-5)])

    def step(self, name: str, y: str, c_in: int, c_out: int, mean_square: float) -> str:
        """One step, y + K2 relu(N(K1 relu(N(y)))); where the channels grow, the sizes are halved."""
        stride = 1 if c_in == c_out else 2
        x = self.conv(
            f"{name}_conv1", self.batch_norm_relu(f"{name}_1", y, c_in, mean_square), c_in, c_out, stride=stride
        )
        x = self.conv(f"{name}_conv2", self.batch_norm_relu(f"{name}_2", x, c_out), c_out, c_out)
        if stride > 1:
            y = self.node("AveragePool", f"{name}_pool", [y], kernel_shape=[2, 2], strides=[2, 2])
            pads = self.weight(f"{name}_pad.pads", np.array([0, 0, 0, 0, 0, c_out - c_in, 0, 0], np.int64))
            y = self.node("Pad", f"{name}_pad", [y, pads])
        return self.node("Add", f"{name}_add", [y, x])


def build(network: str = "A", seed: int = 0, image_size: int | None = None, batch: int | str = 1) -> onnx.ModelProto:
    """One of the full networks.

    Args:
        network: A to F.
        seed: Seed of the weights; equal seeds give equal models.
        image_size: Height and width, a multiple of 8 (of 16 for E and F); by default that of the paper's data.
        batch: Size of a batch, or a name for a free one.

    Returns:
        A model with input ``image`` [batch, 3, image_size, image_size] and output ``logits`` [batch, classes].

    Raises:
        ValueError: no such network, or an image size that cannot be halved as often as there are blocks.
    """
    if network not in NETWORKS:
        raise ValueError(f"network {network!r} is not one of {', '.join(NETWORKS)}")
    widths, steps, classes, usual_size = NETWORKS[network]
    size = usual_size if image_size is None else image_size
    halvings = len(widths) - 1
    if size < 2**halvings or size % 2**halvings:
        raise ValueError(f"the image size must be a multiple of {2**halvings} for network {network}, not {size}")
    graph = _Graph(seed)
    y, channels, mean_square = graph.conv("opening", "image", 3, widths[0]), widths[0], 2.0
    for block, (width, count) in enumerate(zip(widths, steps, strict=True), start=1):
        for number in range(1, count + 1):
            y = graph.step(f"block{block}_step{number}", y, channels, width, mean_square)
            channels, mean_square = width, mean_square + 1.0  # each step adds about 1
    y = graph.batch_norm_relu("last", y, channels, mean_square)
    y = graph.node("GlobalAveragePool", "pool", [y])
    y = graph.node("Flatten", "flatten", [y], axis=1)
    weight = graph.weight("classifier.weight", graph.normal((classes, channels), math.sqrt(2 / channels)))
    bias = graph.weight("classifier.bias", graph.normal((classes,), 0.02))
    graph.nodes.append(helper.make_node("Gemm", [y, weight, bias], ["logits"], name="classifier", transB=1))
    kind = onnx.TensorProto.FLOAT
    proto = helper.make_graph(
        graph.nodes,
        f"leanresnet_{network.lower()}",
        [helper.make_tensor_value_info("image", kind, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", kind, [batch, classes])],
        initializer=graph.weights,
    )
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="onnxsep/models/leanresnet.py",
        doc_string=f"ResNet {network} of the LeanResNet paper with random weights (seed {seed}).",
    )


def build_lean(
    network: str = "A", seed: int = 0, image_size: int | None = None, batch: int | str = 1
) -> onnx.ModelProto:
    """The lean form of the same network: what onnxsep makes of it. Arguments and errors are those of ``build``."""
    import onnxsep  # only this needs it

    return onnxsep.rewrite(build(network, seed, image_size, batch), mode="lean", verify="none").proto


def trainable_parameters(model: onnx.ModelProto) -> int:
    """Weights, biases, and two vectors for each BatchNormalization, as the paper counts."""
    fixed = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    floats = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    return sum(math.prod(one.dims) for one in floats if one.name not in fixed)


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a network of the LeanResNet paper with random weights as ONNX.")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--network", default="A", choices=list(NETWORKS), help="row of table 2, default A")
    parser.add_argument("--lean", action="store_true", help="write the lean network instead of the full one")
    parser.add_argument("--image-size", type=int, metavar="N", help="height and width, default 32, for E and F 96")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the weights, default 0")
    parser.add_argument("--batch", default="1", metavar="N|NAME", help="batch size, or a name for a free one")
    args = parser.parse_args()
    batch = int(args.batch) if args.batch.lstrip("-").isdigit() else args.batch
    try:
        model = (build_lean if args.lean else build)(args.network, args.seed, args.image_size, batch)
    except ValueError as error:
        parser.error(str(error))
    try:
        onnx.save(model, args.out)
    except OSError as error:
        parser.exit(1, f"cannot write {args.out}: {error.strerror}\n")
    print(f"{args.out}: {trainable_parameters(model):,} trainable parameters, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
