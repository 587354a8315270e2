"""Forms of operators as exporters of CNNs write them, each in a small network that must train.

A network is Conv, the form, and a linear layer. A form is an operator with its attributes and inputs, and the opsets in
which it is valid; see :data:`FORMS`. ``test_operator_forms.py`` takes one opset for each version of the operator,
``benchmarks/training_operators.py`` all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxsep.errors import OnnxsepError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.training import to_torch
from onnxsep.training.conversion_checks import torch_threads

FIRST, LAST = 11, 24  # opsets
CLASSES = 5


class Network:
    """Nodes and weights of a network that grows; ``net(op, *inputs)`` adds a node and gives its output's name.

    Inputs are names, arrays, or None for one that is left out.
    """

    def __init__(self, opset: int, shape: tuple[int, ...]) -> None:
        self.opset, self.shape = opset, shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(3)

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        names = [self.name_of(value) for value in inputs]
        made = [f"t{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, name=f"{op}_{len(self.nodes)}", **attributes))
        return made[0] if outputs == 1 else made

    def name_of(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, scale: float = 0.3) -> np.ndarray:
        return (scale * self.random.standard_normal(shape)).astype(np.float32)

    def conv(self, x: str = "x", channels: int = 8) -> str:
        rank = len(self.shape) - 2
        self.weights.append(numpy_helper.from_array(self.weight(channels, self.shape[1], *[3] * rank), "kernel"))
        bias = np.linspace(-0.5, 0.5, channels).astype(np.float32)
        made: str = self("Conv", x, "kernel", bias, pads=[1] * 2 * rank)
        return made

    def model(self, **outputs: int) -> Model:
        values = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "form", [x], values, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 19 else 10))


@dataclass(frozen=True)
class Form:
    """A form of an operator.

    Attributes:
        op: The operator.
        build: Adds it behind a Conv, given the network and the Conv's output [2, 8, *positions], and gives a name of a
            float tensor.
        since: The first opset in which it is valid.
        until: The last one.
        note: What sets the form apart.
        shape: That of the network's input.
    """

    op: str
    build: Callable[[Network, str], str]
    since: int = FIRST
    until: int = LAST
    note: str = ""
    shape: tuple[int, ...] = (2, 3, 8, 6)

    @property
    def title(self) -> str:
        return f"{self.op} {self.note}".strip()

    def opsets(self) -> range:
        return range(max(self.since, FIRST), min(self.until, LAST, defs.onnx_opset_version()) + 1)

    def versions(self) -> list[int]:
        """One opset for each version of the operator."""
        found = {defs.get_schema(self.op, opset).since_version: opset for opset in reversed(self.opsets())}
        return sorted(found.values())


def network(form: Form, opset: int) -> Model:
    """The form between a Conv and a linear layer; the outputs are that layer's, ``y``, and the form's own."""
    net = Network(opset, form.shape)
    end = form.build(net, net.conv())
    shape = run(net.model(**{end: TensorProto.FLOAT}))[end].shape
    batched = len(shape) > 1 and shape[0] == form.shape[0]
    flat = net("Reshape", end, np.array([form.shape[0] if batched else 1, -1], np.int64))
    size = int(np.prod(shape)) // (form.shape[0] if batched else 1)
    net.nodes.append(helper.make_node("MatMul", [flat, net.name_of(net.weight(size, CLASSES))], ["y"]))
    return net.model(y=TensorProto.FLOAT, **{end: TensorProto.FLOAT})


def feeds(model: Model) -> dict[str, np.ndarray]:
    shape = [dim.dim_value for dim in model.proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}


def run(model: Model) -> dict[str, Any]:
    """Outputs in ONNX Runtime, or by ONNX's reference where the runtime lacks the operator."""
    try:
        return dict(Runner(model, RuntimeOptions(threads=1))(feeds(model)))
    except OnnxsepError:
        names = [value.name for value in model.proto.graph.output]
        return dict(zip(names, ReferenceEvaluator(model.proto).run(None, feeds(model)), strict=True))


def fault(model: Model) -> str:
    """What is wrong with the torch copy of a model: "" where it computes the same and its Conv learns."""
    with torch_threads(1):
        return _fault(model)


def _fault(model: Model) -> str:
    expected = run(model)
    try:
        graph = to_torch(model)
        found = graph.module(graph.tensors(feeds(model)))
    except OnnxsepError as error:
        return f"refused: {error}"
    for name, values in expected.items():
        ours = found[name].detach().numpy()
        if ours.shape != values.shape:
            return f"the shape of {name} is {ours.shape}, not {values.shape}"
        difference = float(np.abs(ours - values).max() / max(1.0, np.abs(values).max()))
        if not difference < 1e-4:
            return f"{name} differs by {difference:.2g}"
    found["y"].square().sum().backward()
    if "kernel" not in graph.parameters:
        return "the Conv's weight is not trained"
    gradient = graph.parameters["kernel"].grad
    if gradient is None or not bool(gradient.isfinite().all()) or not float(gradient.abs().max()) > 0:
        return "the Conv gets no gradient"
    return ""


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def grid(net: Network, *shape: int) -> np.ndarray:
    """Positions for GridSample, some of them outside."""
    return net.random.uniform(-1.3, 1.3, shape).astype(np.float32)


# ---------------------------------------------------------------- groups of forms


def _activations() -> Iterator[Form]:
    for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Atan"):
        yield Form(op, lambda net, x, op=op: net(op, x))  # type: ignore[misc]
    for op in ("Ceil", "Floor", "Round", "Sign"):  # their own gradient is 0
        yield Form(op, lambda net, x, op=op: net("Add", x, net(op, x)))  # type: ignore[misc]
    for op in ("Sqrt", "Log", "Reciprocal"):
        yield Form(op, lambda net, x, op=op: net(op, net("Exp", x)))  # type: ignore[misc]
    settings: list[tuple[str, int, dict[str, Any]]] = [
        *(("LeakyRelu", 11, {}), ("LeakyRelu", 11, {"alpha": 0.2}), ("Elu", 11, {}), ("Elu", 11, {"alpha": 0.5})),
        *(("Celu", 12, {"alpha": 2.0}), ("Selu", 11, {}), ("Selu", 11, {"alpha": 1.5, "gamma": 1.1})),
        *(("ThresholdedRelu", 11, {}), ("ThresholdedRelu", 11, {"alpha": 0.3}), ("HardSigmoid", 11, {})),
        *(("HardSigmoid", 11, {"alpha": 1 / 6, "beta": 0.5}), ("HardSwish", 14, {}), ("Mish", 18, {})),
        *(("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Swish", 24, {}), ("Swish", 24, {"alpha": 1.7})),
        *(("Shrink", 11, {"bias": 0.1, "lambd": 0.3}), ("Softmax", 11, {}), ("Softmax", 11, {"axis": 1})),
        *(("Softmax", 11, {"axis": -1}), ("LogSoftmax", 11, {}), ("LogSoftmax", 11, {"axis": 1})),
    ]
    for op, since, attributes in settings:
        note = " ".join(f"{key}={value}" for key, value in attributes.items())
        yield Form(op, lambda net, x, op=op, a=attributes: net(op, x, **a), since, note=note)  # type: ignore[misc]
    yield Form("PRelu", lambda net, x: net("PRelu", x, net.weight(8, 1, 1)), note="per channel")
    yield Form("PRelu", lambda net, x: net("PRelu", x, floats(0.2)), note="one slope")
    yield Form("PRelu", lambda net, x: net("PRelu", x, net.weight(8, 8, 6)), note="per element")
    yield Form("Clip", lambda net, x: net("Clip", x, scalar(0), scalar(6)), note="0..6")
    yield Form("Clip", lambda net, x: net("Clip", x, None, scalar(0.3)), note="max alone")
    yield Form("Clip", lambda net, x: net("Clip", x, scalar(-0.3)), note="min alone")
    yield Form("Hardmax", lambda net, x: net("Add", x, net("Hardmax", x, axis=1)), note="beside its input")


def _arithmetic() -> Iterator[Form]:
    for op in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"):
        yield Form(op, lambda net, x, op=op: net(op, x, net.weight(8, 1, 1)), note="per channel")  # type: ignore[misc]
    yield Form("Div", lambda net, x: net("Div", x, floats(0.5, 3)[:, None, None, None]), note="per sample")
    yield Form("Div", lambda net, x: net("Add", x, net("Cast", net("Div", ints(-7), ints(2)), to=1)), note="integers")
    yield Form("Max", lambda net, x: net("Max", x, net.weight(1, 8, 1, 6), net.weight(8, 8, 1)), note="three")
    yield Form("Mean", lambda net, x: net("Mean", x, net.weight(6), net.weight(8, 1, 1)), note="three")
    yield Form("Sum", lambda net, x: net("Sum", x), note="one")
    yield Form("Pow", lambda net, x: net("Pow", x, scalar(2)), note="2.0")
    yield Form("Pow", lambda net, x: net("Pow", x, np.array(3)), since=12, note="integer exponent")
    yield Form("Pow", lambda net, x: net("Pow", net("Exp", x), scalar(0.5)), note="0.5")
    yield Form("Mod", lambda net, x: net("Mod", x, scalar(0.7), fmod=1), note="fmod")
    yield Form("Mod", lambda net, x: net("Add", x, net("Cast", net("Mod", ints(-7), ints(3)), to=1)), note="integers")
    for op, since in (("Greater", 11), ("Less", 11), ("Equal", 11), ("GreaterOrEqual", 12), ("LessOrEqual", 12)):

        def chosen(net: Network, x: str, op: str = op) -> str:
            return str(net("Where", net(op, x, scalar(0.1)), x, net("Mul", x, scalar(0.1))))

        yield Form(op, chosen, since)
    for op in ("And", "Or", "Xor"):
        yield Form(
            op,
            lambda net, x, op=op: net(  # type: ignore[misc]
                "Where", net(op, net("Greater", x, scalar(0)), net("Less", x, scalar(0.5))), x, scalar(0)
            ),
        )
    yield Form("Not", lambda net, x: net("Mul", x, net("Cast", net("Not", net("Greater", x, scalar(0))), to=1)))
    yield Form("IsNaN", lambda net, x: net("Where", net("IsNaN", x), scalar(0), x), since=13)
    yield Form("IsInf", lambda net, x: net("Where", net("IsInf", x, detect_negative=0), scalar(0), x))
    yield Form("Where", lambda net, x: net("Where", np.array([True, False] * 3), x, scalar(-1)), note="constant mask")
    yield Form("Cast", lambda net, x: net("Mul", x, net("Cast", net("Cast", x, to=7), to=1)), note="to int64 and back")
    yield Form("Cast", lambda net, x: net("Mul", x, net("Cast", net("Greater", x, scalar(0)), to=1)), note="bool")
    yield Form("CastLike", lambda net, x: net("Mul", x, net("CastLike", net("Greater", x, scalar(0)), x)), since=15)
    yield Form("Identity", lambda net, x: net("Identity", x))


def _reductions() -> Iterator[Form]:
    positive = {"ReduceLogSum", "ReduceProd"}
    for op in (
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
    ):
        change = 13 if op == "ReduceSum" else 18  # axes became an input

        def attribute(net: Network, x: str, op: str = op) -> str:
            return str(net(op, net("Exp", x) if op in positive else x, axes=[2, -1], keepdims=0))

        def as_input(net: Network, x: str, op: str = op) -> str:
            return str(net(op, net("Exp", x) if op in positive else x, ints(2, -1)))

        def everything(net: Network, x: str, op: str = op) -> str:
            return str(net(op, net("Exp", x) if op in {"ReduceLogSum"} else x, keepdims=0))

        yield Form(op, attribute, until=change - 1, note="axes as attribute")
        yield Form(op, as_input, since=change, note="axes as input")
        if op != "ReduceProd":
            yield Form(op, everything, note="all axes")
    yield Form("ReduceSum", lambda net, x: net("ReduceSum", x, noop_with_empty_axes=1), 13, note="no axes, no change")
    for op in ("ArgMax", "ArgMin"):
        yield Form(op, lambda net, x, op=op: net("Mul", x, net("Cast", net(op, x, axis=1), to=1)))  # type: ignore[misc]
    yield Form(
        "ArgMax",
        lambda net, x: net("Mul", x, net("Cast", net("ArgMax", net("Round", x), axis=2, select_last_index=1), to=1)),
        since=12,
        note="last of equal ones",
    )
    yield Form("TopK", lambda net, x: net("TopK", x, ints(3), outputs=2)[0])
    yield Form("TopK", lambda net, x: net("TopK", x, ints(3), outputs=2, axis=1, largest=0)[0], note="smallest")
    yield Form(
        "TopK", lambda net, x: net("GatherElements", x, net("TopK", x, ints(2), outputs=2)[1], axis=3), note="2nd"
    )
    yield Form("CumSum", lambda net, x: net("CumSum", x, np.array(2)))
    yield Form("CumSum", lambda net, x: net("CumSum", x, np.array(-1), exclusive=1, reverse=1), note="both flags")
    yield Form("LpNormalization", lambda net, x: net("LpNormalization", x, axis=1, p=2))
    yield Form("LpNormalization", lambda net, x: net("LpNormalization", x, p=1), note="p=1")


def _norms() -> Iterator[Form]:
    def batch(net: Network, x: str, **attributes: Any) -> str:
        statistics = net.weight(8), net.random.uniform(0.5, 2, 8).astype(np.float32)
        return str(net("BatchNormalization", x, net.weight(8), net.weight(8), *statistics, **attributes))

    def centred(net: Network, x: str) -> str:
        return str(net("Mul", net("MeanVarianceNormalization", x), net.weight(8, 8, 6)))

    yield Form("BatchNormalization", batch)
    yield Form("BatchNormalization", lambda net, x: batch(net, x, epsilon=1e-3, momentum=0.8), note="epsilon")
    yield Form("InstanceNormalization", lambda net, x: net("InstanceNormalization", x, net.weight(8), net.weight(8)))
    yield Form(
        "GroupNormalization",
        lambda net, x: net("GroupNormalization", x, net.weight(2), net.weight(2), num_groups=2),
        18,
        20,
        "one scale for each group",
    )
    yield Form(
        "GroupNormalization",
        lambda net, x: net("GroupNormalization", x, net.weight(8), net.weight(8), num_groups=4, epsilon=1e-3),
        21,
        note="one scale for each channel",
    )
    yield Form("LayerNormalization", lambda net, x: net("LayerNormalization", x, net.weight(6), net.weight(6)), 17)
    yield Form(
        "LayerNormalization",
        lambda net, x: net("LayerNormalization", x, net.weight(8, 8, 6), axis=1),
        17,
        note="axis=1",
    )
    yield Form(
        "LayerNormalization",
        lambda net, x: net("Mul", *net("LayerNormalization", x, net.weight(6), net.weight(6), outputs=2)),
        17,
        note="with mean",
    )
    yield Form("RMSNormalization", lambda net, x: net("RMSNormalization", x, net.weight(6)), 23)
    yield Form(
        "RMSNormalization", lambda net, x: net("RMSNormalization", x, net.weight(8, 8, 6), axis=1), 23, note="axis=1"
    )
    yield Form("MeanVarianceNormalization", centred)
    yield Form("LRN", lambda net, x: net("LRN", x, size=5, alpha=1e-2, beta=0.6))
    yield Form("Dropout", lambda net, x: net("Dropout", x), note="plain")
    yield Form("Dropout", lambda net, x: net("Dropout", x, scalar(0.4)), 12, note="ratio as input")
    yield Form(
        "Dropout", lambda net, x: net("Where", net("Dropout", x, outputs=2)[1], scalar(3), x), until=11, note="mask"
    )
    yield Form("Dropout", lambda net, x: net("Where", net("Dropout", x, outputs=2)[1], x, scalar(0)), 12, note="mask")


def _shapes() -> Iterator[Form]:
    yield Form("Reshape", lambda net, x: net("Reshape", x, ints(0, -1)), note="0 and -1")
    yield Form("Reshape", lambda net, x: net("Reshape", x, ints(-1, 384), allowzero=1), 14, note="allowzero")
    yield Form("Reshape", lambda net, x: net("Reshape", x, net("Shape", x)), note="computed")
    for axis in (0, 1, 2, -1, 4):
        yield Form("Flatten", lambda net, x, a=axis: net("Flatten", x, axis=a), note=f"axis={axis}")  # type: ignore[misc]
    yield Form("Transpose", lambda net, x: net("Transpose", x, perm=[0, 2, 3, 1]), note="to channels last")
    yield Form("Transpose", lambda net, x: net("Transpose", x), note="reversed")
    yield Form(
        "Squeeze", lambda net, x: net("Squeeze", net("GlobalMaxPool", x), axes=[2, 3]), until=12, note="attribute"
    )
    yield Form("Squeeze", lambda net, x: net("Squeeze", net("GlobalMaxPool", x), ints(2, -1)), 13, note="input")
    yield Form("Squeeze", lambda net, x: net("Squeeze", net("GlobalMaxPool", x)), note="all")
    yield Form("Unsqueeze", lambda net, x: net("Unsqueeze", x, axes=[0, -1]), until=12, note="attribute")
    yield Form("Unsqueeze", lambda net, x: net("Unsqueeze", x, ints(1, -1)), 13, note="input")
    yield Form("Expand", lambda net, x: net("Expand", net("GlobalMaxPool", x), ints(2, 8, 4, 3)))
    yield Form("Expand", lambda net, x: net("Expand", x, ints(3, 1, 1, 1, 1)), note="more axes")
    yield Form("Tile", lambda net, x: net("Tile", x, ints(1, 2, 1, 3)))
    yield Form("Concat", lambda net, x: net("Concat", x, net.weight(2, 3, 8, 6), x, axis=1))
    yield Form("Concat", lambda net, x: net("Concat", x, x, axis=-1), note="axis=-1")
    yield Form("Split", lambda net, x: net("Split", x, outputs=2, axis=1)[1], until=17, note="equal")
    yield Form("Split", lambda net, x: net("Split", x, outputs=2, axis=1, split=[3, 5])[1], until=12, note="attribute")
    yield Form("Split", lambda net, x: net("Split", x, ints(3, 5), outputs=2, axis=1)[1], 13, note="input")
    yield Form("Split", lambda net, x: net("Split", x, outputs=2, axis=1, num_outputs=2)[0], 18, note="num_outputs")
    yield Form("Split", lambda net, x: net("Split", x, outputs=3, axis=1, num_outputs=3)[2], 18, note="uneven")
    for mode, last in (("constant", 24), ("reflect", 24), ("edge", 24), ("wrap", 24)):
        since = 19 if mode == "wrap" else 11
        yield Form(
            "Pad",
            lambda net, x, m=mode: net("Pad", x, ints(0, 0, 1, 2, 0, 0, 3, 1), mode=m),  # type: ignore[misc]
            since,
            last,
            mode,
        )
    yield Form("Pad", lambda net, x: net("Pad", x, ints(0, 0, -1, 2, 0, 0, 3, -1), scalar(0.5)), note="value, negative")
    yield Form("Pad", lambda net, x: net("Pad", x, ints(1, 2), None, ints(-1)), 18, note="axes")
    yield Form(
        "Pad",
        lambda net, x: net("Pad", x, ints(1, 1, 2, 0), None, ints(2, 3), mode="reflect"),
        18,
        note="axes, reflect",
    )
    yield Form("Slice", lambda net, x: net("Slice", x, ints(1), ints(4), ints(2)))
    yield Form("Slice", lambda net, x: net("Slice", x, ints(0, 1), ints(99, 99), ints(2, -1), ints(2, 2)), note="steps")
    yield Form("Slice", lambda net, x: net("Slice", x, ints(-1), ints(-99), ints(3), ints(-1)), note="backwards")
    yield Form("Slice", lambda net, x: net("Slice", x, ints(0, 2), ints(2, 6)), note="no axes")
    yield Form("CenterCropPad", lambda net, x: net("CenterCropPad", x, ints(5, 9), axes=[2, 3]), 18)
    yield Form("CenterCropPad", lambda net, x: net("CenterCropPad", x, ints(2, 7, 9, 6)), 18, note="all axes")
    yield Form("Trilu", lambda net, x: net("Trilu", x), 14)
    yield Form("Trilu", lambda net, x: net("Trilu", x, np.array(1), upper=0), 14, note="lower")
    for mode in ("DCR", "CRD"):
        yield Form(
            "DepthToSpace",
            lambda net, x, m=mode: net("DepthToSpace", x, blocksize=2, mode=m),  # type: ignore[misc]
            note=mode,
        )
    yield Form("SpaceToDepth", lambda net, x: net("SpaceToDepth", x, blocksize=2))
    yield Form("Shape", lambda net, x: net("Mul", x, net("Cast", net("ReduceMax", net("Shape", x), keepdims=0), to=1)))
    yield Form("Shape", lambda net, x: net("Reshape", x, net("Concat", net("Shape", x, end=1), ints(-1), axis=0)), 15)
    yield Form("Size", lambda net, x: net("Div", x, net("Cast", net("Size", x), to=1)))
    yield Form("ConstantOfShape", lambda net, x: net("Sub", net("ConstantOfShape", net("Shape", x)), x))
    half = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    yield Form(
        "ConstantOfShape",
        lambda net, x: net("Mul", net("ConstantOfShape", net("Shape", x), value=half), x),
        note="value",
    )
    yield Form("Range", lambda net, x: net("Mul", x, net("Range", scalar(0.5), scalar(6.2), scalar(1))), note="floats")
    yield Form("EyeLike", lambda net, x: net("MatMul", x, net("EyeLike", net.weight(6, 6), k=1)))
    yield Form(
        "SequenceConstruct",
        lambda net, x: net("ConcatFromSequence", net("SequenceConstruct", x, net("Neg", x)), axis=1),
        note="and ConcatFromSequence",
    )
    yield Form(
        "SplitToSequence",
        lambda net, x: net("SequenceAt", net("SplitToSequence", x, ints(3, 5), axis=1), np.array(1)),
        note="and SequenceAt",
    )
    yield Form(
        "SplitToSequence",
        lambda net, x: net("ConcatFromSequence", net("SplitToSequence", x, axis=3, keepdims=0), axis=1, new_axis=1),
        note="single, stacked",
    )
    yield Form("ReverseSequence", lambda net, x: net("ReverseSequence", x, ints(3, 5), time_axis=1, batch_axis=0))
    yield Form("If", _squeezed, note="a squeeze as TorchScript exports it")
    yield Form("If", _constant_branch, note="constant condition")


def _squeezed(net: Network, x: str) -> str:
    pooled = net("GlobalMaxPool", x)
    size = net("Gather", net("Shape", pooled), np.array(2))
    squeeze = Network(net.opset, net.shape)
    squeeze.nodes = [helper.make_node("Identity", [pooled], ["same_then"])]
    then = helper.make_graph(
        squeeze.nodes, "then", [], [helper.make_tensor_value_info("same_then", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [pooled], ["n"]), helper.make_node("Relu", ["n"], ["same_else"])],
        "else",
        [],
        [helper.make_tensor_value_info("same_else", TensorProto.FLOAT, None)],
    )
    return str(net("If", net("Equal", size, np.array(1)), then_branch=then, else_branch=other))


def _constant_branch(net: Network, x: str) -> str:
    kernel = numpy_helper.from_array(net.weight(8, 8, 1, 1), "branch_kernel")
    then = helper.make_graph(
        [helper.make_node("Conv", [x, "branch_kernel"], ["c"]), helper.make_node("Relu", ["c"], ["r"])],
        "then",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        [kernel],
    )
    other = helper.make_graph(
        [helper.make_node("Hardmax", [x], ["o"])],
        "else",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    return str(net("If", np.array(True), then_branch=then, else_branch=other))


def _indices() -> Iterator[Form]:
    yield Form("Gather", lambda net, x: net("Gather", x, ints(3, -1, 0), axis=1))
    yield Form("Gather", lambda net, x: net("Gather", x, np.array(2), axis=2), note="one index")
    yield Form("Gather", lambda net, x: net("Gather", x, np.array([[0, 1], [5, -6]]), axis=-1), note="two axes")
    places = np.random.default_rng(0).integers(-6, 6, (2, 8, 8, 3))
    yield Form("GatherElements", lambda net, x: net("GatherElements", x, places, axis=3))
    yield Form("GatherND", lambda net, x: net("GatherND", x, np.array([[0, 1], [1, -1]])))
    yield Form(
        "GatherND", lambda net, x: net("GatherND", x, np.array([[[1, 2]], [[-1, 0]]]), batch_dims=1), 12, note="batch"
    )
    distinct = np.tile(np.array([4, 0, 2]), (2, 8, 8, 1))
    for reduction, since in (("none", 11), ("add", 16), ("mul", 16), ("max", 18), ("min", 18)):
        extra = {} if reduction == "none" else {"reduction": reduction}
        yield Form(
            "ScatterElements",
            lambda net, x, e=extra: net(  # type: ignore[misc]
                "ScatterElements", x, distinct, net.weight(2, 8, 8, 3), axis=3, **e
            ),
            since,
            note=reduction,
        )
        yield Form(
            "ScatterND",
            lambda net, x, e=extra: net(  # type: ignore[misc]
                "ScatterND", x, np.array([[0, 1], [1, -1]]), net.weight(2, 8, 6), **e
            ),
            since,
            note=reduction,
        )

    def encoded(net: Network, x: str, axis: int) -> str:
        hot = net("OneHot", net("ArgMax", x, axis=1, keepdims=0), np.array(8), floats(0, 1), axis=axis)
        return str(net("Mul", net("Transpose", x, perm=[0, 2, 3, 1]) if axis == -1 else x, hot))

    yield Form("OneHot", lambda net, x: encoded(net, x, -1))
    yield Form("OneHot", lambda net, x: encoded(net, x, 1), note="axis=1")
    yield Form("Compress", lambda net, x: net("Compress", x, np.array([True, False, True]), axis=2))
    yield Form(
        "NonZero", lambda net, x: net("GatherND", x, net("Transpose", net("NonZero", np.eye(2, 8, dtype=np.float32))))
    )
    yield Form("NonMaxSuppression", _suppressed)


def _suppressed(net: Network, x: str) -> str:
    """Boxes from the Conv, of which a detector picks some."""
    boxes = net("Reshape", x, ints(1, -1, 4))
    scores = net("Reshape", net("Slice", x, ints(0), ints(1), ints(0)), ints(1, 2, 192))
    wide = net("Concat", boxes, axis=1)
    scores = net("Slice", scores, ints(0), ints(192), ints(2))
    picked = net("NonMaxSuppression", wide, scores, np.array(3), scalar(0.5), scalar(-9))
    places = net("Gather", picked, np.array(2), axis=1)
    return str(net("Gather", boxes, places, axis=1))


def _matrices() -> Iterator[Form]:
    def flat(net: Network, x: str) -> str:
        return str(net("Flatten", net("GlobalMaxPool", x)))

    yield Form("Gemm", lambda net, x: net("Gemm", flat(net, x), net.weight(5, 8), net.weight(5), transB=1))
    yield Form(
        "Gemm",
        lambda net, x: net("Gemm", flat(net, x), net.weight(2, 5), net.weight(5), transA=1, alpha=0.5, beta=2.0),
        note="alpha, beta, transA",
    )
    yield Form("Gemm", lambda net, x: net("Gemm", flat(net, x), net.weight(8, 5)), note="no bias")
    yield Form("MatMul", lambda net, x: net("MatMul", x, net.weight(6, 4)))
    yield Form("MatMul", lambda net, x: net("MatMul", x, net("Transpose", x, perm=[0, 1, 3, 2])), note="batches")
    yield Form("MatMul", lambda net, x: net("MatMul", net.weight(8, 3, 8), x), note="broadcast")
    yield Form("MatMul", lambda net, x: net("MatMul", x, net.weight(6)), note="vector")
    yield Form("Einsum", lambda net, x: net("Einsum", x, net.weight(8, 4), equation="nchw,cd->ndhw"), 12)
    yield Form("Einsum", lambda net, x: net("Einsum", x, x, equation="...hw, ...hv -> ...wv"), 12, note="ellipsis")
    yield Form("Det", lambda net, x: net("Det", net("Slice", x, ints(0), ints(6), ints(2))))
    yield Form("Attention", lambda net, x: net("Attention", x, x, x), 23)
    yield Form(
        "Attention", lambda net, x: net("Attention", x, x, net("Neg", x), is_causal=1, scale=0.3), 23, note="causal"
    )

    def heads(net: Network, x: str) -> str:
        rows = net("Reshape", x, ints(0, 8, 48))
        mask = np.tril(np.ones((8, 8), bool))
        keys = net("Slice", rows, ints(0), ints(24), ints(2))
        return str(net("Attention", rows, keys, keys, mask, q_num_heads=4, kv_num_heads=2))

    yield Form("Attention", heads, 23, note="shared heads, mask")
    for op, gates, outputs in (("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)):
        for direction in ("forward", "reverse", "bidirectional"):
            count = 2 if direction == "bidirectional" else 1

            def columns(
                net: Network,
                x: str,
                op: str = op,
                gates: int = gates,
                outputs: int = outputs,
                d: str = direction,
                n: int = count,
            ) -> str:
                """Columns of the image one after the other, as in a text reader."""
                steps = net("Transpose", net("Reshape", x, ints(0, 64, 6)), perm=[2, 0, 1])
                weights = net.weight(n, 5 * gates, 64), net.weight(n, 5 * gates, 5), net.weight(n, 10 * gates)
                return str(net(op, steps, *weights, outputs=outputs, direction=d, hidden_size=5)[0])

            yield Form(op, columns, note=direction)

    def states(net: Network, x: str) -> str:
        steps = net("Transpose", net("Reshape", x, ints(0, 64, 6)), perm=[2, 0, 1])
        weights = net.weight(1, 15, 64), net.weight(1, 15, 5), net.weight(1, 30)
        given = (None, net.weight(1, 2, 5))
        return str(net("GRU", steps, *weights, *given, outputs=2, hidden_size=5, linear_before_reset=1)[1])

    yield Form("GRU", states, note="linear_before_reset, first and last state")


def _windows() -> Iterator[Form]:
    def conv(note: str, kernel: tuple[int, ...], shape: tuple[int, ...] = (2, 3, 8, 6), **attributes: Any) -> Form:
        return Form("Conv", lambda net, x: net("Conv", x, net.weight(*kernel), **attributes), note=note, shape=shape)

    yield conv("strides, pads", (4, 8, 3, 2), strides=[2, 1], pads=[1, 0, 2, 1])
    yield conv("groups, dilations", (8, 2, 3, 3), group=4, dilations=[2, 1], pads=[2, 1, 2, 1], kernel_shape=[3, 3])
    yield conv("SAME_UPPER", (4, 8, 3, 2), auto_pad="SAME_UPPER", strides=[2, 3])
    yield conv("SAME_LOWER", (4, 8, 4, 2), auto_pad="SAME_LOWER")
    yield conv("VALID", (4, 8, 3, 3), auto_pad="VALID")
    yield conv("1-D", (4, 8, 3), (2, 3, 12), pads=[2, 0])
    yield conv("3-D", (4, 8, 3, 1, 2), (1, 3, 5, 4, 4), pads=[1, 0, 1, 1, 0, 0])

    def back(note: str, kernel: tuple[int, ...], shape: tuple[int, ...] = (2, 3, 8, 6), **attributes: Any) -> Form:
        def build(net: Network, x: str) -> str:
            bias = net.weight(kernel[1] * attributes.get("group", 1))
            return str(net("ConvTranspose", x, net.weight(*kernel), bias, **attributes))

        return Form("ConvTranspose", build, note=note, shape=shape)

    yield back("strides, pads", (8, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    yield back("unequal pads", (8, 4, 4, 3), strides=[2, 1], pads=[1, 0, 0, 2])
    yield back("groups, dilations", (8, 2, 3, 3), group=2, dilations=[2, 1])
    yield back("SAME_UPPER", (8, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    yield back("SAME_LOWER", (8, 4, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3])
    yield back("output_shape", (8, 4, 3, 3), output_shape=[16, 12], strides=[2, 2])
    yield back("output_shape, uneven", (8, 4, 4, 3), output_shape=[17, 11], strides=[2, 2], auto_pad="SAME_UPPER")
    yield back("1-D", (8, 4, 3), (2, 3, 12), strides=[3])
    yield back("3-D", (8, 2, 2, 2, 2), (1, 3, 3, 3, 2), strides=[2, 2, 2])

    def pool(op: str, note: str, since: int = 11, shape: tuple[int, ...] = (2, 3, 8, 6), **attributes: Any) -> Form:
        return Form(op, lambda net, x: net(op, x, **attributes), since, note=note, shape=shape)

    for op in ("MaxPool", "AveragePool", "LpPool"):
        yield pool(op, "plain", kernel_shape=[2, 2], strides=[2, 2])
        yield pool(op, "pads", kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 0, 1])
        yield pool(op, "SAME_UPPER", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")
        yield pool(op, "SAME_LOWER", kernel_shape=[2, 2], auto_pad="SAME_LOWER")
        since = 18 if op == "LpPool" else 11
        yield pool(op, "ceil_mode", since, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        yield pool(op, "ceil_mode, pads", since, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1])
        since = {"MaxPool": 11, "AveragePool": 19, "LpPool": 18}[op]
        yield pool(op, "dilations", since, kernel_shape=[3, 2], dilations=[2, 2], strides=[1, 2])
        yield pool(op, "1-D", shape=(2, 3, 12), kernel_shape=[4], strides=[3])
        yield pool(op, "3-D", shape=(1, 3, 4, 4, 5), kernel_shape=[2, 2, 3])
    yield pool("AveragePool", "count_include_pad", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    yield pool("AveragePool", "count_include_pad, unequal", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1)
    yield pool("LpPool", "p=1", kernel_shape=[2, 3], p=1)
    yield pool("LpPool", "p=3", kernel_shape=[2, 3], p=3)
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield pool(op, "")
    for p in (2, 3):  # the runtime has no version 22
        yield Form("GlobalLpPool", lambda net, x, p=p: net("GlobalLpPool", x, p=p), until=21, note=f"p={p}")  # type: ignore[misc]

    def numbered(net: Network, x: str, **attributes: Any) -> str:
        values, places = net("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2], **attributes)
        return str(net("Mul", values, net("Cast", places, to=1)))

    yield Form("MaxPool", numbered, note="Indices")
    yield Form("MaxPool", lambda net, x: numbered(net, x, pads=[1, 0, 1, 1]), note="Indices, pads")
    yield Form("MaxPool", lambda net, x: numbered(net, x, storage_order=1), note="Indices by column")
    yield Form(
        "MaxUnpool",
        lambda net, x: net(
            "MaxUnpool",
            *net("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2]),
            kernel_shape=[2, 2],
            strides=[2, 2],
        ),
    )
    yield Form(
        "Col2Im",
        lambda net, x: net("Col2Im", net("Reshape", x, ints(2, 16, 24)), ints(5, 9), ints(2, 4)),
        18,
    )
    yield Form(
        "Col2Im",
        lambda net, x: net(
            "Col2Im", net("Reshape", x, ints(2, 32, 12)), ints(5, 5), ints(2, 2), strides=[2, 1], pads=[1, 0, 0, 0]
        ),
        18,
        note="strides, pads",
    )

    def deformed(net: Network, x: str, mask: bool, **attributes: Any) -> str:
        groups = attributes.get("offset_group", 1)
        offsets = net("Conv", x, net.weight(18 * groups, 8, 3, 3), pads=[1] * 4)
        inputs = [x, net.weight(4, 8 // attributes.get("group", 1), 3, 3), offsets, net.weight(4)]
        if mask:
            inputs.append(net("Sigmoid", net("Conv", x, net.weight(9 * groups, 8, 3, 3), pads=[1] * 4)))
        return str(net("DeformConv", *inputs, pads=[1] * 4, **attributes))

    yield Form("DeformConv", lambda net, x: deformed(net, x, False), 19)
    yield Form("DeformConv", lambda net, x: deformed(net, x, True, offset_group=2, group=2), 19, note="mask, groups")


def _sizes() -> Iterator[Form]:
    modes: dict[str, tuple[str, ...]] = {
        "nearest": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
        "linear": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
        "cubic": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
    }

    def resize(note: str, *inputs: Any, since: int = 11, until: int = 24, **attributes: Any) -> Form:
        def build(net: Network, x: str) -> str:
            empty = [floats() if value is None and net.opset < 13 else value for value in inputs]  # not optional then
            return str(net("Resize", x, *empty, **attributes))

        return Form("Resize", build, since, until, note)

    for mode, coordinates in modes.items():
        for how in coordinates:
            extra: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": how}
            yield resize(f"{mode} {how} x2", None, floats(1, 1, 2, 2), **extra)
            yield resize(f"{mode} {how} to size", None, None, ints(2, 8, 5, 9), **extra)
        yield resize(f"{mode} default smaller", None, floats(1, 1, 0.6, 0.5), mode=mode)
        yield resize(
            f"{mode} half_pixel_symmetric",
            *(None, floats(1, 1, 1.3, 0.7)),
            since=19,
            mode=mode,
            coordinate_transformation_mode="half_pixel_symmetric",
        )
    for nearest in ("round_prefer_ceil", "floor", "ceil"):
        yield resize(f"nearest {nearest}", None, floats(1, 1, 1.5, 2.5), mode="nearest", nearest_mode=nearest)
    yield resize(
        "nearest asymmetric floor x2",
        *(None, floats(1, 1, 2, 2)),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    yield resize(
        "nearest tf_half_pixel_for_nn",
        *(None, floats(1, 1, 2, 2)),
        until=12,
        mode="nearest",
        coordinate_transformation_mode="tf_half_pixel_for_nn",
    )
    yield resize("cubic coefficient", None, floats(1, 1, 2, 2), mode="cubic", cubic_coeff_a=-0.5)
    yield resize("cubic exclude_outside", None, floats(1, 1, 2, 2), mode="cubic", exclude_outside=1)
    yield resize("axes", None, None, ints(5, 9), since=18, mode="linear", axes=[2, 3])
    yield resize("axes, scales", None, floats(2, 0.5), since=18, mode="nearest", axes=[2, 3])
    for policy in ("not_larger", "not_smaller"):
        yield resize(
            policy, None, None, ints(12, 7), since=18, axes=[2, 3], keep_aspect_ratio_policy=policy, mode="linear"
        )
    for mode in ("linear", "cubic"):
        yield resize(f"{mode} antialias", None, floats(1, 1, 0.5, 0.4), since=18, mode=mode, antialias=1)
        yield resize(f"{mode} antialias to size", None, None, ints(2, 8, 3, 9), since=18, mode=mode, antialias=1)
        yield resize(
            f"{mode} antialias exclude_outside",
            *(None, floats(1, 1, 0.5, 0.6)),
            since=18,
            mode=mode,
            antialias=1,
            exclude_outside=1,
        )
    yield resize(
        "tf_crop_and_resize",
        *(floats(0, 0, 0.1, -0.2, 1, 1, 0.8, 1.2), None, ints(2, 8, 5, 7)),
        mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize",
        extrapolation_value=2.0,
    )
    cubes = (1, 3, 4, 4, 3)
    yield Form(
        "Resize",
        lambda net, x: net("Resize", x, floats(), floats(1, 1, 2, 2, 2), mode="linear"),
        note="3-D linear",
        shape=cubes,
    )
    yield Form(
        "Resize",
        lambda net, x: net("Resize", x, floats(), floats(1, 1, 2, 1, 3), mode="nearest"),
        note="3-D",
        shape=cubes,
    )
    yield Form(
        "Resize", lambda net, x: net("Resize", x, floats(), floats(1, 1, 2), mode="linear"), note="1-D", shape=(2, 3, 9)
    )
    yield Form(
        "Resize",
        lambda net, x: net("Resize", x, floats(), floats(1, 2, 2, 1), mode="linear"),
        note="channels last, linear",
    )
    images = ("linear", "nearest", "cubic")
    for since, until, names in ((16, 19, ("bilinear", "nearest", "bicubic")), (20, 24, images)):
        for name in names:
            for padding in ("zeros", "border", "reflection"):
                for corners in (0, 1):
                    yield Form(
                        "GridSample",
                        lambda net, x, a=(name, padding, corners): net(  # type: ignore[misc]
                            "GridSample", x, grid(net, 2, 5, 4, 2), mode=a[0], padding_mode=a[1], align_corners=a[2]
                        ),
                        since,
                        until,
                        f"{name} {padding} {corners}",
                    )
    yield Form("GridSample", lambda net, x: net("GridSample", x, grid(net, 1, 3, 3, 3, 3)), 20, note="3-D", shape=cubes)
    yield Form(
        "AffineGrid",
        lambda net, x: net("GridSample", x, net("AffineGrid", net.weight(2, 2, 3), ints(2, 8, 5, 5))),
        20,
    )


def _value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _loop(net: Network, x: str, *, limit: Any, until: float | None = None) -> str:
    """Conv and addition again and again; all that came between is stacked."""
    kernel = numpy_helper.from_array(net.weight(8, 8, 1, 1), "loop_kernel")
    nodes = [
        helper.make_node("Conv", ["state", "loop_kernel"], ["changed"]),
        helper.make_node("Add", ["changed", x], ["next"]),
        helper.make_node("GlobalMaxPool", ["next"], ["largest"]),
        helper.make_node("Identity", ["goes" if until is None else "below"], ["again"]),
    ]
    weights = [kernel]
    if until is not None:
        weights.append(numpy_helper.from_array(scalar(until), "until"))
        nodes[3:3] = [
            helper.make_node("ReduceMax", ["largest"], ["top"], keepdims=0),
            helper.make_node("Less", ["top", "until"], ["below"]),
        ]
    body = helper.make_graph(
        nodes,
        "body",
        [_value("count", TensorProto.INT64, []), _value("goes", TensorProto.BOOL, []), _value("state")],
        [_value("again", TensorProto.BOOL, []), _value("next"), _value("largest")],
        weights,
    )
    last, rows = net("Loop", limit, np.array(True), x, outputs=2, body=body)
    return str(net("Mul", last, net("ReduceMax", rows)))


def _listed(net: Network, x: str) -> str:
    """A list that grows in a loop, as TorchScript exports it."""
    body = helper.make_graph(
        [
            helper.make_node("Gather", [x, "count"], ["row"], axis=1),
            helper.make_node("SequenceInsert", ["list", "row"], ["longer"]),
            helper.make_node("Identity", ["goes"], ["again"]),
        ],
        "body",
        [
            _value("count", TensorProto.INT64, []),
            _value("goes", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
        ],
        [
            _value("again", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("longer", TensorProto.FLOAT, None),
        ],
    )
    grown = net("Loop", np.array(3), np.array(True), net("SequenceEmpty"), body=body)
    return str(net("ConcatFromSequence", grown, axis=1, new_axis=1))


def _scan(net: Network, x: str, **attributes: Any) -> str:
    """Running sums along an axis."""
    body = helper.make_graph(
        [helper.make_node("Add", ["sum", "slice"], ["more"]), helper.make_node("Neg", ["more"], ["less"])],
        "body",
        [_value("sum"), _value("slice")],
        [_value("more"), _value("less")],
    )
    start = net("Mul", net("ReduceMax", x, axes=[attributes.get("scan_input_axes", [0])[0]], keepdims=0), scalar(0))
    last, rows = net("Scan", start, x, outputs=2, body=body, num_scan_inputs=1, **attributes)
    return str(net("Concat", net("Flatten", last), net("Flatten", rows), axis=1)) if attributes else str(rows)


def _nested() -> Iterator[Form]:
    yield Form("Loop", lambda net, x: _loop(net, x, limit=np.array(3)), note="a number of times")
    yield Form("Loop", lambda net, x: _loop(net, x, limit=None, until=3.0), note="until a condition fails")
    yield Form("Loop", _listed, 13, note="that makes a list")
    yield Form("Scan", _scan, until=17)
    yield Form(
        "Scan",
        lambda net, x: _scan(
            net,
            x,
            scan_input_axes=[2],
            scan_input_directions=[1],
            scan_output_axes=[1],
            scan_output_directions=[1],
        ),
        until=17,
        note="axes, backwards",
    )


def _regions() -> Iterator[Form]:
    corners = np.array([[0, 0, 4, 4], [1.5, 2, 5, 7.5], [-2, 3, 9, 5], [3, 3, 3, 3]], np.float32)
    for note, since, attributes in (
        ("defaults", 11, {}),
        ("adaptive", 11, {"output_height": 3, "output_width": 2, "spatial_scale": 0.5}),
        ("old corners", 16, {"output_height": 2, "coordinate_transformation_mode": "output_half_pixel"}),
        ("sampling_ratio", 16, {"output_height": 2, "output_width": 2, "sampling_ratio": 3}),
    ):
        yield Form(
            "RoiAlign",
            lambda net, x, a=attributes: net("RoiAlign", x, corners, ints(0, 1, 1, 0), **a),  # type: ignore[misc]
            since,
            21,
            note,
        )
    yield Form("Optional", lambda net, x: net("OptionalGetElement", net("Optional", x)), 15)


def _batch_statistics(net: Network, x: str) -> str:
    given = net.weight(8), net.weight(8), net.weight(8), net.random.uniform(0.5, 2, 8).astype(np.float32)
    y, mean, variance = net("BatchNormalization", x, *given, outputs=3, training_mode=1, momentum=0.7)
    return str(net("Add", y, net("Reshape", net("Mul", mean, variance), ints(8, 1, 1))))


FORMS: tuple[Form, ...] = (
    *_activations(),
    *_arithmetic(),
    *_reductions(),
    *_norms(),
    *_shapes(),
    *_indices(),
    *_matrices(),
    *_windows(),
    *_sizes(),
    *_nested(),
    *_regions(),
    Form("BatchNormalization", _batch_statistics, 14, note="training_mode"),
)
OLD: tuple[Form, ...] = (  # of opsets before the sweep's
    Form("Upsample", lambda net, x: net("Upsample", x, scales=[1.0, 1.0, 2.0, 2.0]), 7, 8, "attribute"),
    Form(
        "Upsample", lambda net, x: net("Upsample", x, scales=[1.0, 1.0, 2, 3], mode="linear"), 7, 8, "linear, attribute"
    ),
    Form("Upsample", lambda net, x: net("Upsample", x, floats(1, 1, 2, 3), mode="nearest"), 9, 9, "nearest"),
    Form("Upsample", lambda net, x: net("Upsample", x, floats(1, 1, 2, 2), mode="linear"), 9, 9, "linear"),
    Form("Resize", lambda net, x: net("Resize", x, floats(1, 1, 2, 2), mode="nearest"), 10, 10, "nearest"),
    Form("Resize", lambda net, x: net("Resize", x, floats(1, 1, 0.6, 0.5), mode="nearest"), 10, 10, "nearest smaller"),
    Form("Resize", lambda net, x: net("Resize", x, floats(1, 1, 1.5, 2), mode="linear"), 10, 10, "linear"),
    Form("Slice", lambda net, x: net("Slice", x, starts=[1, 0], ends=[4, -1], axes=[2, 3]), 7, 9, "attributes"),
    Form("Clip", lambda net, x: net("Clip", x, min=0.0, max=1.0), 7, 10, "attributes"),
    Form("Pad", lambda net, x: net("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"), 7, 10, "attributes"),
    Form("TopK", lambda net, x: net("TopK", x, outputs=2, k=2)[0], 7, 9, "attribute"),
    Form("Dropout", lambda net, x: net("Dropout", x, ratio=0.3), 7, 10, "attribute"),
    Form(
        "Scatter",
        lambda net, x: net("Scatter", x, np.tile(ints(4, 0), (2, 8, 8, 1)), net.weight(2, 8, 8, 2), axis=3),
        9,
        10,
    ),
    Form("PRelu", lambda net, x: net("PRelu", x, net.weight(8, 1, 1)), 7, 8),
    Form("Gemm", lambda net, x: net("Gemm", net("Flatten", x), net.weight(384, 5), net.weight(5)), 7, 10),
)
