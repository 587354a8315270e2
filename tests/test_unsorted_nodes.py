"""Nodes that are stored in another than topological order: same results, and the result keeps the order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.model.io import load
from onnxsep.model.ordering import sorted_copy

X = {"x": np.random.default_rng(7).standard_normal((24, 3, 12, 12)).astype(np.float32)}


def network(classes: int = 5) -> onnx.ModelProto:
    """Cast, Conv, Relu, an If whose branches read the Relu, a second Conv, and a head; a Reshape has computed sizes."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        fan = int(np.prod(shape[1:])) or 1
        return numpy_helper.from_array((rng.standard_normal(shape) * (2 / fan) ** 0.5).astype(np.float32), name)

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Conv", ["r1", f"w_{name}"], [f"{name}_c"], name=f"{name}_conv", pads=[1] * 4),
            helper.make_node("Relu", [f"{name}_c"], [f"{name}_r"], name=f"{name}_relu"),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_r", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Cast", ["x"], ["xc"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["xc", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("ReduceMean", ["r1"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], ["cond"], name="positive"),
        helper.make_node("If", ["cond"], ["chosen"], name="if", then_branch=branch("t"), else_branch=branch("e")),
        helper.make_node("Conv", ["chosen", "w2", "b2"], ["c2"], name="second", pads=[1] * 4),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "wd", "bd"], ["y"], name="head", transB=1),
    ]
    weights = [
        *(weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w_t", 16, 16, 3, 3), weight("w_e", 16, 16, 3, 3)),
        *(weight("w2", 16, 16, 3, 3), weight("b2", 16), weight("wd", classes, 16), weight("bd", classes)),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 12, 12])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain() -> onnx.ModelProto:
    """The same without the If, which training does not take."""
    model = network()
    kept = [node for node in model.graph.node if node.op_type not in ("If", "ReduceMean", "Greater")]
    next(node for node in kept if node.name == "second").input[0] = "r1"
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def arranged(model: onnx.ModelProto, order: Callable[[list[onnx.NodeProto]], list[onnx.NodeProto]]) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graphs = [other.graph, *(entry.g for node in other.graph.node for entry in node.attribute if entry.HasField("g"))]
    for graph in reversed(graphs):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        del graph.node[:]
        graph.node.extend(order(nodes))
    return other


def backwards(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return nodes[::-1]


def first_last(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [*nodes[1:], nodes[0]]


ORDERS = pytest.mark.parametrize("order", [backwards, first_last])


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


@ORDERS
def test_a_rewrite_is_the_same_and_keeps_the_order(order: Callable) -> None:  # type: ignore[type-arg]
    model, other = network(), arranged(network(), order)
    before = other.SerializeToString()
    one, two = (onnxsep.rewrite(each, mode="depthwise") for each in (model, other))
    assert other.SerializeToString() == before
    assert two.report.convs == one.report.convs
    assert two.report.totals == one.report.totals
    assert two.report.totals.macs_unknown == 0
    assert two.report.verification.relative == pytest.approx(one.report.verification.relative)
    made = {node.name for node in two.proto.graph.node} - {node.name for node in other.graph.node}
    assert made
    kept = [name for name in names(two.proto) if name not in made]
    assert kept == [name for name in names(other) if name != "second"]
    sources = {node.name: node.SerializeToString() for node in other.graph.node if node.name not in ("second", "if")}
    assert {node.name: node.SerializeToString() for node in two.proto.graph.node if node.name in sources} == sources
    # The new nodes stand where the Conv stood.
    stored = names(other)
    following = stored[stored.index("second") + 1] if stored[-1] != "second" else None
    place = max(names(two.proto).index(name) for name in made)
    assert names(two.proto)[place + 1 : place + 2] == ([following] if following else [])


@ORDERS
def test_what_is_unchanged_is_the_source_itself(order: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    other = arranged(network(), order)
    onnx.save(other, tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    result = onnxsep.rewrite(tmp_path / "m.onnx", mode="depthwise", skip="*")
    result.save(tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").read_bytes() == content
    loaded = load(tmp_path / "m.onnx")
    assert sorted_copy(loaded.proto) is None
    onnxsep.save(loaded, tmp_path / "p.onnx")
    assert (tmp_path / "p.onnx").read_bytes() == content


@ORDERS
def test_prune(order: Callable) -> None:  # type: ignore[type-arg]
    model, other = network(), arranged(network(), order)
    choices: list[dict[str, Any]] = [{"sparsity": 0.5}, {"sparsity": 0.25, "channels": True}]
    for options in choices:
        one, two = (onnxsep.prune(each, **options) for each in (model, other))
        assert two.report.totals == one.report.totals
        assert {layer.name: layer for layer in two.report.layers} == {layer.name: layer for layer in one.report.layers}
        assert names(two.proto) == names(other)


@ORDERS
def test_inspect_check_and_evaluate(order: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    model, other = network(), arranged(network(), order)
    one, two = (onnxsep.inspect(each) for each in (model, other))
    assert {conv.name: conv for conv in two.convs} == {conv.name: conv for conv in one.convs}
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(other, tmp_path / "o.onnx")
    parts = {part.name: part.status for part in onnxsep.check(tmp_path / "o.onnx", tmp_path / "m.onnx").parts}
    assert parts == {"structure": "same", "weights": "same", "outputs": "same"}
    rows = onnxsep.evaluate([tmp_path / "m.onnx", tmp_path / "o.onnx"], data=X, runs=0, memory=False).models
    assert rows[0].macs == rows[1].macs


@ORDERS
def test_quantize_and_calibrate(order: Callable) -> None:  # type: ignore[type-arg]
    model, other = chain(), arranged(chain(), order)
    one, two = (onnxsep.quantize(each, data=X, samples=16) for each in (model, other))
    assert {row.name: row.status for row in two.report.nodes} == {row.name: row.status for row in one.report.nodes}
    one_fit, two_fit = (onnxsep.rewrite(each, mode="depthwise", data=X, samples=16) for each in (model, other))
    assert two_fit.report.convs == one_fit.report.convs


@needs_torch
@ORDERS
def test_finetune(order: Callable) -> None:  # type: ignore[type-arg]
    other = arranged(chain(), order)
    noisy = onnx.ModelProto()
    noisy.CopyFrom(other)
    for tensor in noisy.graph.initializer:
        if tensor.name in ("w1", "w2"):
            values = numpy_helper.to_array(tensor)
            noise = np.random.default_rng(1).standard_normal(values.shape) * 0.1 * values.std()
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    result = onnxsep.finetune(noisy, data=X, teacher=other, epochs=1, batch=8)
    assert names(result.proto) == names(other)


def test_functions_and_circles() -> None:
    inner = [helper.make_node("Relu", ["b"], ["o"]), helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("f", "F", ["a"], ["o"], inner, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="f")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=imports, functions=[function])
    sorted_model = sorted_copy(model)
    assert sorted_model is not None
    assert [node.op_type for node in sorted_model.functions[0].node] == ["Neg", "Relu"]
    assert [node.op_type for node in load(model).in_stored_order().proto.functions[0].node] == ["Relu", "Neg"]
    circle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    graph = helper.make_graph([*circle, helper.make_node("Neg", ["b"], ["y"])], "g", values[:1], values[1:])
    found = sorted_copy(helper.make_model(graph, opset_imports=imports[:1]))
    assert found is not None
    assert sorted(node.output[0] for node in found.graph.node) == ["a", "b", "y"]


def test_thousands_of_nodes_in_reverse() -> None:
    nodes = [helper.make_node("Neg", [f"t{index}"], [f"t{index + 1}"]) for index in range(5000)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("t0", "t5000")]
    model = helper.make_model(helper.make_graph(nodes[::-1], "g", values[:1], values[1:]))
    found = sorted_copy(model)
    assert found is not None
    assert [node.input[0] for node in found.graph.node] == [f"t{index}" for index in range(5000)]
