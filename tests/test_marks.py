"""What onnxsep says of the nodes that it made stands once in the model, by graph and output name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from marked import marked
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.checking.structure import describe
from onnxsep.graph.marks import KEY, Marks, into_model, onto_nodes
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import Model

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def conv(reads: str, makes: str, weight_name: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node("Conv", [reads, weight_name], [makes], name=name, pads=[1, 1, 1, 1])


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, ["n", 8, 6, 6])


def chain(opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    graph = helper.make_graph(
        [conv("x", "a", "w1", "one"), helper.make_node("Relu", ["a"], ["b"]), conv("b", "y", "w2", "two")],
        "chain",
        [value("x"), *([value_of(name) for name in ("w1", "w2")] if ir < 4 else [])],
        [value("y")],
        [weight("w1", 8, 8, 3, 3), weight("w2", 8, 8, 3, 3)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def value_of(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, [8, 8, 3, 3])


def branches() -> onnx.ModelProto:
    """Two branches whose tensors have the same names; only what makes `o` in the first one is a Conv."""
    then = helper.make_graph([conv("x", "o", "w", "inner")], "t", [], [value("o")], [weight("w", 8, 8, 3, 3)])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "e", [], [value("o")])
    node = helper.make_node("If", ["c"], ["y"], "choose", then_branch=then, else_branch=other)
    inputs = [value("x"), helper.make_tensor_value_info("c", BOOL, [])]
    graph = helper.make_graph([node], "main", inputs, [value("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def function() -> onnx.ModelProto:
    stored = helper.make_node("Constant", [], ["w"], value=weight("w", 8, 8, 3, 3))
    nodes = [stored, conv("a", "b", "w", "inner")]
    body = helper.make_function("local", "Block", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("Block", ["x"], ["h"], domain="local"), conv("h", "y", "w2", "two")]
    graph = helper.make_graph(calls, "main", [value("x")], [value("y")], [weight("w2", 8, 8, 3, 3)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[body], ir_version=8)


def rewrite(model: Any, mode: str = "depthwise", **options: Any) -> onnxsep.Result:
    return onnxsep.rewrite(model, mode=mode, **{"include_first": True, "verify": "none", **options})


def entry(proto: onnx.ModelProto) -> str | None:
    return next((one.value for one in proto.metadata_props if one.key == KEY), None)


def said(proto: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Where, output, and the mark of every node that has one."""
    all_scopes = scopes(proto)
    marks = Marks(proto, all_scopes)
    return [
        (scope.where, node.output[0], json.dumps(found, sort_keys=True))
        for scope in all_scopes
        for node in scope.body.node
        if (found := marks.of(scope.index, node))
    ]


MODELS = {"chain": chain, "old inputs": lambda: chain(9, 3), "branches": branches, "function": function}
CASES = pytest.mark.parametrize("name", MODELS)


@CASES
def test_the_model_says_it_once_and_nodes_do_not(name: str) -> None:
    source = MODELS[name]()
    source.metadata_props.add(key="mine", value="stays")
    result = rewrite(source)
    assert result.report.totals.replaced
    nodes = [node for scope in scopes(result.proto) for node in scope.body.node]
    assert not any(node.metadata_props for node in nodes)
    assert [one.key for one in result.proto.metadata_props] == ["mine", KEY]
    convs = [node.output[0] for node in nodes if node.op_type == "Conv"]
    assert set(convs) <= {output for _, output, _ in said(result.proto)}
    onnx.checker.check_model(result.proto, full_check=True)


def test_the_entry_is_keyed_by_graph_and_output() -> None:
    text = entry(rewrite(chain(), only="two").proto)
    assert text is not None
    assert json.loads(text) == [[{"mode": "depthwise", "rank": "1"}, {"two": ["y_depthwise", "y"]}]]
    inner = entry(rewrite(branches()).proto)
    assert inner is not None
    assert json.loads(inner) == [
        [{"mode": "depthwise", "rank": "1"}, {"inner": ["o_depthwise", "o"]}, "/y.then_branch"]
    ]
    both = json.loads(entry(rewrite(function()).proto) or "")
    assert {group[2] if len(group) > 2 else "": list(group[1]) for group in both} == {
        "": ["two"],
        "local:Block": ["inner"],
    }


@CASES
@pytest.mark.parametrize("mode", ["depthwise", "spatial", "fold"])
def test_the_same_mode_again_changes_nothing(name: str, mode: str, tmp_path: Path) -> None:
    once = rewrite(MODELS[name](), mode)
    once.save(tmp_path / "once.onnx")
    again = rewrite(tmp_path / "once.onnx", mode)
    assert again.proto.SerializeToString() == once.proto.SerializeToString()
    for other in ("depthwise", "spatial"):
        if mode != "fold":
            assert rewrite(once.proto, other, force=True).report.totals.replaced == 0


@CASES
def test_models_that_say_it_in_each_node_are_understood(name: str) -> None:
    """As versions before wrote them."""
    now = rewrite(MODELS[name]()).proto
    before = marked(now)
    assert entry(before) is None
    assert said(before) == said(now)
    again = rewrite(before, "spatial", force=True)
    assert again.report.totals.replaced == 0
    assert again.proto == before
    assert onnxsep.check(now, before, weights=False, outputs=False).same
    assert onnxsep.check(before, now, weights=False, outputs=False).same
    into_model(before)
    assert before == now


def test_a_damaged_mark_is_a_difference_of_the_structure() -> None:
    now = rewrite(chain()).proto
    other = onnx.ModelProto()
    other.CopyFrom(now)
    other.metadata_props[0].value = other.metadata_props[0].value.replace('"rank":"1"', '"rank":"2"')
    assert not onnxsep.check(other, now, weights=False, outputs=False).same
    del other.metadata_props[:]
    assert not onnxsep.check(other, now, weights=False, outputs=False).same


@pytest.mark.parametrize("old", [False, True])
def test_recursion_replaces_the_mark_of_what_it_splits(old: bool) -> None:
    once = rewrite(chain(), only="two").proto
    twice = rewrite(marked(once) if old else once, "pointwise", recurse=True, force=True, only="two_pointwise")
    assert twice.report.totals.replaced == 1
    marks = {output: json.loads(text) for _, output, text in said(twice.proto)}
    first = {"mode": "depthwise", "rank": "1", "source": "two"}
    new = {"mode": "pointwise", "rank": "2", "source": "two_pointwise"}  # 2 * (8 + 8) is half of 8 * 8
    assert marks.pop("y_depthwise") == first
    assert list(marks.values()) == [new, new]
    assert "y" in marks
    onnx.checker.check_model(twice.proto, full_check=True)


def test_a_new_mark_takes_the_place_of_one_for_the_same_output() -> None:
    result = rewrite(rewrite(chain(), only="two").proto, "pointwise", recurse=True, force=True).proto
    text = entry(result)
    assert text is not None
    names = [name for group in json.loads(text) for outputs in group[1].values() for name in outputs]
    assert len(names) == len(set(names))
    made = {name for node in result.graph.node for name in node.output}
    assert set(names) <= made


def test_inlining_functions_keeps_what_their_nodes_say() -> None:
    result = rewrite(function())
    report = onnxsep.check(result.model, function(), structure=False, weights=False, layers=True)
    (layers,) = [part.layers for part in report.parts if part.layers is not None]
    assert layers.convs_compared == layers.convs == 2


STRANGE = [
    "",
    "[",
    "3",
    "{}x",
    '[["a"]]',
    "[[{}, []]]",
    '[[{"mode": 1}, {"a": ["b"]}]]',
    "[" * 100_000,
    '[[{}, {"a": 5}]]',
    "null",
]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_an_entry_that_is_something_else(text: str) -> None:
    proto = chain()
    proto.metadata_props.add(key=KEY, value=text)
    result = rewrite(proto)
    assert result.report.totals.replaced == 2
    assert any(KEY in note for note in result.report.notes)
    assert len(said(result.proto)) == 4
    assert KEY in describe(Model(proto)).text
    assert rewrite(result.proto).report.totals.replaced == 0


def test_onto_nodes_and_back_again() -> None:
    for build in MODELS.values():
        proto = rewrite(build()).proto
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        onto_nodes(copy)
        into_model(copy)
        assert copy.SerializeToString() == proto.SerializeToString()
