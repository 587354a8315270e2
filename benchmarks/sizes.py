"""Table 2 of paper 000: sizes of ResNet50V2 as it is, separated, and in 8 bits, as a share of the fp32 file.

    python benchmarks/sizes.py [--image-size 32]

Weights are random, which does not matter for sizes; factors come from the weights alone, ranges from a few random
images. The paper's files are for inference (TensorFlow Lite): BatchNormalization behind a Conv is folded into it. So it
is here, by ONNX Runtime's basic optimisations. The second part takes small networks (needs ../shared): every 3 x 3 Conv
but the first in one depthwise term, int8; the share of weights, scales and biases is that of their bare bytes.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import cifar
import numpy as np
import onnx
import onnxruntime

import onnxsep
from onnxsep.model.tensors import storage_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import resnet50v2

PAPER = {"full": 1.0, "spatial": 0.84, "depthwise": 0.57}
PAPER_INT8 = {"full": 0.26, "spatial": 0.22, "depthwise": 0.15}
SAMPLES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=32)
    size = parser.parse_args().image_size
    built = onnxsep.load(resnet50v2.build(image_size=size, batch="n"))
    source = folded(built.proto)
    images = np.random.default_rng(0).standard_normal((SAMPLES, 3, size, size)).astype(np.float32)
    whole = source.proto.ByteSize()
    print(f"ResNet50V2 as built {built.proto.ByteSize():,} bytes, with BatchNormalization folded {whole:,} bytes")
    print(f"{'':<10} {'fp32, bytes':>12} {'factor':>7} {'paper':>6} {'int8, bytes':>13} {'factor':>7} {'paper':>6}")
    for mode, paper in PAPER.items():
        model = source if mode == "full" else onnxsep.rewrite(source, mode=mode, verify="none").model
        plain = model.proto.ByteSize()
        small = onnxsep.quantize(model, data={"image": images}, samples=SAMPLES // 2).report.bytes_after
        print(
            f"{mode:<10} {plain:>12,} {plain / whole:>7.4f} {paper:>6} {small:>13,} {small / whole:>7.4f}"
            f" {PAPER_INT8[mode]:>6}",
            flush=True,
        )
    small_networks()


def folded(proto: onnx.ModelProto) -> onnxsep.Model:
    """The network for inference: each BatchNormalization behind a Conv is part of it."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, "folded.onnx"))
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnxsep.load(onnx.load(options.optimized_model_filepath))


def small_networks() -> None:
    """Small files are mostly names and structure."""
    data = cifar.load()
    print(
        f"{'':<10} {'file, bytes':>12} {'int8, bytes':>12} {'file':>6} {'weights':>8} {'+ scales':>8} {'+ biases':>8}"
    )
    for name, network in cifar.NETWORKS.items():
        source = onnxsep.load(network.path)
        images = {source.proto.graph.input[0].name: network.images(data.train[:64])}
        model = onnxsep.rewrite(source, mode="depthwise", rank=1, verify="none").model
        small = onnxsep.quantize(model, data=images).model.proto
        whole = network.path.stat().st_size
        held = held_by(small)
        shares = np.cumsum([held["weights"], held["scales"], held["biases"]]) / whole
        print(
            f"{name:<10} {whole:>12,} {small.ByteSize():>12,} {small.ByteSize() / whole:>6.4f}"
            + "".join(f" {share:>8.4f}" for share in shares),
            flush=True,
        )


def held_by(proto: onnx.ModelProto) -> Mapping[str, int]:
    """Bytes of weights, of their scales, and of the biases with theirs."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    held = {"weights": 0, "scales": 0, "biases": 0}
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors:
            continue
        values, scale = (storage_bytes(tensors[name]) or 0 for name in node.input[:2])
        if tensors[node.input[0]].data_type == onnx.TensorProto.INT32:
            held["biases"] += values + scale
        else:
            held["weights"] += values
            held["scales"] += scale
    return held


if __name__ == "__main__":
    main()
