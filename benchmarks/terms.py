"""Which form of a T-term depthwise-separable Conv does ONNX Runtime run fastest?

    python benchmarks/terms.py [--repeats 30]

The sum of T pairs (depthwise, 1 x 1) can be written as

- summed: T depthwise Convs, T 1 x 1 Convs, a chain of Adds (what mode depthwise emits);
- concat: T depthwise Convs, Concat, one 1 x 1 Conv over T * C channels;
- multiplier: one depthwise Conv of multiplier T, one 1 x 1 Conv.

Each is timed inside a chain of three such layers, on one thread, its runs alternating with those of the plain 3 x 3
Conv; printed is the median time relative to that Conv.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions

LAYERS = 3
SHAPES = ((16, 32), (64, 56), (128, 28), (256, 14))  # channels, size of the image
FORMS = ("conv", "summed", "concat", "multiplier")


class _Builder:
    """Collects the nodes and weights of a chain."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def conv(self, source: str, shape: tuple[int, ...], group: int = 1) -> str:
        """Add a Conv of stride 1 that keeps the size; gives the name of its output."""
        name = f"t{len(self.nodes)}"
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        values = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, f"w_{name}"))
        pad = shape[2] // 2
        node = helper.make_node("Conv", [source, f"w_{name}"], [name], pads=[pad] * 4, group=group)
        self.nodes.append(node)
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add another node; gives the name of its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def layer(self, form: str, source: str, channels: int, terms: int) -> str:
        """Add one layer of the given form."""
        if form == "conv":
            return self.conv(source, (channels, channels, 3, 3))
        if form == "multiplier":
            depthwise = self.conv(source, (terms * channels, 1, 3, 3), channels)
            return self.conv(depthwise, (channels, terms * channels, 1, 1))
        parts = [self.conv(source, (channels, 1, 3, 3), channels) for _ in range(terms)]
        if form == "concat":
            joined = self.node("Concat", parts, axis=1) if terms > 1 else parts[0]
            return self.conv(joined, (channels, terms * channels, 1, 1))
        total = self.conv(parts[0], (channels, channels, 1, 1))
        for part in parts[1:]:
            total = self.node("Add", [total, self.conv(part, (channels, channels, 1, 1))])
        return total


def make_runner(form: str, channels: int, size: int, terms: int) -> Runner:
    """A session of a chain of layers with ReLUs between them."""
    builder = _Builder()
    tensor = "x"
    for _ in range(LAYERS):
        tensor = builder.node("Relu", [builder.layer(form, tensor, channels, terms)])
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, channels, size, size])
    output = helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(builder.nodes, "chain", [value], [output], builder.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Runner(Model(proto), RuntimeOptions(threads=1))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    print(f"{'channels':>8} {'size':>5} {'terms':>5}" + "".join(f"{form:>12}" for form in FORMS))
    for channels, size in SHAPES:
        feeds = {"x": np.random.default_rng(1).standard_normal((1, channels, size, size), dtype=np.float32)}
        for terms in (1, 2, 3):
            runners = {form: make_runner(form, channels, size, terms) for form in FORMS}
            times: dict[str, list[float]] = {form: [] for form in FORMS}
            for _ in range(repeats):
                for form, runner in runners.items():
                    start = time.perf_counter()
                    runner(feeds)
                    times[form].append(time.perf_counter() - start)
            base = median(times["conv"])
            cells = "".join(f"{median(times[form]) / base:12.2f}" for form in FORMS)
            print(f"{channels:8} {size:5} {terms:5}{cells}")


if __name__ == "__main__":
    main()
