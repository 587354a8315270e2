"""Small networks with blocks in them, whatever an exporter writes these as."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from fold_models import model, tensor, value
from hypothesis import strategies as st
from onnx.helper import make_node

import onnxsep

ACTIVATIONS = ("Relu", "Clip", "HardSwish", "SiLU", "LeakyRelu")


@dataclass
class Net:
    """Nodes and tensors in the making; every method returns the name of what it adds."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def tensor(self, values: Any) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(tensor(name, values))
        return name

    def conv(
        self,
        x: str,
        widths: tuple[int, int],
        kernel: int = 3,
        *,
        stride: int = 1,
        bias: bool = True,
        norm: bool = False,
    ) -> str:
        inputs = [
            x,
            self.tensor(self.rng.normal(0, (2 / widths[0]) ** 0.5 / kernel, (widths[1], widths[0], kernel, kernel))),
        ]
        if bias and not norm:
            inputs.append(self.tensor(self.rng.normal(0, 0.1, widths[1])))
        y = self.node("Conv", *inputs, pads=[kernel // 2] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2)
        if norm:
            parts = (1, 0.2), (0, 0.2), (0, 0.2), (1, 0.1)
            drawn = (self.tensor(np.abs(self.rng.normal(*part, widths[1]))) for part in parts)
            y = self.node("BatchNormalization", y, *drawn)
        return y

    def activation(self, form: str, x: str) -> str:
        if form == "Clip":
            return self.node("Clip", x, self.tensor(0.0), self.tensor(6.0))
        if form == "SiLU":
            return self.node("Mul", x, self.node("Sigmoid", x))
        return self.node(form, x)

    def residual(
        self,
        x: str,
        ci: int,
        inner: int,
        co: int,
        *,
        bottleneck: bool,
        stride: int = 1,
        form: str = "Relu",
        norm: bool = False,
        skip: str = "auto",
    ) -> str:
        """A block with the activation of its sum; ``skip``: "conv", "slice" (zeros behind), or as needed."""
        if bottleneck:
            y = self.activation(form, self.conv(x, (ci, inner), 1, norm=norm))
            y = self.activation(form, self.conv(y, (inner, inner), 3, stride=stride, norm=norm))
            y = self.conv(y, (inner, co), 1, norm=norm)
        else:
            y = self.activation(form, self.conv(x, (ci, inner), 3, stride=stride, norm=norm))
            y = self.conv(y, (inner, co), 3, norm=norm)
        if skip == "slice":
            starts, ends, axes, steps = (np.array(one) for one in ([0, 0], [9999, 9999], [2, 3], [stride] * 2))
            x = self.node("Slice", x, *map(self.integers, (starts, ends, axes, steps)))
            x = self.node("Pad", x, self.integers(np.array([0, 0, 0, 0, 0, co - ci, 0, 0])))
        elif skip == "conv" or stride > 1 or ci != co:
            x = self.conv(x, (ci, co), 1, stride=stride, norm=norm)
        return self.activation(form, self.node("Add", *((x, y) if self.seed % 2 else (y, x))))

    def integers(self, values: Any) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def model(self, channels: int, last: str, *, size: int = 8, opset: int = 17, classes: int = 0) -> onnx.ModelProto:
        if classes:
            last = self.node("Flatten", self.node("GlobalAveragePool", last))
            width = classes
            last = self.node("MatMul", last, self.tensor(self.rng.normal(size=(width, 5))))
        self.nodes[-1].output[0] = "y"
        ends = [value("x", ["n", channels, size, size])], [value("y", [None] * (2 if classes else 4))]
        return model(self.nodes, self.tensors, inputs=ends[0], outputs=ends[1], opset=opset)


def images(channels: int, size: int = 8, count: int = 2, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(count, channels, size, size)).astype(np.float32)


def run(proto: onnx.ModelProto, feed: Any, *names: str) -> list[Any]:
    """What a model computes for ``x``: its output, or these tensors."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    if names:
        del proto.graph.output[:]
        proto.graph.output.extend(value(name, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": feed}))


def rewritten(proto: onnx.ModelProto, mode: str, feed: Any, **options: Any) -> onnxsep.Result:
    """What a mode makes of a network, after what holds for every block mode of its kind was looked at.

    The shape of the output stays; what was not of the blocks is the source's own, byte for byte; a second run finds
    nothing more to do; the report's counts are those of the file.
    """
    given = {"force": True, "verify": "none", **options}
    result = onnxsep.rewrite(proto, mode=mode, **given)
    made = result.model.proto
    onnx.checker.check_model(made, full_check=True)
    assert run(made, feed)[0].shape == run(proto, feed)[0].shape
    assert np.isfinite(run(made, feed)[0]).all()
    old = {node.name: node for node in proto.graph.node}
    tensors = {one.name: one for one in proto.graph.initializer}
    new = set(result.new_initializers)
    stayed = [node for node in made.graph.node if node.name in old]
    assert stayed == [node for node in proto.graph.node if node.name in {one.name for one in stayed}]
    assert all(one == tensors[one.name] for one in made.graph.initializer if one.name not in new)
    gone = sum(
        len(row.notes[0].split("', ")) + 1 if row.notes else 1
        for row in result.report.convs
        if row.status == "replaced"
    )
    assert len(stayed) == len(old) - gone
    counted = sum(
        int(np.prod(one.dims)) for one in made.graph.initializer if one.dims and one.data_type == onnx.TensorProto.FLOAT
    )
    assert result.report.totals.parameters_after == counted
    again = onnxsep.rewrite(made, mode=mode, **{**given, "data": None})
    assert again.model.proto.SerializeToString() == made.SerializeToString()
    return result


def reasons(proto: onnx.ModelProto, mode: str, **options: Any) -> dict[str, str]:
    """Why each convolution is left alone."""
    report = onnxsep.rewrite(proto, mode=mode, **{"force": True, "verify": "none", **options}).report
    return {row.name: row.reason for row in report.convs}


shapes_of_residual_blocks = st.fixed_dictionaries(
    {
        "ci": st.sampled_from([4, 6]),
        "inner": st.sampled_from([4, 6]),
        "co": st.sampled_from([4, 6]),
        "bottleneck": st.booleans(),
        "stride": st.sampled_from([1, 2]),
        "form": st.sampled_from(ACTIVATIONS),
        "norm": st.booleans(),
        "skip": st.sampled_from(["auto", "conv"]),
    }
)
