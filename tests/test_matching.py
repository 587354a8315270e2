"""Patterns: found in whatever order nodes and operands stand, in every scope; refused by name, node and reason."""

import random
import time
from itertools import pairwise
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxsep.graph.index import Index
from onnxsep.graph.matching import Const, Either, Found, Match, Op, Pattern, Refusal, Value

X = Value("x")
CONV = Op("conv", "Conv", X, Const("weight"), Const("bias", optional=True))
NORM = Op("norm", "BatchNormalization", CONV, Const("gamma"), Const("beta"), Const("mean"), Const("variance"))
SCALED = Op("scale", "Mul", NORM, Const("factor"), optional=True)
SHIFTED = Op("shift", "Add", SCALED, Const("term"), optional=True)
CHAIN = Pattern("chain", Op("activation", ("Relu", "Clip"), SHIFTED, optional=True, rest=True))
RESIDUAL = Pattern(
    "residual", Op("join", "Add", Op("second", "Conv", Op("first", "Conv", X, Const("a")), Const("b")), X)
)
POOLED = Either(Op("pool", "GlobalAveragePool", X), Op("pool", "ReduceMean", X, rest=True))
SQUEEZED = Op("up", "Conv", Op("relu", "Relu", Op("down", "Conv", POOLED, Const("a"))), Const("b"))
EXCITATION = Pattern("excitation", Op("excite", "Mul", X, Op("gate", ("Sigmoid", "HardSigmoid"), SQUEEZED)))
SQUEEZE = Op("squeeze", "Relu", Op("in", "Conv", X, Const("s")))
FIRE = Pattern(
    "fire",
    Op("join", "Concat", Op("one", "Conv", SQUEEZE, Const("a")), Op("three", "Conv", SQUEEZE, Const("b"))),
)
SILU = Pattern("silu", Op("product", "Mul", X, Op("sigmoid", "Sigmoid", X)))


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Operands as words; its name is that of its first output."""
    outputs = output.split()
    return helper.make_node(op_type, inputs.split(), outputs, name=f"n_{outputs[0]}", **attributes)


def graph(nodes: list[onnx.NodeProto], weights: str = "", outputs: str = "y", inputs: str = "x") -> onnx.GraphProto:
    """A graph whose tensors say no shapes."""

    def values(names: str) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names.split()]

    tensors = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in weights.split()]
    return helper.make_graph(nodes, "g", values(inputs), values(outputs), tensors)


def index_of(body: onnx.GraphProto, *functions: onnx.FunctionProto) -> Index:
    return Index(helper.make_model(body, functions=functions, opset_imports=[helper.make_opsetid("", 17)]))


def find(pattern: Pattern, nodes: list[onnx.NodeProto], weights: str = "", outputs: str = "y") -> Found:
    return pattern.find(index_of(graph(nodes, weights, outputs)))


WEIGHTS = "w b g be m v f t"


def chain(end: str = "y") -> list[onnx.NodeProto]:
    return [
        node("Conv", "x w b", "c"),
        node("BatchNormalization", "c g be m v", "n"),
        node("Mul", "f n", "s"),
        node("Add", "t s", "a"),
        node("Relu", "a", end),
    ]


def test_a_chain_gives_places_values_and_constants_by_role() -> None:
    (match,) = find(CHAIN, chain(), WEIGHTS).matches
    assert match.nodes == {"conv": (0, 0), "norm": (0, 1), "scale": (0, 2), "shift": (0, 3), "activation": (0, 4)}
    assert match.values == {"x": "x"}
    assert {role: constant.name for role, constant in match.constants.items()} == {
        "weight": "w", "bias": "b", "gamma": "g", "beta": "be", "mean": "m", "variance": "v", "factor": "f",
        "term": "t",
    }  # fmt: skip
    assert (match.pattern, match.output, match.shared) == ("chain", "y", {})


@pytest.mark.parametrize("left_out", [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)])
def test_optional_nodes_may_be_missing(left_out: tuple[int, ...]) -> None:
    nodes = [one for index, one in enumerate(chain()) if index not in left_out]
    for before, after in pairwise(nodes):
        for position, name in enumerate(after.input):
            if name in {"n", "s", "a"}:
                after.input[position] = before.output[0]
    nodes[-1].output[0] = "y"
    found = find(CHAIN, nodes, WEIGHTS)
    assert len(found.matches) == 1
    assert found.matches[0].output == "y"
    assert len(found.matches[0].nodes) == len(nodes)
    assert found.refused == ()


def test_a_part_that_must_be_there_is_missed_by_name() -> None:
    found = find(CHAIN, [node("Conv", "x w", "c"), node("MaxPool", "c", "p"), node("Relu", "p", "y")], WEIGHTS)
    assert found.matches == ()
    (refusal,) = found.refused
    assert str(refusal) == (
        "chain: Relu 'n_y' reads what MaxPool 'n_p' computes, where Add, Mul or BatchNormalization is expected"
    )
    assert (refusal.whole, refusal.place, dict(refusal.nodes)) == (False, (0, 2), {"activation": (0, 2)})


def test_the_largest_part_that_nothing_else_uses_is_matched() -> None:
    nodes = [*chain(), node("Sigmoid", "n", "z")]
    (match,) = find(CHAIN, nodes, WEIGHTS, "y z").matches
    assert list(match.nodes) == ["conv", "norm"]
    assert match.output == "n"


@pytest.mark.parametrize(
    ("further", "outputs", "reason"),
    [
        ([node("Sigmoid", "c", "z")], "y z", "what Conv 'n_c' computes, 'c', is also read by Sigmoid 'n_z'"),
        ([], "y c", "what Conv 'n_c' computes, 'c', is an output of the graph"),
        (
            [node("If", "x", "z", then_branch=graph([node("Relu", "c", "i")], outputs="i", inputs=""))],
            "y z",
            "what Conv 'n_c' computes, 'c', is also read by Relu 'n_i' (If 'n_z', then_branch)",
        ),
        ([node("If", "x", "z", then_branch=graph([], outputs="c", inputs=""))], "y z", None),
    ],
)
def test_inner_values_that_are_used_elsewhere_are_refused(
    further: list[onnx.NodeProto], outputs: str, reason: str | None
) -> None:
    found = find(CHAIN, [*chain(), *further], WEIGHTS, outputs)
    assert found.matches == ()
    refusal = found.refused[0]
    assert refusal.reason == (reason or "what Conv 'n_c' computes, 'c', is an output of the graph")
    assert (refusal.pattern, refusal.place, refusal.whole) == ("chain", (0, 0), True)


def test_other_outputs_in_use_are_refused() -> None:
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", "c g be m v", "y mm vv", training_mode=1)]
    (refusal,) = find(CHAIN, nodes, WEIGHTS, "y mm").refused
    assert refusal.reason == "what BatchNormalization 'n_y' computes, 'mm', is an output of the graph"
    assert len(find(CHAIN, nodes, WEIGHTS).matches) == 1


def test_an_operand_that_is_not_constant_is_named() -> None:
    nodes = [node("Conv", "x x", "c"), node("BatchNormalization", "c g be m v", "y")]
    (refusal,) = find(CHAIN, nodes, WEIGHTS).refused
    assert refusal.reason == "Conv 'n_c' reads 'x' as its weight, which is not constant"


def test_a_residual_block_reads_one_tensor_twice() -> None:
    nodes = [node("Conv", "x a", "c"), node("Conv", "c b", "d"), node("Add", "x d", "y")]
    assert find(RESIDUAL, nodes, "a b").matches[0].values == {"x": "x"}
    nodes[2].input[0] = "other"
    (refusal,) = RESIDUAL.find(index_of(graph(nodes, "a b", inputs="x other"))).refused
    assert refusal.reason == "Add 'n_y' reads 'other' where x is 'x'"


def test_a_skip_from_inside_is_refused() -> None:
    pattern = Pattern("join", Op("join", "Add", Op("relu", "Relu", X), Value("skip")))
    (refusal,) = find(pattern, [node("Relu", "x", "r"), node("Add", "r r", "y")]).refused
    assert refusal.reason == "Relu 'n_r' computes 'r', which should come from outside as skip"


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean"])
@pytest.mark.parametrize("operands", ["x g", "g x"])
def test_squeeze_and_excitation_in_its_forms(pool: str, operands: str) -> None:
    nodes = [
        node(pool, "x", "p"), node("Conv", "p a", "d"), node("Relu", "d", "r"), node("Conv", "r b", "u"),
        node("HardSigmoid", "u", "g"), node("Mul", operands, "y"),
    ]  # fmt: skip
    (match,) = find(EXCITATION, nodes, "a b").matches
    assert set(match.nodes) == {"pool", "down", "relu", "up", "gate", "excite"}


def test_branches_part_and_join() -> None:
    nodes = [
        node("Conv", "x s", "i"), node("Relu", "i", "q"), node("Conv", "q a", "e"), node("Conv", "q b", "f"),
        node("Concat", "e f", "y", axis=1),
    ]  # fmt: skip
    (match,) = find(FIRE, nodes, "s a b").matches
    assert match.nodes["one"] == (0, 2)
    assert match.nodes["three"] == (0, 3)
    nodes[3].input[0] = "x"  # the second branch starts elsewhere
    assert find(FIRE, nodes, "s a b").matches == ()


def test_operands_that_do_not_commute_keep_their_order() -> None:
    plain = Pattern("difference", Op("minus", "Sub", X, Const("c")))
    assert len(find(plain, [node("Sub", "x c", "y")], "c").matches) == 1
    assert find(plain, [node("Sub", "c x", "y")], "c").matches == ()
    free = Pattern("difference", Op("minus", "Sub", X, Const("c"), any_order=True))
    assert len(find(free, [node("Sub", "c x", "y")], "c").matches) == 1


def test_the_same_word_of_another_domain_is_another_operator() -> None:
    custom = node("Mul", "x s", "y", domain="mine")
    assert find(SILU, [node("Sigmoid", "x", "s"), custom]).matches == ()


def test_shared_weights_are_reported() -> None:
    nodes = [*chain(), node("Conv", "y w", "z")]
    (match,) = find(CHAIN, nodes, WEIGHTS, "z").matches
    assert {role: [use.place for use in uses] for role, uses in match.shared.items()} == {"weight": [(0, 5)]}


def test_accept_and_check_look_closer() -> None:
    grouped = Op(
        "conv", "Conv", X, Const("w"), accept=lambda index, place: f"has {index.attribute(place, 'group')} groups"
    )
    (refusal,) = find(
        Pattern("p", Op("relu", "Relu", grouped)), [node("Conv", "x w", "c", group=3), node("Relu", "c", "y")], "w"
    ).refused
    assert refusal.reason == "Conv 'n_c' has 3 groups"
    checked = Pattern("silu", SILU.result, check=lambda index, match: f"makes {match.output!r}")
    (refusal,) = find(checked, [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")]).refused
    assert refusal.reason == "Mul 'n_y' makes 'y'"


def test_constants_of_whatever_they_are_made() -> None:
    nodes = chain()
    nodes[0].input[1] = "w2"
    nodes[1].input[1] = "g2"
    nodes[2].input[0] = "f2"
    value = helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])
    nodes += [
        node("Transpose", "w", "w2"),
        node("Constant", "", "g2", value=value),
        node("Identity", "g2", "g3"),
        node("Exp", "g3", "f2"),
    ]
    (match,) = find(CHAIN, nodes, WEIGHTS).matches
    assert len(match.nodes) == 5
    assert match.constants["factor"].nodes == ((0, 6), (0, 7), (0, 8))


def test_in_nested_graphs_and_functions() -> None:
    nested = [node("Sigmoid", "x", "s"), node("Mul", "s x", "t")]
    branch = graph(nested, outputs="t", inputs="")
    function = helper.make_function(
        "mine",
        "Gate",
        ["i"],
        ["o"],
        [node("Sigmoid", "i", "s"), node("Mul", "i s", "o")],
        [helper.make_opsetid("", 17)],
    )
    body = graph([node("If", "c", "y", then_branch=branch, else_branch=branch)], inputs="x c")
    matches = SILU.find(index_of(body, function)).matches
    assert [(match.scope, match.output) for match in matches] == [(1, "t"), (2, "t"), (3, "o")]


def test_a_pattern_does_not_cross_into_a_nested_graph() -> None:
    branch = graph([node("Mul", "s x", "t")], outputs="t", inputs="")
    nodes = [node("Sigmoid", "x", "s"), node("If", "c", "y", then_branch=branch)]
    found = SILU.find(index_of(graph(nodes, inputs="x c")))
    assert found.matches == ()
    (refusal,) = found.refused
    assert refusal.reason == (
        "Mul 'n_t' (If 'n_y', then_branch) reads what Sigmoid 'n_s' computes, outside of the nested graph"
    )


def test_matches_do_not_overlap() -> None:
    pair = Pattern("pair", Op("second", "Relu", Op("first", "Relu", X)))
    nodes = [node("Relu", f"t{index}", f"t{index + 1}") for index in range(5)]
    matches = pair.find(index_of(graph(nodes, outputs="t5", inputs="t0"))).matches
    assert [list(match.nodes.values()) for match in matches] == [[(0, 1), (0, 2)], [(0, 3), (0, 4)]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 25), st.sampled_from(["chain", "residual", "excitation", "fire"]))
def test_a_planted_pattern_is_found_in_any_graph_and_order(seed: int, size: int, kind: str) -> None:
    choose = random.Random(seed)
    planted = {
        "chain": chain("end"),
        "residual": [node("Conv", "x w", "c"), node("Conv", "c b", "d"), node("Add", "x d", "end")],
        "excitation": [
            node("GlobalAveragePool", "x", "p"), node("Conv", "p w", "d"), node("Relu", "d", "r"),
            node("Conv", "r b", "u"), node("Sigmoid", "u", "g"), node("Mul", "x g", "end"),
        ],
        "fire": [
            node("Conv", "x w", "i"), node("Relu", "i", "q"), node("Conv", "q b", "e"), node("Conv", "q f", "h"),
            node("Concat", "e h", "end", axis=1),
        ],
    }[kind]  # fmt: skip
    names, noise = ["x"], []
    for number in range(size):  # what is around reads anything but what the block computes inside
        if number == size // 2:
            for one in planted:
                for position, name in enumerate(one.input):
                    if name == "x":
                        one.input[position] = names[-1]
            names.append("end")
        operands = [choose.choice(names), *choose.sample([*names, "w"], k=choose.choice([0, 1]))]
        noise.append(node("Sigmoid" if len(operands) == 1 else "Mul", " ".join(operands), f"t{number}"))
        names.append(f"t{number}")
    for one in planted:
        if one.op_type in ("Add", "Mul") and choose.random() < 0.5:
            one.input[:] = list(one.input)[::-1]
    nodes = [*planted, *noise]
    choose.shuffle(nodes)
    pattern = {"chain": CHAIN, "residual": RESIDUAL, "excitation": EXCITATION, "fire": FIRE}[kind]
    body = graph(nodes, WEIGHTS, " ".join(["end", names[-1]]))
    matches = pattern.find(index_of(body)).matches
    assert [match.output for match in matches] == ["end"]
    assert set(matches[0].nodes.values()) == {(0, nodes.index(one)) for one in planted}


@pytest.mark.parametrize("kind", ["blocks", "one inner value of all"])
def test_time_grows_with_the_number_of_candidates(kind: str) -> None:
    pattern = Pattern("pair", Op("add", "Add", Op("conv", "Conv", X, Const("w")), Const("three")))

    def seconds(count: int) -> float:
        nodes = []
        for at in range(count):
            inner = f"c{at}" if kind == "blocks" else "c0"
            if kind == "blocks" or not at:
                nodes.append(node("Conv", f"t{at} w", inner))
            nodes.append(node("Add", f"{inner} three", f"t{at + 1}"))
        index = index_of(graph(nodes, "w three", f"t{count}", "t0"))
        start = time.process_time()
        found = pattern.find(index)
        assert len(found.matches) == (count if kind == "blocks" else 0)
        return time.process_time() - start

    small = min(seconds(200) for _ in range(3))
    assert min(seconds(2000) for _ in range(2)) < 40 * small  # 10 times as many; a square would be 100 times


def test_forms_that_exporters_give_a_classifier_head() -> None:
    pooled = Either(
        Op("flat", "Flatten", Op("pool", "GlobalAveragePool", X)),
        Op("pool", "ReduceMean", X, rest=True),
    )
    scores = Either(
        Op("scores", "Gemm", pooled, Const("weight"), Const("bias", optional=True)),
        Op("shift", "Add", Op("scores", "MatMul", pooled, Const("weight")), Const("bias"), optional=True),
    )
    head = Pattern("head", scores)
    forms = {
        "gemm": [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "f"), node("Gemm", "f w b", "y")],
        "matmul": [node("ReduceMean", "x", "f"), node("MatMul", "f w", "m"), node("Add", "b m", "y")],
        "no bias": [node("ReduceMean", "x axes", "f"), node("MatMul", "f w", "y")],
    }
    for nodes in forms.values():
        (match,) = find(head, nodes, "w b axes").matches
        assert set(match.nodes.values()) == {(0, at) for at in range(len(nodes))}
        assert match.constants["weight"].name == "w"


def test_hard_swish_written_out() -> None:
    gate = Op("clip", "Clip", Op("shift", "Add", X, Const("three")), Const("zero"), Const("six"))
    divided = Op("divide", ("Div", "Mul"), Op("product", "Mul", X, gate), Const("divisor"))
    pattern = Pattern("hard swish", divided)
    nodes = [
        node("Add", "three x", "s"), node("Clip", "s zero six", "c"),
        node("Mul", "c x", "m"), node("Div", "m six", "y"),
    ]  # fmt: skip
    (match,) = find(pattern, nodes, "zero three six").matches
    assert len(match.nodes) == 4
    assert {constant.name for constant in match.constants.values()} == {"three", "zero", "six"}
    assert match.shared == {}  # what the two nodes of the match share is nobody else's


def test_known_values_are_given_where_one_node_is_asked_for() -> None:
    pattern = Pattern("join", Op("join", "Add", Value("path"), Value("skip")))
    index = index_of(graph([node("Add", "x z", "y")], inputs="x z"))
    found = pattern.at(index, (0, 0), path="z")
    assert isinstance(found, Match)
    assert found.values == {"path": "z", "skip": "x"}
    refused = pattern.at(index, (0, 0), path="y")
    assert isinstance(refused, Refusal)
    assert refused.reason == "Add 'n_y' reads 'x' where path is 'y'"
