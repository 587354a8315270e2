"""Train a small VGG on CIFAR-10 and write it as ONNX: a plain chain of Convs, for benchmarks. Needs torch.

    python benchmarks/vgg.py vgg.onnx [--epochs 3]

Two 3 x 3 Convs of 12, 24 and 48 channels before each of three pools, the last one the mean over all positions; biases,
BatchNormalization, which is folded into the Convs when the file is written. Seeded; the number of epochs is fixed
beforehand, and no choice looks at the test images.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from cifar import MEAN, STD, Network, correct, load
from onnx import helper, numpy_helper
from torch import nn

import onnxsep

WIDTHS = (12, 12, 24, 24, 48, 48)
BATCH, LEARNING_RATE, DECAY, SHIFT = 128, 0.2, 5e-4, 4


def trained(images: Any, labels: Any, epochs: int) -> list[tuple[Any, Any]]:
    """Weights and biases of the Convs, BatchNormalization folded in, and of the classifier."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    layers: list[Any] = []
    for number, (before, after) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH].reshape(-1, BATCH)
        for chosen in order:
            batch = np.pad(images[chosen], ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
            top, left = rng.integers(2 * SHIFT + 1, size=2)
            batch = batch[:, :, top : top + 32, left : left + 32]
            batch = np.where(rng.random((len(batch), 1, 1, 1)) < 0.5, batch, batch[..., ::-1])
            pixels = torch.from_numpy(np.ascontiguousarray(batch))
            wanted = torch.from_numpy(labels[chosen])
            loss: Any = nn.functional.cross_entropy(model(pixels), wanted, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: {total / len(order):.4f}, {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()
    found = []
    for layer, norm in pairwise(layers):
        if isinstance(layer, nn.Conv2d):
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = (layer.bias - norm.running_mean) * gain + norm.bias
            found.append((layer.weight * gain[:, None, None, None], bias))
    found.append((model[-1].weight, model[-1].bias))
    return [(weight.detach().numpy(), bias.detach().numpy()) for weight, bias in found]


def built(weights: list[tuple[Any, Any]]) -> onnx.ModelProto:
    """The network with these weights."""
    nodes, tensors, x = [], [], "image"
    for number, (weight, bias) in enumerate(weights):
        names = [f"w{number}", f"b{number}"]
        tensors += [numpy_helper.from_array(array, name) for array, name in zip((weight, bias), names, strict=True)]
        if weight.ndim == 2:
            nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"))
            nodes.append(helper.make_node("Flatten", ["mean"], ["features"], "flatten"))
            nodes.append(helper.make_node("Gemm", ["features", *names], ["logits"], "classifier", transB=1))
            break
        nodes.append(helper.make_node("Conv", [x, *names], [f"c{number}"], f"conv{number}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        x = f"r{number}"
        if number in (1, 3):
            nodes.append(helper.make_node("MaxPool", [x], [f"p{number}"], kernel_shape=[2, 2], strides=[2, 2]))
            x = f"p{number}"
    kind = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("image", kind, ["batch", 3, 32, 32])]
    outputs = [helper.make_tensor_value_info("logits", kind, ["batch", 10])]
    graph = helper.make_graph(nodes, "vgg", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    """Train, write, and say how many test images are right."""
    parser = argparse.ArgumentParser(description="Train a small VGG on CIFAR-10 and write it as ONNX.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    images = load()
    pixels = (images.train.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    model = built(trained(pixels.transpose(0, 3, 1, 2), images.train_labels.astype(np.int64), asked.epochs))
    onnx.save(model, asked.out)
    right = correct(onnxsep.load(model), Network("").images(images.test), images.labels)
    print(f"{asked.out}: {100 * right.mean():.1f} % of {len(right)} test images")


if __name__ == "__main__":
    main()
