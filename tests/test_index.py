"""Makers, uses, owners and constants of a model, in every scope."""

import random
import time

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxsep.graph.index import Index, Use
from onnxsep.graph.places import Constant


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def tensor(name: str) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])


def nested() -> Index:
    """A main graph whose If has two branches, and a function; the tensor "r" is read in one of them."""
    then = helper.make_graph(
        [helper.make_node("Add", ["r", "own"], ["s"]), helper.make_node("Relu", ["s"], ["t"])],
        "else", [], [value("t")], [tensor("own")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["s"])], "then", [], [value("s")])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("If", ["c"], ["i"], else_branch=then, then_branch=other),
        helper.make_node("Add", ["r", "r"], ["y"]),
        helper.make_node("Double", ["y"], ["z"], domain="mine"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x"), value("c")], [value("z"), value("r")])
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Double", ["x"], ["y"], body, opsets[:1])
    return Index(helper.make_model(graph, functions=[function], opset_imports=opsets))


def test_makers_stand_in_the_graph_that_owns_the_tensor() -> None:
    index = nested()
    assert index.place("r") == (0, 0)
    assert index.place("r", 1) == (0, 0)  # seen from the first branch
    assert (index.place("s", 1), index.place("s", 2)) == ((1, 0), (2, 0))
    assert index.place("s") is None
    assert index.place("x", 3) is None
    assert index.place("") is None
    assert (index.owner("x", 2), index.owner("x", 3), index.owner("s", 2), index.owner("nothing", 2)) == (0, 3, 2, None)


def test_uses_come_once_for_each_operand_and_nodes_once() -> None:
    index = nested()
    assert index.uses("r") == [
        Use(0, 2, 0),
        Use(0, 2, 1),
        Use(0, -1, -1, "an output of the graph"),
        Use(1, 0, 0),
    ]
    assert index.readers("r") == [(0, 1), (0, 2)]  # the If, which holds what reads it
    assert index.readers("r", 1) == [(0, 1), (0, 2)]
    assert (index.readers("s", 1), index.uses("t", 1)) == ([(1, 1)], [Use(1, -1, -1, "an output of the graph")])
    assert index.uses("x", 3) == [Use(3, 0, 0), Use(3, 0, 1)]
    assert (index.uses("nothing"), index.readers("nothing")) == ([], [])


def test_outputs_of_graphs_and_functions() -> None:
    index = nested()
    assert [index.is_output(name) for name in ("x", "r", "y", "z")] == [False, True, False, True]
    assert [index.is_output(name, 3) for name in ("x", "y")] == [False, True]
    assert (index.is_output("s", 1), index.is_output("s", 2)) == (False, True)
    assert index.uses("y", 3)[-1].what == "an output of the function"


def test_annotations_and_training_information_use_tensors() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")], [tensor("s")])
    graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model = helper.make_model(graph)
    model.training_info.add().update_binding.add(key="x", value="y")
    index = Index(model)
    assert [use.what for use in index.uses("s")] == ["a quantisation annotation"]
    assert [use.what for use in index.uses("y")] == ["an output of the graph", "the training information"]
    assert index.is_output("x")


def test_graphs_in_a_list_belong_to_their_node() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["r"], ["s"])], "inner", [], [value("s")])
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Any", [], ["y"], domain="d", graphs=[inner])]
    index = Index(helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("y")])))
    assert index.readers("r") == [(0, 1)]
    assert index.uses("r") == [Use(0, 1, -1)]


def test_constants_of_every_make() -> None:
    held = helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Exp", ["sum"], ["exp"]),  # before what it reads
        helper.make_node("Constant", [], ["c"], value=held),
        helper.make_node("Constant", [], ["words"], value_string="no tensor"),
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Add", ["turned", "c"], ["sum"]),
        helper.make_node("Clip", ["w", "", "c"], ["clipped"]),
        helper.make_node("Add", ["x", "c"], ["moving"]),
        helper.make_node("RandomNormalLike", ["w"], ["random"]),
        helper.make_node("DequantizeLinear", ["q", "w"], ["quantised"]),
        helper.make_node("Mine", ["w"], ["custom"], domain="mine"),
        helper.make_node("Split", ["w", "c"], ["part", "rest"]),
        helper.make_node("Add", ["around", "w"], ["here"]),
        helper.make_node("Add", ["here", "w"], ["around"]),  # a circle
    ]
    graph = helper.make_graph(nodes, "g", [value("x"), value("q")], [value("exp")], [tensor("w")])
    index = Index(helper.make_model(graph))
    constant = {"w", "c", "turned", "sum", "exp", "clipped", "part", "rest"}
    names = {name for node in nodes for name in (*node.input, *node.output) if name}
    assert {name for name in names if index.is_constant(name)} == constant
    assert index.constant("w") == Constant(0, "w")
    assert index.constant("c") == Constant(0, "c", ((0, 1),))
    assert index.constant("exp") == Constant(0, "exp", ((0, 3), (0, 1), (0, 4), (0, 0)))
    assert index.constant("moving") is None
    assert index.tensor("w") == tensor("w")
    assert index.tensor("c") == held
    assert index.tensor("turned") is None


def test_constants_of_graphs_around_and_arguments_of_functions() -> None:
    index = nested()
    assert index.is_constant("own", 1)
    assert not index.is_constant("own")
    assert not index.is_constant("x", 3)
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, ref_attr_name="given")
    function = helper.make_function("mine", "F", [], ["c"], [node], [helper.make_opsetid("", 17)], ["given"])
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["i"])], "then", [], [value("i")])
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=inner)]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [tensor("w")])
    index = Index(helper.make_model(graph, functions=[function]))
    assert index.constant("w", 1) == Constant(0, "w")
    assert not index.is_constant("c", 2)


def test_a_namesake_in_a_nested_graph_is_no_constant() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["w"])], "then", [], [value("w")])
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=inner)]
    index = Index(helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("y")], [tensor("w")])))
    assert not index.is_constant("w")
    assert not index.is_constant("w", 1)


def test_attributes_and_labels() -> None:
    index = nested()
    assert index.attribute((0, 1), "else_branch").name == "else"
    assert index.attribute((0, 0), "axis", 1) == 1
    assert index.label((0, 3)) == "mine.Double 'z'"
    assert index.label((1, 0)) == "Add 's' (If 'i', else_branch)"
    assert index.label((3, 0)) == "Add 'y' (function mine::Double)"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_as_a_search_through_all_nodes_says(seed: int, size: int) -> None:
    choose = random.Random(seed)
    names, nodes = ["x", "w", "v"], []
    for number in range(size):
        operands = [choose.choice([*names, ""]) for _ in range(choose.choice([1, 2, 3]))]
        nodes.append(helper.make_node("Mean", operands, [f"t{number}"]))
        names.append(f"t{number}")
    choose.shuffle(nodes)
    graph = helper.make_graph(nodes, "g", [value("x")], [value(names[-1])], [tensor("w"), tensor("v")])
    index = Index(helper.make_model(graph))
    constant, before = {"w", "v"}, set[str]()
    while constant != before:
        before = set(constant)
        full = [node for node in nodes if any(node.input)]
        constant |= {node.output[0] for node in full if all(name in constant for name in node.input if name)}
    for name in names:
        assert index.is_constant(name) == (name in constant)
        assert index.readers(name) == [(0, at) for at, node in enumerate(nodes) if name in node.input]
        reads = [
            Use(0, at, place) for at, node in enumerate(nodes) for place, one in enumerate(node.input) if one == name
        ]
        assert [use for use in index.uses(name) if use.node >= 0] == reads
        assert index.place(name) == next(((0, at) for at, node in enumerate(nodes) if name in node.output), None)


@pytest.mark.parametrize("kind", ["a chain", "one weight of all"])
def test_time_grows_with_the_number_of_nodes(kind: str) -> None:
    def seconds(count: int) -> float:
        pairs = [(f"t{at}", f"t{at + 1}") for at in range(count)]
        nodes = [helper.make_node("Add", [source, "w"], [made]) for source, made in pairs]
        weights, inputs = ([tensor("w"), tensor("t0")], []) if kind == "a chain" else ([tensor("w")], [value("t0")])
        model = helper.make_model(helper.make_graph(nodes, "g", inputs, [value(f"t{count}")], weights))
        start = time.process_time()
        index = Index(model)
        for source, made in pairs:
            assert index.readers(source)
            assert index.place(made)
            assert index.is_constant(made) == (kind == "a chain")
        assert len(index.uses("w")) == count
        return time.process_time() - start

    small = min(seconds(1000) for _ in range(3))
    assert min(seconds(10000) for _ in range(2)) < 40 * small  # 10 times as many; a square would be 100 times
