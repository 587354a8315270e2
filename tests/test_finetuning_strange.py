"""Fine-tuning on networks as other exporters write them: the weights that are noisy come nearer to the teacher's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, defs, helper, numpy_helper
from operator_forms import FORMS, Network, floats, ints, network, scalar

import onnxsep
from onnxsep.errors import DataError, UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.training import nested

pytestmark = needs_torch
ONE = RuntimeOptions(threads=1)
NEW = defs.onnx_opset_version() >= 22


def noisy(model: Model, share: float = 0.5) -> Model:
    """The model with noise on its first Conv's weight."""
    random, proto = np.random.default_rng(1), onnx.ModelProto()
    proto.CopyFrom(model.proto)
    tensors = [*proto.graph.initializer]
    tensors += [entry.t for node in proto.graph.node for entry in node.attribute if entry.HasField("t")]
    kernel = next(tensor for tensor in tensors if tensor.name == "kernel")
    values = numpy_helper.to_array(kernel)
    change = share * values.std() * random.standard_normal(values.shape)
    kernel.CopyFrom(numpy_helper.from_array((values + change).astype(values.dtype), "kernel"))
    return Model(proto)


def samples(model: Model, count: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs in the model's shapes; ``count`` samples along the first axis."""
    random = np.random.default_rng(seed)
    made = {}
    for value in model.proto.graph.input:
        tensor = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        values = random.standard_normal([count, *dims[1:]])
        made[value.name] = values.astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return made


def distances(model: Model, *others: Model, count: int, output: str = "y") -> list[float]:
    feeds = samples(model, count, 99)
    wanted = Runner(model, ONE)(feeds)[output].astype(np.float64)
    found = (Runner(other, ONE)(feeds)[output] for other in others)
    return [float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted)) for values in found]


def tuned(model: Model, student: Model, *, count: int, **options: Any) -> Model:
    given: dict[str, Any] = {"epochs": 8, "rate": 0.01, "batch": count, "augment": "none", "batch_norm": "frozen"}
    data = samples(model, 16 * count, 3)
    return onnxsep.finetune(student, data=data, teacher=model, runtime=ONE, **{**given, **options}).model


TITLES = (
    "Conv groups, dilations",
    "ConvTranspose strides, pads",
    "MatMul broadcast",
    "Loop a number of times",
    "Scan axes, backwards",
    "RoiAlign adaptive",
)


@pytest.mark.skipif(not NEW, reason="the installed onnx is older than the newest operators")
@pytest.mark.parametrize("title", TITLES)
def test_form_comes_nearer_to_its_teacher(title: str) -> None:
    form = next(form for form in FORMS if form.title == title)
    teacher = network(form, form.versions()[-1])
    student = noisy(teacher)
    result = tuned(teacher, student, count=2, rate=0.02)
    before, after = distances(teacher, student, result, count=2)
    assert after < 0.8 * before


# ---------------------------------------------------------------- whole networks


def head(net: Network, x: str, channels: int = 8) -> None:
    pooled = net("Flatten", net("GlobalAveragePool", x))
    net.nodes.append(helper.make_node("MatMul", [pooled, net.name_of(net.weight(channels, 5))], ["y"]))


def shuffled(net: Network, x: str) -> None:
    """A channel shuffle whose shape is computed, as TorchScript writes it."""
    shape = net("Shape", x)
    sizes = [net("Unsqueeze", net("Gather", shape, np.array(axis), axis=0), ints(0)) for axis in (0, 2, 3)]
    groups = net("Reshape", x, net("Concat", sizes[0], ints(2), ints(4), *sizes[1:], axis=0))
    turned = net("Transpose", groups, perm=[0, 2, 1, 3, 4])
    joined = net("Reshape", turned, net("Concat", sizes[0], ints(-1), *sizes[1:], axis=0))
    head(net, net("Relu", net("Conv", joined, net.weight(8, 4, 3, 3), group=2)))


def attending(net: Network, x: str) -> None:
    """Attention over positions, by Gather from one tensor of queries, keys and values."""
    tokens = net("Transpose", net("Reshape", x, ints(0, 8, -1)), perm=[0, 2, 1])
    parts = net("Reshape", net("MatMul", tokens, net.weight(8, 24)), ints(0, -1, 3, 2, 4))
    parts = net("Transpose", parts, perm=[2, 0, 3, 1, 4])
    query, key, value = (net("Gather", parts, np.array(place), axis=0) for place in range(3))
    scores = net("Div", net("MatMul", query, net("Transpose", key, perm=[0, 1, 3, 2])), scalar(2))
    found = net("MatMul", net("Softmax", scores, axis=-1), value)
    found = net("Reshape", net("Transpose", found, perm=[0, 2, 1, 3]), ints(0, -1, 8))
    head(net, net("Add", net("Reshape", net("Transpose", found, perm=[0, 2, 1]), net("Shape", x)), x))


def resized(net: Network, x: str) -> None:
    """Upsampled to the size of another tensor."""
    small = net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    size = net("Slice", net("Shape", x), ints(2), ints(4), ints(0))
    rest = net("Slice", net("Shape", small), ints(0), ints(2), ints(0))
    sizes = net("Concat", rest, size, axis=0)
    head(net, net("Add", net("Resize", small, None, None, sizes, mode="linear"), x))


def normalised(net: Network, x: str) -> None:
    """LayerNormalization over the channels and RMS normalisation, both in small operators."""
    rows = net("Transpose", x, perm=[0, 2, 3, 1])
    centred = net("Sub", rows, net("ReduceMean", rows, axes=[-1]))
    spread = net("Sqrt", net("Add", net("ReduceMean", net("Pow", centred, scalar(2)), axes=[-1]), scalar(1e-5)))
    rows = net("Add", net("Mul", net("Div", centred, spread), net.weight(8)), net.weight(8))
    power = net("Add", net("ReduceMean", net("Mul", rows, rows), axes=[-1]), scalar(1e-6))
    rows = net("Mul", rows, net("Reciprocal", net("Sqrt", power)))
    net("Transpose", rows, perm=[0, 3, 1, 2])
    net.nodes[-1].output[0] = "y"


def detecting(net: Network, x: str) -> None:
    """Boxes, and those of them that are chosen."""
    boxes = net("Reshape", net("Conv", x, net.weight(4, 8, 1, 1)), ints(0, -1, 4))
    scores = net("Reshape", net("Sigmoid", net("Conv", x, net.weight(1, 8, 1, 1))), ints(0, 1, -1))
    chosen = net("NonMaxSuppression", boxes, scores, ints(4), floats(0.5), floats(0.1))
    net.nodes[-1].output[0] = "chosen"
    assert chosen
    net.nodes.append(helper.make_node("Concat", [boxes, net("Transpose", scores, perm=[0, 2, 1])], ["y"], axis=2))


@pytest.mark.parametrize("build", [shuffled, attending, resized, normalised, detecting])
def test_network_comes_nearer_to_its_teacher(build: Callable[[Network, str], None]) -> None:
    net = Network(13, (2, 3, 8, 6))
    build(net, net("Relu", net.conv()))
    teacher = net.model(y=TensorProto.FLOAT, **({"chosen": TensorProto.INT64} if build is detecting else {}))
    teacher.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    student = noisy(teacher)
    result = tuned(teacher, student, count=4)
    before, after = distances(teacher, student, result, count=4)
    assert after < 0.8 * before


def test_state_and_rate_beside_the_samples() -> None:
    """A recurrent state whose first axis is no batch, and a scalar: neither says how many samples the teacher takes."""
    net = Network(16, (2, 1, 16))
    x = net("Conv", "x", net.name_of(net.weight(4, 1, 3)), pads=[1, 1])
    net.weights[0].name = net.nodes[0].input[1] = "kernel"
    rate = net("Cast", "rate", to=TensorProto.FLOAT)
    steps = net("Transpose", net("Div", x, rate), perm=[2, 0, 1])
    weights = net.weight(2, 9, 4), net.weight(2, 9, 3)
    last = net("GRU", steps, *weights, None, None, "state", outputs=2, hidden_size=3, direction="bidirectional")[1]
    net.nodes.append(helper.make_node("Add", [last, "state"], ["y"]))
    teacher = net.model(y=TensorProto.FLOAT)
    inputs = teacher.proto.graph.input
    inputs[0].type.tensor_type.shape.dim[0].dim_param = "n"
    inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "n", 3]))
    inputs.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
    student, random = noisy(teacher), np.random.default_rng(6)
    waves = random.standard_normal((16, 1, 16)).astype(np.float32)
    states = random.standard_normal((2, 16, 3)).astype(np.float32)
    data = {"x": waves, "state": states, "rate": np.array(2)}
    result = onnxsep.finetune(student, data=data, teacher=teacher, epochs=12, rate=0.03, batch=4, runtime=ONE).model
    wanted, before, after = (Runner(model, ONE)(data)["y"] for model in (teacher, student, result))
    assert np.linalg.norm(after - wanted) < 0.8 * np.linalg.norm(before - wanted)


def test_output_that_is_nearly_nothing() -> None:
    """Behind a Sigmoid far below 0 only an absolute precision can be had, from ONNX Runtime too."""
    net = Network(13, (2, 3, 8, 6))
    x = net("Relu", net.conv())
    y = net("Sigmoid", net("Sub", net("Conv", x, net.weight(1, 8, 1, 1)), scalar(12)))
    net.nodes[-1].output[0] = "y"
    assert y
    teacher = net.model(y=TensorProto.FLOAT)
    result = tuned(teacher, noisy(teacher), count=2, epochs=1)
    assert result.proto.graph.node == teacher.proto.graph.node


def test_one_sample_without_held_out_ones() -> None:
    net = Network(13, (1, 3, 8, 6))
    head(net, net("Relu", net.conv()))
    teacher = net.model(y=TensorProto.FLOAT)
    student, data = noisy(teacher), samples(teacher, 1, 3)
    with pytest.raises(DataError, match="validation=0"):
        onnxsep.finetune(student, data=data, teacher=teacher, epochs=1, runtime=ONE)
    result = onnxsep.finetune(student, data=data, teacher=teacher, epochs=2, validation=0, batch=1, runtime=ONE)
    before, after = (Runner(model, ONE)(data)["y"] for model in (student, result.model))
    assert not np.array_equal(before, after)


def test_loop_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "_MOST_RUNS", 50)
    net = Network(13, (2, 3, 4, 4))
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes"], ["again"]), helper.make_node("Neg", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    head(net, net("Loop", None, np.array(True), net.conv(), body=body))
    teacher = net.model(y=TensorProto.FLOAT)
    with pytest.raises(UnsupportedModelError, match=r"Loop 'Loop_1'.*without an end"):
        onnxsep.finetune(teacher, data=samples(teacher, 8, 3), teacher=teacher, epochs=1, batch=2, runtime=ONE)
