"""Random CNN graphs that are valid and awkward: ``random_model(rng)`` gives a model, and samples for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
SAMPLES = 24

# Endings that the runtime's quantiser puts behind names.
_ENDINGS = (
    *("_scale", "_zero_point", "_quantized", "quantized", "_quant", "_QuantizeLinear", "_QuantizeLinear_Input"),
    *("_QuantizeLinear_Output", "_DequantizeLinear", "_DequantizeLinear_Output", "_quantized_scale", "0", "_port"),
)


@dataclass(frozen=True)
class Feature:
    """A tensor [batch, channels, *size]."""

    name: str
    channels: int
    size: tuple[int, ...]


class Net:
    """A graph that grows node by node, with names as awkward as is allowed."""

    def __init__(self, rng: np.random.Generator, opset: int, dims: int) -> None:
        self.rng, self.opset, self.dims = rng, opset, dims
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.names: list[str] = ["x"]
        self.convs = 0
        self.awkward = bool(rng.random() < 0.4)
        self.shared: dict[tuple[Any, ...], str] = {}

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def name(self, base: str = "t") -> str:
        """A name that no tensor has."""
        if self.awkward and self.chance(0.4):
            made = f"{self.pick(self.names)}{self.pick(_ENDINGS)}"
        else:
            made = f"{base}{len(self.names)}"
        while made in self.names:
            made += "_"
        self.names.append(made)
        return made

    def weight(self, array: Any, base: str = "w") -> str:
        """An initialiser, or a Constant node."""
        name = self.name(base)
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if self.chance(0.1):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(tensor)
        return name

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        made = [self.name() for _ in range(outputs)]
        node = helper.make_node(op, list(inputs), made, **attributes)
        if not self.chance(0.2):
            node.name = self.pick(self.names) + self.pick(_ENDINGS) if self.awkward else f"n{len(self.nodes)}"
            while node.name in {other.name for other in self.nodes}:  # the runtime refuses two
                node.name += "_"
        self.nodes.append(node)
        return made[0] if outputs == 1 else made

    def conv(self, x: Feature, channels: int, kernel: int | None = None, stride: int = 1) -> Feature:
        kernel = kernel or self.pick((1, 3, 3))
        assert kernel is not None
        dilation = 2 if kernel == 3 and stride == 1 and min(x.size) > 4 and self.chance(0.15) else 1
        group = 1
        if self.chance(0.25):
            group = x.channels if channels % x.channels == 0 else int(np.gcd(x.channels, channels))
        shape = (channels, x.channels // group, *[kernel] * self.dims)
        fan = int(np.prod(shape[1:]))
        key = ("conv", *shape)
        if key not in self.shared or not self.chance(0.3):
            self.shared[key] = self.weight(self.rng.standard_normal(shape).astype(np.float32) * (1.5 / fan) ** 0.5)
        inputs = [x.name, self.shared[key]]
        if self.chance(0.7):
            bias = ("bias", channels)
            if bias not in self.shared or not self.chance(0.4):
                self.shared[bias] = self.weight(self.rng.standard_normal(channels).astype(np.float32) * 0.2)
            inputs.append(self.shared[bias])
        elif self.chance(0.3):
            inputs.append("")
        attributes: dict[str, Any] = {
            "strides": [stride] * self.dims,
            "group": group,
            "dilations": [dilation] * self.dims,
        }
        if dilation == 1 and self.chance(0.2):
            attributes["auto_pad"] = self.pick(("SAME_UPPER", "SAME_LOWER"))
        else:
            attributes["pads"] = [kernel // 2 * dilation] * 2 * self.dims
        self.convs += 1
        return Feature(self.add("Conv", inputs, **attributes), channels, tuple(-(-n // stride) for n in x.size))

    def same(self, x: Feature, op: str, *more: str, **attributes: Any) -> Feature:
        return Feature(self.add(op, [x.name, *more], **attributes), x.channels, x.size)

    def activated(self, x: Feature) -> Feature:
        kinds = ["Relu"] * 6 + ["Clip", "Clip", "LeakyRelu", "Sigmoid", "Elu", "PRelu", "Tanh", "none", "SiLU"]
        if self.opset >= 14:
            kinds.append("HardSwish")
        kind = self.pick(kinds)
        if kind == "none":
            return x
        if kind == "SiLU":
            return self.same(x, "Mul", self.same(x, "Sigmoid").name)
        if kind == "PRelu":
            shape = (x.channels, *[1] * self.dims)
            return self.same(x, kind, self.weight(self.rng.uniform(0, 0.4, shape).astype(np.float32)))
        if kind == "Clip":
            low, high = self.pick(((0, 6), (0, 1), (-1, 1), (0.2, 2), (-2, -0.1), (None, 1), (0, None), (-8, 8)))
            if self.opset < 11:
                bounds: dict[str, Any] = {
                    key: float(value) for key, value in (("min", low), ("max", high)) if value is not None
                }
                return self.same(x, "Clip", **bounds)
            names = ["" if value is None else self.weight(np.float32(value), "bound") for value in (low, high)]
            if names[1] and self.chance(0.15):  # a bound that is computed
                names[1] = self.add("Abs", [names[1]])
            return self.same(x, "Clip", *names)
        return self.same(x, kind)

    def normed(self, x: Feature) -> Feature:
        kinds = ["BatchNormalization"] * 4 + ["InstanceNormalization"]
        kind = self.pick([*kinds, "LayerNormalization"] if self.opset >= 17 else kinds)
        scale = self.weight(self.rng.uniform(0.6, 1.4, x.channels).astype(np.float32))
        if kind == "LayerNormalization":
            scale = self.weight(self.rng.uniform(0.6, 1.4, x.size[-1]).astype(np.float32))
            bias = self.weight(self.rng.standard_normal(x.size[-1]).astype(np.float32) * 0.1)
            return self.same(x, kind, scale, *([bias] if self.chance(0.7) else []), axis=-1)
        bias = self.weight(self.rng.standard_normal(x.channels).astype(np.float32) * 0.1)
        if kind == "InstanceNormalization":
            return self.same(x, kind, scale, bias)
        mean = self.weight(self.rng.standard_normal(x.channels).astype(np.float32) * 0.1)
        variance = self.weight(self.rng.uniform(0.6, 1.4, x.channels).astype(np.float32))
        return self.same(x, kind, scale, bias, mean, variance)

    def pooled(self, x: Feature) -> Feature:
        if min(x.size) < 4:
            return x
        kind = self.pick(("MaxPool", "AveragePool", "MaxPool"))
        if self.chance(0.5):
            size = tuple(n // 2 for n in x.size)
            name = self.add(kind, [x.name], kernel_shape=[2] * self.dims, strides=[2] * self.dims)
            return Feature(name, x.channels, size)
        more: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" and self.chance(0.3) else {}
        return self.same(x, kind, kernel_shape=[3] * self.dims, pads=[1] * 2 * self.dims, **more)

    def resized(self, x: Feature) -> Feature:
        if max(x.size) > 16:
            return x
        mode = self.pick(("nearest", "linear")) if self.dims == 2 else "nearest"
        scales = self.weight(np.array([1, 1, *[2] * self.dims], np.float32))
        size = tuple(2 * n for n in x.size)
        if self.opset < 10:
            return Feature(self.add("Upsample", [x.name, scales], mode=mode), x.channels, size)
        if self.opset == 10:
            return Feature(self.add("Resize", [x.name, scales], mode=mode), x.channels, size)
        roi = "" if self.opset >= 13 else self.weight(np.zeros(0, np.float32))
        how = self.pick(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
        more = {"nearest_mode": self.pick(("floor", "round_prefer_floor"))} if mode == "nearest" else {}
        name = self.add("Resize", [x.name, roi, scales], mode=mode, coordinate_transformation_mode=how, **more)
        return Feature(name, x.channels, size)

    def padded(self, x: Feature) -> Feature:
        mode = self.pick(("constant", "constant", "reflect", "edge"))
        size = (*x.size[:-1], x.size[-1] + 1)
        begin_end = [0] * (2 + self.dims) + [0] * (1 + self.dims) + [1]
        value = float(self.pick((0.0, 0.0, 1.5, -0.5)))
        if self.opset < 11:
            more: dict[str, Any] = {"value": value} if mode == "constant" else {}
            return Feature(self.add("Pad", [x.name], mode=mode, pads=begin_end, **more), x.channels, size)
        inputs = [x.name, self.weight(np.array(begin_end, np.int64))]
        if mode == "constant" and self.chance(0.6):
            inputs.append(self.weight(np.float32(value)))
        if self.opset >= 18 and self.chance(0.5):
            inputs[1] = self.weight(np.array([0, 1], np.int64))
            inputs += [""] * (3 - len(inputs)) + [self.weight(np.array([-1], np.int64))]
        return Feature(self.add("Pad", inputs, mode=mode), x.channels, size)

    def squeezed(self, x: Feature) -> Feature:
        """Squeeze and excitation."""
        axes = list(range(2, 2 + self.dims))
        if self.chance(0.5):
            pooled = self.add("GlobalAveragePool", [x.name])
        elif self.opset >= 18:
            pooled = self.add("ReduceMean", [x.name, self.weight(np.array(axes, np.int64))], keepdims=1)
        else:
            pooled = self.add("ReduceMean", [x.name], axes=axes, keepdims=1)
        gate = self.conv(Feature(pooled, x.channels, (1,) * self.dims), x.channels, kernel=1)
        return self.same(x, "Mul", self.same(gate, "Sigmoid").name)

    def split(self, x: Feature) -> Feature:
        if x.channels % 2:
            return x
        half = x.channels // 2
        if self.opset >= 13:
            sizes = [self.weight(np.array([half, half], np.int64))] if self.chance(0.7) or self.opset >= 18 else []
            first, second = self.add("Split", [x.name, *sizes], 2, axis=1)
        else:
            first, second = self.add("Split", [x.name], 2, axis=1, split=[half, half])
        one = self.conv(Feature(first, half, x.size), half)
        return Feature(self.add("Concat", [second, one.name], axis=1), x.channels, x.size)

    def transposed(self, x: Feature) -> Feature:
        """A ConvTranspose that doubles the size."""
        if max(x.size) > 12:
            return x
        group = self.pick((1, 1, 2)) if x.channels % 2 == 0 else 1
        shape = (x.channels, x.channels // group, *[2] * self.dims)
        weight = self.weight(self.rng.standard_normal(shape).astype(np.float32) * (1.5 / (x.channels / group)) ** 0.5)
        more = [self.weight(self.rng.standard_normal(x.channels).astype(np.float32) * 0.2)] if self.chance(0.6) else []
        name = self.add("ConvTranspose", [x.name, weight, *more], strides=[2] * self.dims, group=group)
        return Feature(name, x.channels, tuple(2 * n for n in x.size))

    def moved(self, x: Feature) -> Feature:
        """Reordered, and back."""
        order = [0, *range(2, 2 + self.dims), 1]
        there = self.add("Transpose", [x.name], perm=order)
        if self.chance(0.5):
            there = self.add("Relu", [there])
        return Feature(self.add("Transpose", [there], perm=np.argsort(order).tolist()), x.channels, x.size)

    def where(self, x: Feature) -> Feature:
        zero = self.weight(np.float32(0.1))
        return self.same(Feature(self.add("Greater", [x.name, zero]), x.channels, x.size), "Where", x.name, zero)

    def nested(self, x: Feature) -> Feature:
        """An If, a Loop or a Scan whose graphs capture tensors of the main graph."""
        kind = self.pick(("If", "If", "Loop"))
        info = helper.make_tensor_value_info
        made = [self.name("nested") for _ in range(6)]
        weight = numpy_helper.from_array(
            self.rng.standard_normal((x.channels, x.channels, *[1] * self.dims)).astype(np.float32) * 0.2, made[0]
        )
        if kind == "If":
            yes = helper.make_graph(
                [helper.make_node("Conv", [x.name, made[0]], [made[1]])],
                "yes",
                [],
                [info(made[1], TensorProto.FLOAT, None)],
                [weight],
            )
            no = helper.make_graph(
                [helper.make_node("Neg", [x.name], [made[2]])], "no", [], [info(made[2], TensorProto.FLOAT, None)]
            )
            mean = self.add("ReduceMean", ["x"], keepdims=0)
            cond = self.add("Greater", [mean, self.weight(np.float32(self.pick((-9, 9))))])
            return self.same(Feature(cond, x.channels, x.size), "If", then_branch=yes, else_branch=no)
        body = helper.make_graph(
            [
                helper.make_node("Conv", [made[1], made[0]], [made[2]]),
                helper.make_node("Add", [made[2], x.name], [made[3]]),
                helper.make_node("Identity", [made[4]], [made[5]]),
            ],
            "body",
            [
                info(made[1] + "_step", TensorProto.INT64, []),
                info(made[4], TensorProto.BOOL, []),
                info(made[1], TensorProto.FLOAT, None),
            ],
            [info(made[5], TensorProto.BOOL, []), info(made[3], TensorProto.FLOAT, None)],
            [weight],
        )
        trip = self.weight(np.int64(2))
        return Feature(self.add("Loop", [trip, "", x.name], body=body), x.channels, x.size)

    def joined(self, x: Feature, y: Feature) -> Feature:
        """Two branches of the same size."""
        if x.channels == y.channels and self.chance(0.7):
            kind = self.pick(("Add", "Add", "Add", "Mul", "Sub", "Max")) if x.name != y.name else "Add"
            return self.same(x, kind, y.name)
        return Feature(self.add("Concat", [x.name, y.name], axis=1), x.channels + y.channels, x.size)

    def output(self, x: Feature, shape: Sequence[Any] | None) -> None:
        if x.name not in [entry.name for entry in self.outputs] and x.name != "x":
            self.outputs.append(helper.make_tensor_value_info(x.name, TensorProto.FLOAT, shape))

    def head(self, x: Feature) -> str:
        pooled = self.add("GlobalAveragePool", [x.name])
        flat = (
            self.add("Flatten", [pooled])
            if self.chance(0.6)
            else self.add("Reshape", [pooled, self.weight(np.array([0, -1], np.int64))])
        )
        weight = self.rng.standard_normal((5, x.channels)).astype(np.float32) * (2 / x.channels) ** 0.5
        kind = self.pick(("Gemm", "Gemm", "Gemm-scaled", "MatMul"))
        if kind == "MatMul":
            out = self.add("MatMul", [flat, self.weight(np.ascontiguousarray(weight.T))])
            if self.chance(0.6):
                out = self.add("Add", [out, self.weight(self.rng.standard_normal(5).astype(np.float32))])
        else:
            more: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if kind == "Gemm-scaled" else {}
            bias = [self.weight(self.rng.standard_normal((1, 5) if self.chance(0.2) else 5).astype(np.float32) * 0.1)]
            out = self.add(
                "Gemm", [flat, self.weight(weight), *bias * (self.opset < 11 or self.chance(0.8))], transB=1, **more
            )
        if self.chance(0.2):
            out = self.add("Softmax", [out], axis=1)
        return str(out)


def random_model(
    rng: np.random.Generator, opsets: Sequence[int] = OPSETS, blocks: int = 8
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model that is valid, and samples for it.

    Args:
        rng: Two generators with the same state give the same model.
        opsets: Versions of the standard operators to choose from.
        blocks: The most blocks between the first Conv and the last; at least 2.

    Returns:
        The model, with the free dimension "N" for the batch, and an array [samples, ...] for each input.
    """
    opset = int(opsets[int(rng.integers(len(opsets)))])
    dims = int(rng.choice([2, 2, 2, 2, 1, 3]))
    net = Net(rng, opset, dims)
    size = {1: (16,), 2: (10, 10), 3: (5, 6, 6)}[dims]
    width = int(rng.choice([8, 12, 16]))
    x = net.conv(Feature("x", 3, size), width, kernel=3)
    kept: list[Feature] = [x]
    kinds: list[Callable[[Feature], Feature]] = [
        *[lambda f: net.activated(net.conv(f, f.channels if f.channels <= 24 else 16))] * 5,
        *[lambda f: net.activated(net.normed(net.conv(f, f.channels)))] * 3,
        *[net.activated] * 2,
        lambda f: net.same(f, "Add", f.name),
        *[net.pooled] * 2,
        *[net.resized, net.padded, net.squeezed, net.split, net.transposed, net.moved, net.where],
        *[net.nested] * 2,
        *[lambda f: net.joined(f, net.pick([g for g in kept if g.size == f.size] or [f]))] * 3,
    ]
    for _ in range(int(rng.integers(2, blocks + 1))):
        x = net.pick(kinds)(x)
        kept.append(x)
        if net.chance(0.1):
            net.output(x, None)
        if net.chance(0.25):
            x = net.pick(kept)
    x = net.conv(x, 8)
    if net.chance(0.7):
        out = net.head(net.activated(x))
        net.outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    else:
        net.output(net.activated(x), None)
    if net.chance(0.05) and net.weights:
        tensor = net.pick([entry for entry in net.weights if entry.data_type == TensorProto.FLOAT])
        net.outputs.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    graph = helper.make_graph(
        net.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, *size])],
        net.outputs,
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 4 if opset < 10 else 8 if opset < 19 else 10
    return model, {"x": rng.standard_normal((SAMPLES, 3, *size)).astype(np.float32)}
