"""Models with constants behind their Convs, built by hand, and what folding must give, by the mathematics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxsep.graph.view import build_tensor
from onnxsep.model.io import Model, read_tensor

Floats = NDArray[np.float64]
BATCH = 2


def tensor(name: str, values: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    """A tensor of any of the float types."""
    return build_tensor(name, np.asarray(values, np.float64).astype(dtype))


def value(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int = 17,
    ir_version: int = 8,
    **more: Any,
) -> onnx.ModelProto:
    """A model."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@dataclass
class Chain:
    """A Conv ``conv`` and what stands behind it, one node after another; ``x`` goes in, ``y`` comes out.

    Attributes:
        weight: [out, in / group, *kernel_shape].
        bias: [out].
        scale, shift: what folding multiplies the outputs by, and adds to them: the product of all nodes so far.
    """

    weight: Floats
    bias: Floats | None = None
    group: int = 1
    dtype: Any = np.float32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scale = np.ones(len(self.weight))
        self.shift = np.zeros(len(self.weight))
        if self.bias is not None:
            self.shift = self.bias.astype(self.dtype).astype(np.float64)
        kernel = self.weight.shape[2:]
        inputs = ["x", "w"] + ([] if self.bias is None else ["b"])
        attributes: dict[str, Any] = {"pads": [1] * (2 * len(kernel)), "kernel_shape": list(kernel)}
        self.nodes.append(helper.make_node("Conv", inputs, ["t0"], name="conv", group=self.group, **attributes))
        self.initializers.append(tensor("w", self.weight, self.dtype))
        if self.bias is not None:
            self.initializers.append(tensor("b", self.bias, self.dtype))

    @property
    def last(self) -> str:
        """The tensor that comes out so far."""
        return self.nodes[-1].output[0]

    def norm(self, rng: np.random.Generator, epsilon: float | None = None, **attributes: Any) -> "Chain":
        """Add a BatchNormalization."""
        number, size = len(self.nodes), len(self.weight)
        values = [*rng.normal(size=(3, size)), rng.uniform(0.1, 2, size)]
        names = [f"{part}{number}" for part in ("gamma", "beta", "mean", "variance")]
        self.initializers += [tensor(name, part, self.dtype) for name, part in zip(names, values, strict=True)]
        if epsilon is not None:
            attributes["epsilon"] = epsilon
        node = helper.make_node(
            "BatchNormalization", [self.last, *names], [f"t{number}"], name=f"norm{number}", **attributes
        )
        self.nodes.append(node)
        gamma, beta, mean, variance = (part.astype(self.dtype).astype(np.float64) for part in values)
        root = np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        self.scale, self.shift = self.scale * gamma / root, (self.shift - mean) * gamma / root + beta
        return self

    def binary(self, op_type: str, values: Any, *, first: bool = False) -> "Chain":
        """Add a Mul or Add with a constant, which is its first or its second operand."""
        number = len(self.nodes)
        stored = np.asarray(values, np.float64).astype(self.dtype)
        self.initializers.append(tensor(f"c{number}", values, self.dtype))
        operands = [f"c{number}", self.last] if first else [self.last, f"c{number}"]
        self.nodes.append(helper.make_node(op_type, operands, [f"t{number}"], name=f"{op_type.lower()}{number}"))
        flat = stored.astype(np.float64).reshape(-1)
        if op_type == "Mul":
            self.scale, self.shift = self.scale * flat, self.shift * flat
        else:
            self.shift = self.shift + flat
        return self

    @property
    def folded(self) -> tuple[Floats, Floats]:
        """Weight and bias by the mathematics, in double precision."""
        stored = self.weight.astype(self.dtype).astype(np.float64)
        return stored * self.scale.reshape(-1, *(1,) * (stored.ndim - 1)), self.shift

    def model(self, opset: int = 17, ir_version: int = 8, size: int = 6, **more: Any) -> onnx.ModelProto:
        """The model."""
        kind = tensor("kind", 0, self.dtype).data_type
        shape = [BATCH, self.weight.shape[1] * self.group, *[size] * (self.weight.ndim - 2)]
        outputs = [BATCH, len(self.weight), *[size] * (self.weight.ndim - 2)]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        nodes[-1].output[0] = "y"
        inputs = [value("x", shape, kind)]
        if ir_version < 4:
            inputs += [value(one.name, list(one.dims), one.data_type) for one in self.initializers]
        return model(
            nodes,
            self.initializers,
            inputs=inputs,
            outputs=[value("y", outputs, kind)],
            opset=opset,
            ir_version=ir_version,
            **more,
        )


def conv_norm(seed: int = 0, channels: int = 4, **options: Any) -> Chain:
    """The usual pair, 3 x 3 on three channels, without bias."""
    rng = np.random.default_rng(seed)
    return Chain(rng.normal(size=(channels, 3, 3, 3)), **options).norm(rng)


def arrays(proto: onnx.ModelProto) -> Mapping[str, NDArray[Any]]:
    """Initialisers by name."""
    return {one.name: read_tensor(Model(proto), one) for one in proto.graph.initializer}
