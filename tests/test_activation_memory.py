"""Peak activation memory of small graphs, against values that are worked out by hand."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.graph.activation_memory import ActivationMemory, activation_memory
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.running.sizes import peak_activation_bytes

node = helper.make_node
MAP = 8 * 8 * 4  # bytes of one channel of 8 x 8 in float32


def value(name: str, dims: Sequence[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    count = math.prod(shape)
    return numpy_helper.from_array((np.arange(count, dtype=np.float32) % 7 - 3).reshape(shape) / 9, name)


def model(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    weights: Sequence[onnx.TensorProto] = (),
    dims: Sequence[int | str] = (1, 4, 8, 8),
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A network on an input x."""
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", [value("x", dims, kind)], made, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def found(made: onnx.ModelProto) -> ActivationMemory:
    return activation_memory(infer_shapes(skeleton(made)))


def conv(source: str, made: str, tensor: str) -> onnx.NodeProto:
    return node("Conv", [source, tensor], [made], name=made, pads=[1] * 4)


def both(made: onnx.ModelProto) -> tuple[int | None, int | None]:
    memory = found(made)
    assert memory.optimal
    return memory.best_order, memory.file_order


def test_a_chain_holds_what_a_node_reads_and_makes() -> None:
    chain = [conv("x", "a", "w1"), conv("a", "b", "w2"), conv("b", "y", "w3")]
    tensors = [weight("w1", 16, 4, 3, 3), weight("w2", 6, 16, 3, 3), weight("w3", 2, 6, 3, 3)]
    assert both(model(chain, ["y"], tensors)) == ((16 + 6) * MAP,) * 2


def test_a_residual_connection_stays_alive() -> None:
    block = [conv("x", "a", "w1"), conv("a", "b", "w2"), node("Add", ["b", "x"], ["y"])]
    # Conv b: x, a and b. Add writes over b.
    assert both(model(block, ["y"], [weight("w1", 9, 4, 3, 3), weight("w2", 4, 9, 3, 3)])) == ((4 + 9 + 4) * MAP,) * 2


def test_element_wise_nodes_write_over_what_they_alone_read() -> None:
    nodes = [conv("x", "a", "w"), node("Relu", ["a"], ["b"]), node("Mul", ["b", "s"], ["y"])]
    tensors = [weight("w", 5, 4, 3, 3), weight("s", 1)]
    assert both(model(nodes, ["y"], tensors)) == ((4 + 5) * MAP,) * 2
    shared = [*nodes[:2], node("Sigmoid", ["a"], ["c"]), node("Mul", ["b", "c"], ["y"])]
    # Both Relu and Sigmoid read a: the second of them holds a, b and c. Mul writes over one of its operands.
    assert both(model(shared, ["y"], tensors)) == (3 * 5 * MAP,) * 2


@pytest.mark.parametrize(
    ("nodes", "outputs", "channels"),
    [
        ([node("Relu", ["x"], ["y"])], ["y"], 4 + 4),  # not over an input
        ([conv("x", "a", "w"), node("Relu", ["a"], ["y"])], ["a", "y"], 5 + 5),  # nor over an output; x is gone
        ([conv("x", "a", "w"), node("MaxPool", ["a"], ["y"], kernel_shape=[1, 1])], ["y"], 5 + 5),  # no such operator
        ([conv("x", "a", "w"), node("Add", ["a", "big"], ["y"])], ["y"], 5 + 10),  # more bytes than it reads
    ],
)
def test_what_is_not_written_over(nodes: list[onnx.NodeProto], outputs: list[str], channels: int) -> None:
    tensors = [weight("w", 5, 4, 3, 3), weight("big", 2, 5, 8, 8)]
    assert both(model(nodes, outputs, tensors)) == (channels * MAP,) * 2


def test_views_take_no_bytes() -> None:
    shape = numpy_helper.from_array(np.array([1, 5, 64], np.int64), "shape")
    nodes = [
        conv("x", "a", "w"),
        node("Reshape", ["a", "shape"], ["b"]),
        node("Relu", ["b"], ["c"]),  # it alone reads the view, and nothing else reads a
        node("Flatten", ["c"], ["d"]),
        node("Identity", ["d"], ["y"]),
    ]
    assert both(model(nodes, ["y"], [weight("w", 5, 4, 3, 3), shape])) == ((4 + 5) * MAP,) * 2


def test_shapes_and_what_follows_from_them_do_not_count() -> None:
    nodes = [
        conv("x", "a", "w"),
        node("Shape", ["x"], ["s"]),  # x need not stay for it
        conv("a", "b", "v"),
        node("Slice", ["s", "zero", "two"], ["front"]),
        node("Concat", ["front", "rest"], ["target"], axis=0),
        node("Reshape", ["b", "target"], ["y"]),
    ]
    numbers = {"zero": [0], "two": [2], "rest": [-1]}
    tensors = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in numbers.items()]
    tensors += [weight("w", 4, 4, 3, 3), weight("v", 4, 4, 3, 3)]
    assert both(model(nodes, ["y"], tensors)) == (8 * MAP,) * 2


def test_the_order_of_the_file_may_be_worse() -> None:
    # The first branch leaves 6 channels, the second needs 16 and leaves 1; see test_execution_order.
    nodes = [
        *(conv("x", "a", "w1"), conv("a", "b", "w2")),
        *(conv("x", "c", "w3"), conv("c", "d", "w4")),
        node("Concat", ["b", "d"], ["y"], axis=1),
    ]
    tensors = [
        weight("w1", 10, 4, 3, 3),
        weight("w2", 6, 10, 3, 3),
        weight("w3", 16, 4, 3, 3),
        weight("w4", 1, 16, 3, 3),
    ]
    # In the file's order: x, b and c (26), then b, c and d (23). In the other: x, c and d (21), then x, d and a (15).
    assert both(model(nodes, ["y"], tensors)) == (21 * MAP, 26 * MAP)


@pytest.mark.parametrize(("kind", "size"), [(TensorProto.FLOAT16, 2), (TensorProto.DOUBLE, 8), (TensorProto.INT8, 1)])
def test_bytes_of_an_element(kind: int, size: int) -> None:
    pool = model([node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1])], ["y"], kind=kind)
    assert both(pool) == (2 * 4 * 64 * size,) * 2


def test_a_free_batch_is_one_and_other_free_sizes_are_not_known() -> None:
    pool = [node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1])]
    assert both(model(pool, ["y"], dims=["n", 4, 8, 8])) == (8 * MAP,) * 2
    free = model(pool, ["y"], dims=["n", 4, "h", 8])
    assert found(free) == ActivationMemory(None, None, optimal=False, unknown=2)
    assert peak_activation_bytes(free) is None
    assert peak_activation_bytes(free, {"x": (2, 4, 8, 8)}) == 2 * 8 * MAP


def quantised(*, relu: bool = False, shared: bool = False) -> onnx.ModelProto:
    """Input, Conv to 6 channels and Conv to 2, in integers; ``shared``: the first result is an output in floats too."""
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "scale", "zero"], ["xf"]),
    ]
    nodes.append(node("DequantizeLinear", ["w", "scale", "zero"], ["wf"]))
    nodes.append(conv("xf", "a", "wf"))
    if relu:
        nodes.append(node("Relu", ["a"], ["r"]))
    last = "r" if relu else "a"
    nodes += [
        node("QuantizeLinear", [last, "scale", "zero"], ["aq"]),
        node("DequantizeLinear", ["aq", "scale", "zero"], ["af"]),
    ]
    nodes += [node("DequantizeLinear", ["v", "scale", "zero"], ["vf"]), conv("af", "b", "vf")]
    nodes += [
        node("QuantizeLinear", ["b", "scale", "zero"], ["bq"]),
        node("DequantizeLinear", ["bq", "scale", "zero"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(np.float32(0.5), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(np.ones((6, 4, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.ones((2, 6, 3, 3), np.int8), "v"),
    ]
    return model(nodes, ["y", "af"] if shared else ["y"], tensors)


@pytest.mark.parametrize("relu", [False, True])
def test_nodes_between_quantised_tensors_are_integer_operators(relu: bool) -> None:
    # The input in floats (16 bytes a position) and in integers (4); then 4 + 6, 6 + 2, and 2 with 8 in floats.
    assert both(quantised(relu=relu)) == ((16 + 4) * 64,) * 2


def test_what_is_read_in_floats_too_is_in_floats() -> None:
    # Its own DequantizeLinear (24) beside the integers (6) or, later, b (2) and y (8): 24 + 2 + 8.
    assert both(quantised(shared=True)) == (34 * 64,) * 2


def test_the_graph_within_a_node_counts_while_it_runs() -> None:
    inner = [conv("a", "i", "w2"), conv("i", "then", "w3")]
    then = helper.make_graph(inner, "then", [], [value("then", [1, 4, 8, 8])])
    other = helper.make_graph([node("Relu", ["a"], ["else"])], "else", [], [value("else", [1, 4, 8, 8])])
    nodes = [conv("x", "a", "w1"), node("If", ["go"], ["b"], then_branch=then, else_branch=other), conv("b", "y", "w1")]
    tensors = [weight("w1", 4, 4, 3, 3), weight("w2", 9, 4, 3, 3), weight("w3", 4, 9, 3, 3)]
    tensors.append(numpy_helper.from_array(np.array(True), "go"))
    # a lives on around the If; within it i and then.
    assert both(model(nodes, ["y"], tensors)) == ((4 + 9 + 4) * MAP,) * 2


def test_bytes_for_a_planner_and_in_reports() -> None:
    block = [conv("x", "a", "w1"), conv("a", "b", "w2"), node("Add", ["b", "x"], ["y"])]
    made = model(block, ["y"], [weight("w1", 8, 4, 3, 3), weight("w2", 4, 8, 3, 3)])
    assert peak_activation_bytes(made) == 16 * MAP
    report = onnxsep.rewrite(made, mode="channel", rank=2, force=True, include_first=True).report
    assert report.totals.activations_before is not None
    assert report.totals.activations_after is not None
    assert report.totals.activations_before.best_order == 16 * MAP
    # x, two channels, 8 channels (14); x, a, two channels (14); x, two channels, b (10).
    assert report.totals.activations_after.best_order == report.totals.activations_after.file_order == 14 * MAP
    assert f"peak activation memory, bytes: {16 * MAP:,} -> {14 * MAP:,} (0.875)\n" in str(report)
    totals = onnxsep.inspect(made, modes=["channel"]).totals
    assert totals.activations is not None
    assert totals.activations.best_order == 16 * MAP
    assert totals.mode_activations is not None
    # The first Conv is left alone; the other one gets one channel in between: x, a, and that one.
    assert totals.mode_activations["channel"].best_order == 13 * MAP
    assert onnxsep.inspect(made).totals.mode_activations is None


def test_evaluate_shows_it_of_each_model() -> None:
    nodes = [
        conv("x", "a", "w1"),
        conv("a", "b", "w2"),
        conv("x", "c", "w3"),
        node("Concat", ["b", "c"], ["y"], axis=1),
    ]
    first = model(nodes, ["y"], [weight("w1", 8, 4, 3, 3), weight("w2", 1, 8, 3, 3), weight("w3", 2, 4, 3, 3)])
    second = model(nodes, ["y"], [weight("w1", 2, 4, 3, 3), weight("w2", 1, 2, 3, 3), weight("w3", 2, 4, 3, 3)])
    data = {"x": np.ones((4, 4, 8, 8), np.float32)}
    report = onnxsep.evaluate([first, second], data=data, runs=0, memory=False)
    # The first: x, a and b (13). The second: x, a and b (7), or b, c and y (6); x, b, c: 7.
    assert [row.activations.best_order for row in report.models if row.activations] == [13 * MAP, 7 * MAP]
    assert report.models[1].ratios is not None
    assert report.models[1].ratios.activations == 7 / 13
    assert f"{7 * MAP:,} (0.538)" in str(report)
