"""Small residual networks of bottlenecks, as paper 004's baseline is one, with names that say nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from fold_models import model, tensor, value
from onnx import helper

CLASSES, SIDE = 5, 8


class Residual:
    """image [n, 3, 8, 8] -> stem -> stages of bottlenecks -> mean -> Gemm -> logits.

    Args:
        stages: for each the inner width, the width of its stream and the number of blocks; all but the first begin
            with stride 2. A block has a projection where its stream or its stride changes.
        stem: channels of the first Conv.
        norm: BatchNormalization behind each Conv; else biases, as where it was folded.
        activation: Relu, Clip (with bounds as inputs), HardSwish, SiLU or "" behind the additions.
        last: what stands behind an addition: as ``activation``; None: the same.
        head: gemm, matmul (with Add), reduce (ReduceMean for the mean), conv (a 1 x 1 Conv before the mean).
    """

    def __init__(self, stages: Sequence[tuple[int, int, int]], *, stem: int = 6, seed: int = 0, **form: Any) -> None:
        self.rng, self.form = np.random.default_rng(seed), form
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.convs: list[str] = []
        self.count = 0
        activation = form.get("activation", "Relu")
        self.last = form.get("last", activation)
        x, before = self.act(self.conv("image", 3, stem, 3), activation), stem
        for number, (inner, width, blocks) in enumerate(stages):
            for block in range(blocks):
                stride = 2 if number and not block else 1
                x, before = self.block(x, (before, inner, width), stride, activation), width
        x = self.head(x, before)
        self.logits = x

    def name(self) -> str:
        self.count += 1
        return f"n{self.count * 7919 % 1000:03}{self.count}"

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        made = self.name()
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"t{made}"], name=made, **attributes))
        return f"t{made}"

    def weight(self, shape: Sequence[int], scale: float = 1.0, mean: float = 0.0) -> str:
        made = self.name()
        self.tensors.append(tensor(made, self.rng.normal(mean, scale, shape)))
        return made

    def conv(self, x: str, before: int, after: int, kernel: int, stride: int = 1) -> str:
        inputs = [x, self.weight((after, before, kernel, kernel), (2 / before / kernel**2) ** 0.5)]
        if not self.form.get("norm", True):
            inputs.append(self.weight((after,), 0.1))
        y = self.node("Conv", *inputs, pads=[kernel // 2] * 4, strides=[stride] * 2)
        self.convs.append(self.nodes[-1].name)
        if not self.form.get("norm", True):
            return y
        made = [self.weight((after,), 0.1, mean) for mean in (1.0, 0.0, 0.0)]
        variance = self.name()
        self.tensors.append(tensor(variance, self.rng.uniform(0.8, 1.2, after)))
        return self.node("BatchNormalization", y, *made, variance)

    def act(self, x: str, kind: str) -> str:
        if not kind:
            return x
        if kind == "SiLU":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if kind == "Clip":
            bounds = [self.name(), self.name()]
            self.tensors += [tensor(bounds[0], 0.0), tensor(bounds[1], 6.0)]
            return self.node("Clip", x, *bounds)
        return self.node(kind, x)

    def block(self, x: str, widths: tuple[int, int, int], stride: int, activation: str) -> str:
        before, inner, after = widths
        y = self.act(self.conv(x, before, inner, 1), activation)
        y = self.act(self.conv(y, inner, inner, 3, stride), activation)
        y = self.conv(y, inner, after, 1)
        skip = x if stride == 1 and before == after else self.conv(x, before, after, 1, stride)
        pair = (y, skip) if not self.form.get("swapped") else (skip, y)
        return self.act(self.node("Add", *pair), self.last)

    def head(self, x: str, width: int) -> str:
        kind = self.form.get("head", "gemm")
        if kind == "reduce":
            x = self.node("ReduceMean", x, axes=[2, 3], keepdims=0)
        else:
            x = self.node("Flatten", self.node("GlobalAveragePool", x))
        weight = self.weight((CLASSES, width), (1 / width) ** 0.5)
        bias = self.weight((CLASSES,), 0.1)
        if kind != "matmul":
            return self.node("Gemm", x, weight, bias, transB=1)
        self.tensors = [one for one in self.tensors if one.name != weight]
        turned = self.weight((width, CLASSES), (1 / width) ** 0.5)
        return self.node("Add", self.node("MatMul", x, turned), bias)

    @property
    def proto(self) -> onnx.ModelProto:
        return model(
            self.nodes,
            self.tensors,
            inputs=[value("image", ["n", 3, SIDE, SIDE])],
            outputs=[value(self.logits, ["n", CLASSES])],
        )
