"""Whole runs of fine-tuning on networks with operators, outputs and branches as exporters write them."""

from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import ONE, needs_torch
from onnx import TensorProto, helper, numpy_helper
from operator_forms import FORMS, Form, Network, ints, scalar

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import UnsupportedModelError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner

pytestmark = needs_torch
DATA = {"x": np.random.default_rng(7).standard_normal((48, 3, 8, 6)).astype(np.float32)}
# A form of each module that is known to every supported onnx; all run with the batch as the first axis.
CHOSEN = (
    "ConvTranspose SAME_UPPER",
    "GroupNormalization one scale for each group",
    "Split num_outputs",
    "Resize cubic half_pixel x2",
)


def classifier(form: Form, opset: int) -> Model:
    """The form between a Conv with Relu and scores, for any number of samples."""
    net = Network(opset, form.shape)
    end = form.build(net, net("Relu", net.conv()))
    size = int(np.prod(Runner(net.model(**{end: TensorProto.FLOAT}))({"x": DATA["x"][:2]})[end].shape)) // 2
    net.nodes.append(helper.make_node("Flatten", [end], ["flat"]))
    net.nodes.append(helper.make_node("MatMul", ["flat", net.name_of(net.weight(size, 5))], ["y"]))
    return any_batch(net.model(y=TensorProto.FLOAT))


def any_batch(model: Model) -> Model:
    model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return model


def disturbed(model: Model) -> Model:
    """The model with noise on the Conv's weight."""
    student = onnx.ModelProto()
    student.CopyFrom(model.proto)
    (kernel,) = (tensor for tensor in student.graph.initializer if tensor.name == "kernel")
    values = numpy_helper.to_array(kernel)
    noise = np.random.default_rng(1).standard_normal(values.shape)
    kernel.CopyFrom(numpy_helper.from_array((values + 0.3 * values.std() * noise).astype(np.float32), "kernel"))
    return Model(student)


def distance(teacher: Model, model: Model, output: str = "y") -> float:
    feed = {"x": DATA["x"][:8]}
    wanted, found = Runner(teacher, ONE)(feed)[output], Runner(model, ONE)(feed)[output]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def learnt(teacher: Model, **options: Any) -> Model:
    """The student after it has learnt from the teacher; it is nearer to it then."""
    student = disturbed(teacher)
    given: dict[str, Any] = {"epochs": 6, "rate": 0.003, "batch": 8, "augment": "none", **options}
    result = onnxsep.finetune(student, data=DATA, teacher=teacher, optimizer="adam", runtime=ONE, **given)
    assert distance(teacher, result.model) < 0.8 * distance(teacher, student)
    return result.model


@pytest.mark.parametrize("title", CHOSEN)
def test_a_network_with_the_form_learns(title: str) -> None:
    (form,) = (form for form in FORMS if form.title == title)
    learnt(classifier(form, form.opsets()[0]))


def scores_and(*, opset: int = 17) -> tuple[Network, str]:
    """A network that has made ``scores``; tests add outputs."""
    net = Network(opset, (2, 3, 8, 6))
    flat = net("Flatten", net("GlobalMaxPool", net("Relu", net.conv())))
    net.nodes.append(helper.make_node("MatMul", [flat, net.name_of(net.weight(8, 5))], ["y"]))
    return net, "y"


def test_outputs_that_cannot_be_trained_on_are_left_as_they_are() -> None:
    """Classes, names of classes, a sequence of integers and a Hardmax are beside the scores."""
    net, scores = scores_and()
    best = net("ArgMax", scores, axis=1, keepdims=0)
    names = net("Gather", np.array(["cat", "dog", "cow", "hen", "pig"], dtype=object), best)
    hard = net("Hardmax", scores)
    model = any_batch(
        net.model(
            **{names: TensorProto.STRING, best: TensorProto.INT64, "y": TensorProto.FLOAT, hard: TensorProto.FLOAT}
        )
    )
    for tensor in model.proto.graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            assert len(tensor.string_data) == 5
    found = Runner(learnt(model, label_weight=0.0), ONE)({"x": DATA["x"][:2]})
    assert found[names].tolist() == [["cat", "dog", "cow", "hen", "pig"][index] for index in found[best]]


def test_weights_that_are_outputs_are_trained_and_given_out() -> None:
    """They are no outputs to learn: the teacher's may have another shape."""
    net, _ = scores_and()
    model = net.model(kernel=TensorProto.FLOAT, y=TensorProto.FLOAT)
    result = learnt(any_batch(model))
    (kernel,) = (tensor for tensor in result.proto.graph.initializer if tensor.name == "kernel")
    np.testing.assert_array_equal(Runner(result)({"x": DATA["x"]})["kernel"], numpy_helper.to_array(kernel))
    before = next(tensor for tensor in model.proto.graph.initializer if tensor.name == "kernel")
    assert kernel.raw_data != before.raw_data


def test_tuning_takes_such_outputs_too() -> None:
    """``rewrite --tune`` reads a label look-up and a weight among the outputs."""
    net, scores = scores_and()
    names = net("Gather", np.array(["a", "b", "c", "d", "e"], dtype=object), net("ArgMax", scores, axis=1))
    model = any_batch(net.model(**{names: TensorProto.STRING, "kernel": TensorProto.FLOAT, "y": TensorProto.FLOAT}))
    data = open_data(DATA, model)
    tuned = onnxsep.training.tune(disturbed(model), model, data, steps=40, learning_rate=0.05, augment=False)
    assert tuned.held_out_after < 0.8 * tuned.held_out_before
    assert "kernel" in tuned.arrays


def test_a_model_of_integers_alone_is_refused() -> None:
    net, scores = scores_and()
    model = any_batch(net.model(**{net("ArgMax", scores, axis=1): TensorProto.INT64}))
    with pytest.raises(UnsupportedModelError, match="no output of floats that depends on an input"):
        onnxsep.finetune(model, data=DATA, teacher=model)


def branch(name: str, kernel: np.ndarray | None, source: str) -> onnx.GraphProto:
    """A branch with a Conv of its own weight; without one, a Relu. Both use the same inner names."""
    weights = [] if kernel is None else [numpy_helper.from_array(kernel, f"{name}_kernel")]
    first = helper.make_node("Relu", [source], ["inner"])
    if kernel is not None:
        first = helper.make_node("Conv", [source, f"{name}_kernel"], ["inner"])
    nodes = [first, helper.make_node("Tanh", ["inner"], [f"{name}_end"])]
    end = helper.make_tensor_value_info(f"{name}_end", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [end], weights)


@pytest.mark.parametrize("constant", [True, False])
def test_weights_of_a_branch_are_trained_and_written_back(constant: bool) -> None:
    """An If that always takes a branch, and one that depends on the input's size."""
    net = Network(17, (2, 3, 8, 6))
    x = net("Relu", net.conv())
    wide = net("Equal", net("Gather", net("Shape", x), np.array(2)), np.array(8))
    condition = net.name_of(np.array(True)) if constant else wide
    for _ in range(2):  # names within a branch may come again in another one
        place = len(net.nodes)
        x = net(
            "If",
            condition,
            then_branch=branch(f"then{place}", net.weight(8, 8, 1, 1), x),
            else_branch=branch(f"else{place}", None, x),
        )
    flat = net("Flatten", net("GlobalAveragePool", x))
    net.nodes.append(helper.make_node("MatMul", [flat, net.name_of(net.weight(8, 5))], ["y"]))
    model = any_batch(net.model(y=TensorProto.FLOAT))
    result = learnt(model, rate=0.01, epochs=12)
    for before, after in zip(model.proto.graph.node, result.proto.graph.node, strict=True):
        if before.op_type == "If":
            old, new = (next(a.g for a in n.attribute if a.name == "then_branch") for n in (before, after))
            assert old.initializer[0].raw_data != new.initializer[0].raw_data
            assert old.node == new.node


def test_an_operator_that_only_onnx_has_is_computed_before_the_first_layer() -> None:
    """A window for audio, from the reference evaluator: nothing in front of it learns."""
    net = Network(17, (2, 3, 8, 6))
    window = net("Slice", net("HannWindow", np.array(8)), ints(0), ints(6))
    scaled = net("Mul", "x", net("Add", window, scalar(0.5)))
    flat = net("Flatten", net("GlobalMaxPool", net("Relu", net.conv(scaled))))
    net.nodes.append(helper.make_node("MatMul", [flat, net.name_of(net.weight(8, 5))], ["y"]))
    learnt(any_batch(net.model(y=TensorProto.FLOAT)))
