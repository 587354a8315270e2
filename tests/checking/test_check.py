"""The comparison with a reference: nothing equal differs, every change is found, and found where it is."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporters import EXPORTED
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from random_examples import examples, some

from onnxsep.checking import CheckResult, Difference, check
from onnxsep.checking.structure import HEADER, describe
from onnxsep.errors import FeedError, ModelLoadError, ModelSaveError, OptionError
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import RuntimeOptions

MODELS = EXPORTED
SMALL = """
    <ir_version: 8, opset_import: ["" : 17]>
    main (float[batch, 3, 8, 8] image, float[batch, 4] extra) => (float[batch, 4] scores)
    {
        first = Conv <pads = [1, 1, 1, 1]> (image, kernel1, bias1)
        active = Relu (first)
        second = Conv <pads = [1, 1, 1, 1]> (active, kernel2)
        sum = Sub (second, active)
        last = Relu (sum)
        axes = Constant <value = int64[2] {2, 3}> ()
        mean = ReduceMean <axes = [2, 3], keepdims = 0> (last)
        scores = Sub (mean, extra)
    }
"""


def small() -> onnx.ModelProto:
    """Two Convs in a residual block; asymmetric operators, so that swapped edges show."""
    proto = parser.parse_model(SMALL)
    generator = np.random.default_rng(7)
    for name, shape in {"kernel1": (4, 3, 3, 3), "bias1": (4,), "kernel2": (4, 4, 3, 3)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"node{index}"
    onnx.checker.check_model(proto, full_check=True)
    return proto


def renamed(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The same model, every name another: tensors, graphs, dimensions; some nodes lose theirs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    generator = random.Random(seed)
    names: dict[str, str] = {}

    def new(name: str) -> str:
        if name and name not in names:
            names[name] = f"{generator.choice(['t', 'a b', '%'])}{len(names)}"
        return names.get(name, "")

    def graph(one: onnx.GraphProto) -> None:
        one.name = new(f"graph {one.name}")
        for values in (one.input, one.output, one.value_info, one.initializer):
            for value in values:
                value.name = new(value.name)
        for index, node in enumerate(one.node):
            node.name = f"{one.name}/{index}" if generator.random() < 0.5 else ""
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graph(attribute.g)

    def symbols(message: Any) -> None:
        for field, value in message.ListFields():
            if field.name == "dim_param":
                message.dim_param = f"d {value}"
            elif field.message_type is not None and not isinstance(value, TensorProto):
                for item in value if hasattr(value, "add") else [value]:
                    symbols(item)

    graph(copy.graph)
    symbols(copy.graph)
    return copy


def structure_of(model: onnx.ModelProto, reference: onnx.ModelProto, **options: Any) -> tuple[Difference, ...]:
    result = check(model, reference, weights=False, outputs=False, **options)
    assert [part.name for part in result.parts] == ["structure"]
    assert result.exit_status == (3 if result.parts[0].differences else 0)
    return result.parts[0].differences


def part(result: CheckResult, name: str) -> Any:
    return next(part for part in result.parts if part.name == name)


def float32(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


# Equal models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some(MODELS, 4))
def test_a_real_model_is_the_same_as_itself_renamed(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    model = load(path)
    result = check(path, path)
    assert {entry.name: entry.status for entry in result.parts} == dict.fromkeys(
        ("structure", "weights", "outputs"), "same"
    )
    other = Model(renamed(model.proto), None, model.base_dir)
    result = check(other, path, ignore_names=True)
    assert result.same, result
    result = check(other, path, outputs=False)
    assert {entry.status for entry in result.parts} == {"differs"}
    assert result.exit_status == 3


@pytest.mark.parametrize("name", ["neg_custom_domain_decodeimage", "neg_opset1_constant_weights_cntk"])
def test_a_reference_that_cannot_run_skips_the_outputs_with_the_reason(shared: Path, name: str) -> None:
    path = shared / "models" / "negative" / f"{name}.onnx"
    result = check(path, path)
    assert [entry.status for entry in result.parts] == ["same", "same", "skipped"]
    assert part(result, "outputs").reason.startswith("the runtime cannot run the reference: ")
    assert result.same
    assert result.exit_status == 0


def test_a_check_that_compares_nothing_does_not_pass(shared: Path) -> None:
    path = shared / "models" / "negative" / "neg_opset1_constant_weights_cntk.onnx"
    result = check(path, path, structure=False, weights=False)
    assert [entry.status for entry in result.parts] == ["skipped"]
    assert not result.same
    assert result.exit_status == 3


# One change each ----------------------------------------------------------------------------------------------------


def _set_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].attribute[0].ints[:] = [0, 0, 0, 0]


def _add_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].attribute.append(helper.make_attribute("auto_pad", "NOTSET"))


def _rewire(proto: onnx.ModelProto) -> None:
    proto.graph.node[4].input[0] = "second"


def _swap(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].input[:] = ["active", "second"]


def _change_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[4].op_type = "Abs"


def _change_domain(proto: onnx.ModelProto) -> None:
    proto.graph.node[4].domain = "custom"


def _drop(proto: onnx.ModelProto) -> None:
    proto.graph.node[5 - 1].output[0] = "unused"
    del proto.graph.node[4]
    proto.graph.node[5].input[0] = "sum"


def _insert(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(5, helper.make_node("Identity", ["last"], ["copy"], name="inserted"))


def _set_metadata(proto: onnx.ModelProto) -> None:
    entry = proto.graph.node[2].metadata_props.add()
    entry.key, entry.value = "onnxsep.mode", "spatial"


def _shape_of_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), "kernel2"))


def _type_of_weight(proto: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(proto.graph.initializer[2]).astype(np.float16)
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, "kernel2"))


def _input_shape(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _output_shape(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_value")


def _opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 16


def _ir_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = 9


def _constant(proto: onnx.ModelProto) -> None:
    proto.graph.node[5].attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([3, 2])))


def _drop_input(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0].input[2]


CHANGES: list[tuple[Callable[[onnx.ModelProto], None], str, str]] = [
    (_set_attribute, "Conv @node2", "attribute pads is [0, 0, 0, 0], expected [1, 1, 1, 1]"),
    (_add_attribute, "Conv @node2", 'attribute auto_pad is "NOTSET", expected none'),
    (_rewire, "Relu @node4", "input 1 is %second, expected %sum"),
    (_swap, "Sub @node3", "input 1 is %active, expected %second; input 2 is %second, expected %active"),
    (_change_operator, "Abs @node4", "operator is Abs, expected Relu"),
    (_change_domain, "custom.Relu @node4", "operator is custom.Relu, expected Relu"),
    (_drop, "Relu @node4", "missing"),
    (_insert, "Identity @inserted", "not in the reference"),
    (_set_metadata, "Conv @node2", "not in the reference"),
    (_shape_of_weight, "weight %kernel2", "type is float32[4, 4, 1, 1], expected float32[4, 4, 3, 3]"),
    (_type_of_weight, "weight %kernel2", "type is float16[4, 4, 3, 3], expected float32[4, 4, 3, 3]"),
    (_input_shape, "input %image", "type is float32[2, 3, 8, 8], expected float32[$batch, 3, 8, 8]"),
    (_output_shape, "output %scores", "type is float32[$batch, ?], expected float32[$batch, 4]"),
    (_opset, "opset ai.onnx 16", "is opset ai.onnx 16, expected opset ai.onnx 17"),
    (_ir_version, "ir_version 9", "is ir_version 9, expected ir_version 8"),
    (_constant, "constant %axes", "value is [3, 2], expected [2, 3]"),
    (_drop_input, "Conv @node0", "input 3 is none, expected %bias1"),
]


@pytest.mark.parametrize(("change", "where", "message"), CHANGES, ids=[change.__name__ for change, *_ in CHANGES])
def test_one_change_is_reported_at_its_place(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], where: str, message: str
) -> None:
    proto = small()
    change(proto)
    first, *rest = structure_of(proto, small())
    [found] = [difference for difference in (first, *rest) if difference.where == where]
    assert found.message.startswith(message)
    assert len(rest) <= 2, "what follows from one change is not reported again and again"

    # Against a text the same, and with the line that holds what was expected.
    text = tmp_path / "reference.txt"
    check(small(), text, update=True)
    against_text = structure_of_text(proto, text)
    assert [(one.where, one.message) for one in against_text] == [(one.where, one.message) for one in (first, *rest)]
    lines = text.read_text(encoding="utf-8").split("\n")
    for difference in against_text:
        assert difference.reference_line is not None
        if difference.expected is not None:
            assert lines[difference.reference_line - 1].strip() == difference.expected.split("\n")[0].strip()

    # Names do not matter for finding it.
    nameless = structure_of(renamed(proto), small(), ignore_names=True)
    assert where.split()[0] in [difference.where.split()[0] for difference in nameless]
    assert len(nameless) <= 3


def test_a_replaced_conv_is_told_as_missing_and_new() -> None:
    """As a rewrite does it: the last of the new nodes takes over the output's name."""
    proto = small()
    proto.graph.node[2].CopyFrom(helper.make_node("Conv", ["active", "vertical"], ["between"], name="vertical"))
    last = helper.make_node("Conv", ["between", "horizontal"], ["second"], name="horizontal", pads=[1, 2, 1, 2])
    proto.graph.node.insert(3, last)
    del proto.graph.initializer[2]
    for name, shape in {"vertical": (2, 4, 3, 1), "horizontal": (4, 2, 1, 3)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    found = [(difference.where, difference.message.split(";")[0]) for difference in structure_of(proto, small())]
    assert found == [
        ("weight %kernel2", "missing"),
        ("Conv @vertical", "not in the reference: 3 statements"),
        ("Conv @horizontal", "input 1 is %between, expected %active"),
    ]


def structure_of_text(model: onnx.ModelProto, text: Path) -> tuple[Difference, ...]:
    result = check(model, text)
    assert [entry.status for entry in result.parts[1:]] == ["skipped", "skipped"]
    differences: tuple[Difference, ...] = result.parts[0].differences
    return differences


def test_new_statements_point_to_the_line_before_them(tmp_path: Path) -> None:
    proto, text = small(), tmp_path / "reference.txt"
    check(proto, text, update=True)
    _insert(proto)
    [difference] = structure_of_text(proto, text)
    assert difference.expected is None
    assert difference.actual == "%copy = Identity(%last) @inserted -> float32[$batch, 4, 8, 8]"
    assert difference.reference_line is not None
    assert "@node4" in text.read_text(encoding="utf-8").split("\n")[difference.reference_line - 1]


def test_inferred_types_that_change_with_one_node_are_told_once() -> None:
    proto = small()
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2]))
    first, second = structure_of(proto, small())
    assert first.message == (
        "attribute strides is [2, 2], expected none; "
        "type is float32[$batch, 4, 4, 4], expected float32[$batch, 4, 8, 8]"
    )
    assert second.message == "the inferred types of 4 more tensor(s) differ, as a consequence of the above"


def test_nodes_in_another_order_are_told_as_moved() -> None:
    def build(order: list[int]) -> onnx.ModelProto:
        proto = parser.parse_model(
            """
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[4] x) => (float[4] y)
            { a = Abs (x) b = Neg (x) c = Exp (b) y = Sub (a, c) }
            """
        )
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes[index] for index in order)
        return proto

    [difference] = structure_of(build([1, 2, 0, 3]), build([0, 1, 2, 3]))
    assert difference.where == "Abs %a"
    assert difference.message == "stands in another place: after Exp %c"


def test_a_change_inside_a_subgraph_names_the_way_there() -> None:
    def build(operator: str) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 8, opset_import: ["" : 17]>
            main (bool flag, float[4] x) => (float[4] y)
            {{
                y = If (flag) <
                    then_branch = yes () => (float[4] a) {{ a = Abs (x) }},
                    else_branch = no () => (float[4] b) {{ t = Abs (x) b = {operator} (t) }}
                >
            }}
            """
        )

    [difference] = structure_of(build("Exp"), build("Neg"))
    assert difference.where == "If %y > else_branch > Exp %b"
    assert difference.message == "operator is Exp, expected Neg"


def test_branches_may_use_the_same_names_where_the_reference_does_not() -> None:
    def build(inner: str) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 8, opset_import: ["" : 17]>
            main (bool flag, float[4] x) => (float[4] y)
            {{
                y = If (flag) <
                    then_branch = yes () => (float[4] a) {{ t = Abs (x) a = Sub (t, x) }},
                    else_branch = no () => (float[4] b) {{ {inner} = Neg (x) b = Sub ({inner}, x) }}
                >
            }}
            """
        )

    assert structure_of(build("t"), build("other"), ignore_names=True) == ()
    assert structure_of(build("other"), build("t"), ignore_names=True) == ()
    assert len(structure_of(build("t"), build("other"))) == 2


def test_a_function_has_names_of_its_own() -> None:
    def build(inner: str, used: str) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
            main (float[4] x, float[4] z) => (float[4] y) {{ y = local.Minus (x, z) }}
            <domain: "local", opset_import: ["" : 17]>
            Minus (x, {inner}) => (y) {{ y = Sub (x, {used}) }}
            """
        )

    assert structure_of(build("w", "w"), build("z", "z"), ignore_names=True) == ()
    [difference] = structure_of(build("w", "x"), build("z", "z"), ignore_names=True)
    assert difference.where == "function local.Minus > Sub %y"
    assert difference.message == "input 2 is %x, expected %w"


def test_what_inference_does_not_know_fits_anything(tmp_path: Path) -> None:
    text = tmp_path / "reference.txt"
    check(small(), text, update=True)
    lines = text.read_text(encoding="utf-8").split("\n")

    def with_type(old: str, new: str) -> tuple[Difference, ...]:
        changed = [line.replace(f"-> {old}", f"-> {new}") if "@node1" in line else line for line in lines]
        assert changed != lines
        text.write_text("\n".join(changed), encoding="utf-8")
        return structure_of_text(small(), text)

    known = "float32[$batch, 4, 8, 8]"
    assert with_type(known, "float32[?, 4, ?, 8]") == ()
    assert with_type(known, "float32[...]") == ()
    assert with_type(known, "?") == ()
    assert with_type(known, "?[$batch, 4, 8, 8]") == ()
    for wrong in ("float16[...]", "float32[?, 4, 8]", "float32[?, ?, ?, 9]", "float32[$n, 4, 8, 8]", "float32[]"):
        [difference] = with_type(known, wrong)
        assert difference.message == f"type is {known}, expected {wrong}"


def test_line_ends_and_marks_that_editors_add_do_not_matter(tmp_path: Path) -> None:
    text = tmp_path / "reference.txt"
    check(small(), text, update=True)
    data = text.read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
    text.write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"  \r\n") + b"\r\n")
    assert structure_of_text(small(), text) == ()


def test_names_with_signs_of_the_text_form_are_told_apart() -> None:
    def build(tensor: str, node: str) -> onnx.ModelProto:
        proto = small()
        for one in proto.graph.node:
            one.input[:] = [tensor if name == "active" else name for name in one.input]
            one.output[:] = [tensor if name == "active" else name for name in one.output]
        proto.graph.node[1].name = node
        return proto

    odd = ') {a = [1]} @x -> "%y\\'
    assert structure_of(build(odd, odd), build(odd, odd)) == ()
    assert structure_of(build(odd, odd), small(), ignore_names=True) == ()
    assert [found.message for found in structure_of(build("active", odd), small())] == [
        'name is @") {a = [1]} @x -> \\"%y\\\\", expected @node1'
    ]


# Random changes -----------------------------------------------------------------------------------------------------


@st.composite
def mutations(draw: st.DrawFn) -> tuple[onnx.ModelProto, str]:
    """A random chain of elementwise operators with skips, and one random change that alters what it computes."""
    count = draw(st.integers(4, 12))
    nodes = []
    for index in range(count):
        one = draw(st.integers(0, index))
        other = draw(st.integers(0, index))
        operator = draw(st.sampled_from(["Sub", "Pow", "Div", "LeakyRelu"]))
        inputs = [f"t{one}"] if operator == "LeakyRelu" else [f"t{one}", f"t{other}"]
        node = helper.make_node(operator, inputs, [f"t{index + 1}"], name=f"n{index}")
        if operator == "LeakyRelu":
            node.attribute.append(helper.make_attribute("alpha", draw(st.sampled_from([0.25, 0.5]))))
        nodes.append(node)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("t0", TensorProto.FLOAT, ["n", 3])],
        [info(f"t{count}", TensorProto.FLOAT, ["n", 3]), info(f"t{count - 1}", TensorProto.FLOAT, ["n", 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto, draw(st.sampled_from(["edge", "operator", "drop", "attribute", "metadata", "output"]))


@given(mutations(), st.data())
@settings(max_examples=200, deadline=None)
def test_any_single_change_is_found_with_and_without_names(
    pair: tuple[onnx.ModelProto, str], data: st.DataObject
) -> None:
    reference, kind = pair
    proto = onnx.ModelProto()
    proto.CopyFrom(reference)
    nodes = proto.graph.node
    index = data.draw(st.integers(1, len(nodes) - 1))
    node = nodes[index]
    if kind == "edge":
        slot = data.draw(st.integers(0, len(node.input) - 1))
        node.input[slot] = data.draw(
            st.sampled_from([f"t{number}" for number in range(index + 1) if f"t{number}" != node.input[slot]])
        )
    elif kind == "operator":
        node.op_type = "Mod" if len(node.input) == 2 else "Elu"
    elif kind == "drop":
        for later in nodes[index + 1 :]:
            later.input[:] = [node.input[0] if name == node.output[0] else name for name in later.input]
        for output in proto.graph.output:
            if output.name == node.output[0]:
                output.name = node.input[0]
        del nodes[index]
    elif kind == "attribute":
        node.attribute.append(helper.make_attribute("new", 1))
    elif kind == "metadata":
        entry = node.metadata_props.add()
        entry.key, entry.value = "key", "value"
    else:
        proto.graph.output[0].name, proto.graph.output[1].name = (
            proto.graph.output[1].name,
            proto.graph.output[0].name,
        )
    assert structure_of(renamed(reference, seed=index), reference, ignore_names=True) == ()
    assert structure_of(proto, reference)
    assert structure_of(renamed(proto, seed=index), reference, ignore_names=True)


@given(st.integers(0, 2**32), st.integers(1, 400))
@settings(max_examples=examples(8, deep=30), deadline=None)
def test_many_changes_leave_the_rest_paired(seed: int, changed: int) -> None:
    """Of a long network each statement is either the same on both sides or part of a difference, never lost."""
    generator = random.Random(seed)

    def build(changes: set[int]) -> onnx.ModelProto:
        kinds = ["Relu", "Neg", "Abs"]
        nodes = [
            helper.make_node("Exp" if index in changes else kinds[index % 3], [f"t{index}"], [f"t{index + 1}"])
            for index in range(500)
        ]
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("t0", "t500")]
        graph = helper.make_graph(nodes, "g", info[:1], info[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    changes = set(generator.sample(range(500), changed))
    differences = structure_of(build(changes), build(set()))
    assert [difference.message for difference in differences] == [
        f"operator is Exp, expected {['Relu', 'Neg', 'Abs'][index % 3]}" for index in sorted(changes)
    ]
    nameless = structure_of(renamed(build(changes)), build(set()), ignore_names=True)
    told = sum((difference.actual or "").count("= Exp(") for difference in nameless)
    assert told == changed


# Weights ------------------------------------------------------------------------------------------------------------


def with_weight(values: Any, name: str = "w") -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.asarray(values), name)
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", weight.data_type, list(weight.dims))],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def weights_of(model: Any, reference: Any, **options: Any) -> tuple[Difference, ...]:
    result = check(model, reference, structure=False, outputs=False, **options)
    assert [entry.name for entry in result.parts] == ["weights"]
    differences: tuple[Difference, ...] = result.parts[0].differences
    return differences


def test_weights_within_the_tolerance_are_the_same() -> None:
    reference = np.array([1.0, -100.0, 0.0])
    off = np.array([1.0, -99.985, 0.0])
    assert weights_of(with_weight(off), with_weight(reference), rtol=1e-4, atol=0.006) == ()
    [difference] = weights_of(with_weight(off), with_weight(reference), rtol=1e-4, atol=0.004)
    assert difference.where == "%w"
    assert difference.message == (
        "1 of 3 elements differ; the largest difference is 0.015 at [1]: -99.985, expected -100.0"
    )


def test_the_tolerance_is_relative_to_the_reference() -> None:
    assert weights_of(with_weight([1.5]), with_weight([1.0]), rtol=0.4, atol=0.0)
    assert weights_of(with_weight([1.0]), with_weight([1.5]), rtol=0.4, atol=0.0) == ()


@pytest.mark.parametrize(
    ("values", "reference", "count"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], 0),
        ([np.nan, 1.0], [0.0, 1.0], 1),
        ([0.0, 1.0], [np.nan, 1.0], 1),
        ([np.inf, -np.inf], [np.inf, -np.inf], 0),
        ([np.inf, np.inf], [np.inf, -np.inf], 1),
        ([1e30, 1.0], [np.inf, 1.0], 1),
        ([np.inf, 1.0], [1e30, 1.0], 1),
    ],
)
def test_numbers_that_are_none(values: list[float], reference: list[float], count: int) -> None:
    found = weights_of(with_weight(float32(values)), with_weight(float32(reference)), rtol=0.5, atol=1.0)
    assert [difference.message.split(" of ")[0] for difference in found] == [str(count)] * bool(count)


def test_integers_count_as_they_are() -> None:
    large = 2**53
    assert weights_of(with_weight([large]), with_weight([large])) == ()
    assert weights_of(with_weight([large + 1]), with_weight([large]), rtol=0.5)
    assert weights_of(with_weight([10]), with_weight([11]), atol=1.0) == ()
    assert weights_of(with_weight([True]), with_weight([False]))
    unsigned = np.array([0], np.uint8), np.array([255], np.uint8)
    [difference] = weights_of(with_weight(unsigned[0]), with_weight(unsigned[1]), atol=200.0)
    assert "the largest difference is 255" in difference.message


@pytest.mark.parametrize("data_type", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_types_that_numpy_does_not_have(data_type: int) -> None:
    def build(values: list[float]) -> onnx.ModelProto:
        proto = with_weight(np.zeros(2, np.float32))
        proto.graph.initializer[0].CopyFrom(helper.make_tensor("w", data_type, [2], values))
        return proto

    assert weights_of(build([1, 2]), build([1, 2])) == ()
    [difference] = weights_of(build([1, 2]), build([1, 3]))
    assert difference.message.startswith("1 of 2 elements differ; the largest difference is 1 at [1]")


def test_strings_must_be_equal() -> None:
    def build(values: list[bytes]) -> onnx.ModelProto:
        proto = with_weight(np.zeros(2, np.float32))
        weight = TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], string_data=values)
        proto.graph.initializer[0].CopyFrom(weight)
        return proto

    assert weights_of(build([b"a", b"b"]), build([b"a", b"b"])) == ()
    assert weights_of(build([b"a", b"b"]), build([b"a", b"c"]))


def test_type_and_shape_of_weights() -> None:
    [difference] = weights_of(with_weight(np.zeros(2, np.float32)), with_weight(np.zeros(2)))
    assert difference.message == "element type is float, expected double"
    [difference] = weights_of(with_weight(np.zeros((2, 3))), with_weight(np.zeros((3, 2))))
    assert difference.message == "shape is [2, 3], expected [3, 2]"


def test_weights_that_only_one_side_has() -> None:
    reference = small()
    proto = small()
    proto.graph.initializer[2].name = "other"
    proto.graph.node[2].input[1] = "other"
    assert [(found.where, found.message) for found in weights_of(proto, reference)] == [
        ("%kernel2", "the model has no such weight"),
        ("%other", "the reference has no such weight"),
    ]
    assert weights_of(proto, reference, ignore_names=True) == ()


def test_weights_are_paired_by_their_place_where_names_are_ignored() -> None:
    proto = renamed(small())
    values = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    values[1, 2, 0, 1] += 0.5
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, proto.graph.initializer[2].name))
    proto.graph.node.insert(1, helper.make_node("Abs", [proto.graph.node[0].output[0]], ["new"]))
    [difference] = weights_of(proto, small(), ignore_names=True)
    assert "the largest difference is 0.5 at [1, 2, 0, 1]" in difference.message


def test_values_of_constants_and_attributes_are_weights() -> None:
    def build(value: float) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[2] x, int64[1] s) => (float[2] y)
            {{
                c = Constant <value = float[1] {{{value}}}> ()
                z = Mul (x, c)
                t = ConstantOfShape <value = float[1] {{{value}}}> (s)
                y = Add (z, t)
            }}
            """
        )

    assert structure_of(build(1.0), build(2.0)) == ()
    assert [found.where for found in weights_of(build(1.0), build(2.0))] == ["%c", "%t, value"]


def test_external_weights_are_compared(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((300, 7)).astype(np.float32)
    path = tmp_path / "external.onnx"
    onnx.save_model(with_weight(values), path, save_as_external_data=True, size_threshold=0)
    assert weights_of(path, with_weight(values)) == ()
    values[299, 6] += 1.0
    [difference] = weights_of(path, with_weight(values))
    assert "1 of 2100 elements differ; the largest difference is 1 at [299, 6]" in difference.message


def test_large_weights_are_compared_to_the_last_element() -> None:
    values = np.zeros((2**20 + 5, 2), np.float32)
    reference = with_weight(values)
    values[0, 1], values[-1, 1] = 1.0, 2.0
    [difference] = weights_of(with_weight(values), reference)
    assert "2 of 2097162 elements differ; the largest difference is 2 at [1048580, 1]" in difference.message


# Outputs ------------------------------------------------------------------------------------------------------------


def outputs_of(model: Any, reference: Any, **options: Any) -> Any:
    result = check(model, reference, structure=False, weights=False, **options)
    assert [entry.name for entry in result.parts] == ["outputs"]
    return result.parts[0]


def test_outputs_show_what_weights_do() -> None:
    proto = small()
    assert outputs_of(proto, small()).status == "same"
    values = numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1.5)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "kernel1"))
    found = outputs_of(proto, small())
    assert found.status == "differs"
    assert [difference.where for difference in found.differences] == ["output 'scores'"]
    assert "of 4 elements differ" in found.differences[0].message
    assert "relative error" in found.differences[0].message
    assert found.notes == (
        "input 'image': free dimension 'batch' set to 1",
        "input 'extra': free dimension 'batch' set to 1",
    )
    assert outputs_of(proto, small(), output_atol=100.0).status == "same"


def test_inputs_are_given_by_place_where_names_are_ignored() -> None:
    assert outputs_of(renamed(small()), small(), ignore_names=True).status == "same"
    found = outputs_of(renamed(small()), small())
    assert [difference.where for difference in found.differences] == ["inputs"]
    assert found.differences[0].message.endswith("; expected image, extra")


def test_the_tolerance_of_outputs_is_relative_to_the_largest() -> None:
    reference = float32([1000.0, 0.0])
    near, far = float32([1000.0, 0.05]), float32([1000.0, 0.2])
    assert outputs_of(with_weight(near), with_weight(reference), output_rtol=0.0, output_atol=1e-4).status == "same"
    assert outputs_of(with_weight(far), with_weight(reference), output_rtol=0.0, output_atol=1e-4).status == "differs"
    zeros = np.zeros(2, np.float32)
    assert outputs_of(with_weight(zeros + 1e-5), with_weight(zeros)).status == "same"
    assert outputs_of(with_weight(zeros + 1e-3), with_weight(zeros)).status == "differs"


def test_integer_outputs_must_be_equal() -> None:
    assert outputs_of(with_weight([100000, 1]), with_weight([100000, 1])).status == "same"
    assert outputs_of(with_weight([100001, 1]), with_weight([100000, 1])).status == "differs"


def test_shapes_and_types_of_outputs() -> None:
    [difference] = outputs_of(with_weight([[1.0, 2.0]]), with_weight([1.0, 2.0])).differences
    assert difference.message == "shape is [1, 2], expected [2]"
    [difference] = outputs_of(with_weight(float32([1.0])), with_weight([1.0])).differences
    assert difference.message == "element type is float32, expected float64"


def test_outputs_that_only_one_side_has() -> None:
    proto = small()
    proto.graph.output.append(helper.make_tensor_value_info("active", TensorProto.FLOAT, None))
    [difference] = outputs_of(proto, small()).differences
    assert (difference.where, difference.message) == ("output 'active'", "the model has it, the reference not")
    [difference] = outputs_of(small(), proto).differences
    assert (difference.where, difference.message) == ("output 'active'", "the reference has it, the model not")


def test_sequences_are_compared_element_by_element() -> None:
    def build(operator: str) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[4] x) => (seq(float[4]) y)
            {{ a = Abs (x) b = {operator} (x) y = SequenceConstruct (a, b) }}
            """
        )

    assert outputs_of(build("Neg"), build("Neg")).status == "same"
    [difference] = outputs_of(build("Exp"), build("Neg")).differences
    assert difference.where == "output 'y'[1]"


def test_a_model_that_cannot_run_differs_from_one_that_can() -> None:
    proto = small()
    proto.graph.node[1].op_type = "NoSuchOperator"
    [difference] = outputs_of(proto, small()).differences
    assert difference.where == "the model"
    assert difference.message.startswith("the runtime cannot run it, though it runs the reference: ")
    assert "NoSuchOperator" in difference.message
    found = outputs_of(small(), proto)
    assert found.status == "skipped"
    assert "NoSuchOperator" in found.reason


def test_given_inputs_and_shapes_and_runtime(tmp_path: Path) -> None:
    def clipped(limit: float) -> onnx.ModelProto:
        return parser.parse_model(
            f"""
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[n] x) => (float[n] y)
            {{ c = Constant <value = float {{{limit}}}> () y = Min (x, c) }}
            """
        )

    low, high = tmp_path / "low.npy", tmp_path / "high.npy"
    np.save(low, float32([1.0, 2.0]))
    np.save(high, float32([1.0, 2.0, 60.0]))
    one_thread = RuntimeOptions(threads=1, optimize=False)
    assert outputs_of(clipped(50.0), clipped(55.0), inputs=low, runtime=one_thread).status == "same"
    assert outputs_of(clipped(50.0), clipped(55.0), inputs=high, runtime=one_thread).status == "differs"
    found = outputs_of(clipped(-50.0), clipped(50.0), input_shapes={"x": (7,)})
    assert "of 7 elements differ" in found.differences[0].message
    with pytest.raises(FeedError, match="no input 'nothing'"):
        outputs_of(clipped(1.0), clipped(1.0), input_shapes={"nothing": (1,)})


def test_the_seed_decides_the_random_inputs() -> None:
    messages = [
        [found.message for found in outputs_of(small_scaled(), small(), seed=seed).differences] for seed in (0, 0, 1)
    ]
    assert messages[0] == messages[1] != messages[2]


def small_scaled() -> onnx.ModelProto:
    proto = small()
    values = numpy_helper.to_array(proto.graph.initializer[1]) + np.float32(1)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "bias1"))
    return proto


def test_inputs_that_cannot_be_made_skip_the_outputs() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> main (string[2] x) => (string[2] y) { y = Identity (x) }'
    )
    found = outputs_of(proto, proto)
    assert found.status == "skipped"
    assert found.reason.startswith("no inputs could be made: ")


# References ---------------------------------------------------------------------------------------------------------


def test_update_writes_the_text_and_reads_it_back(tmp_path: Path) -> None:
    path = tmp_path / "reference.TXT"
    result = check(small(), path, update=True)
    assert [(entry.name, entry.status, entry.reason) for entry in result.parts] == [("reference", "updated", "created")]
    assert result.same
    assert path.read_bytes().decode("utf-8") == describe(load(small())).text
    assert structure_of_text(small(), path) == ()
    assert check(small(), path, update=True).parts[0].reason == "was up to date"
    other = small()
    _change_operator(other)
    assert not check(other, path).same
    assert check(other, path, update=True).parts[0].reason == "rewritten"
    assert check(other, path).same
    assert [entry.name for entry in tmp_path.iterdir()] == ["reference.TXT"], "nothing is left over"


def test_update_writes_a_copy_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "reference.onnx"
    result = check(small(), path, update=True)
    assert result.parts[0].reason == "created"
    assert onnx.load(path) == small()
    assert check(small(), path).same
    assert check(small_scaled(), path, update=True).parts[0].reason == "rewritten"
    assert check(small_scaled(), path).same


def test_a_reference_that_cannot_be_written_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ModelSaveError, match=r"folder\.txt cannot be written: it is a folder"):
        check(small(), tmp_path / "folder.txt", update=True)
    with pytest.raises(ModelSaveError, match="no folder is not a folder"):
        check(small(), tmp_path / "no folder" / "reference.txt", update=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.txt"]
    with pytest.raises(OptionError, match="give its path"):
        check(small(), small(), update=True)


@pytest.mark.parametrize("name", ["reference.txt", "reference.onnx"])
def test_a_missing_reference_tells_how_to_make_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"does not exist; write it from the model with update=True"):
        check(small(), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no reference of onnxsep"),
        (b"graph @main\n", "is no reference of onnxsep"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (b"onnxsep structure, version 999\n", f"has the format 'onnxsep structure, version 999'.*{HEADER}"),
    ],
)
def test_texts_that_are_no_reference(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "reference.txt"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        check(small(), path)
    with pytest.raises(ModelLoadError, match="cannot read the reference"):
        check(small(), tmp_path.rename(tmp_path.with_suffix(".txt")))


def test_a_text_with_lines_that_say_nothing_differs(tmp_path: Path) -> None:
    path = tmp_path / "reference.txt"
    path.write_text(f'{HEADER}\n%x = Conv(\n   @ $ "\n  -> \n(((((, = ) {{\n', encoding="utf-8")
    assert structure_of_text(small(), path)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_to_a_text_is_found_and_breaks_nothing(data: st.DataObject) -> None:
    lines = describe(load(small())).text.split("\n")
    index = data.draw(st.integers(1, len(lines) - 2))
    known = lines[index].find(" -> ")
    end = len(lines[index]) if known < 0 else known
    start = len(lines[index]) - len(lines[index].lstrip())
    position = data.draw(st.integers(start, end - 1))
    sign = data.draw(st.sampled_from(list('()[]{}"%$@#=,?\\.x -')).filter(lambda sign: sign != lines[index][position]))
    remove = data.draw(st.booleans())
    changed = lines[index][:position] + ("" if remove else sign) + lines[index][position + 1 :]
    lines[index] = changed
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reference.txt")
        path.write_text("\n".join(lines), encoding="utf-8")
        assert structure_of_text(small(), path)
        check(small(), path, ignore_names=True)


@pytest.mark.parametrize("option", ["rtol", "atol", "output_rtol", "output_atol"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_tolerances_out_of_range(option: str, value: float) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(OptionError, match=f"{option} must be a number of 0 or more"):
        check(small(), small(), **options)


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to compare"):
        check(small(), small(), structure=False, weights=False, outputs=False)
    path = tmp_path / "reference.txt"
    check(small(), path, update=True)
    with pytest.raises(OptionError, match="a text reference holds the structure only"):
        check(small(), path, structure=False)


def test_the_result_names_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "reference.txt"
    result = check(small(), path, update=True)
    assert (result.model, result.reference) == ("(a model in memory)", str(path))


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE])
def test_outputs_without_a_kernel_are_compared_through_float32(kind: int) -> None:
    def conv(scale: float) -> onnx.ModelProto:
        values = np.random.default_rng(0).standard_normal((3, 2, 3, 3)) * scale
        node = helper.make_node("Conv", ["x", "w"], ["y"])
        value = helper.make_tensor_value_info("x", kind, [1, 2, 5, 6])
        output = helper.make_tensor_value_info("y", kind, [1, 3, 3, 4])
        graph = helper.make_graph([node], "g", [value], [output], [numpy_helper.from_array(values, "w")])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    same = check(conv(1.0), conv(1.0), structure=False, weights=False)
    assert same.parts[0].status == "same"
    assert any("float32 copies" in note for note in same.parts[0].notes)
    assert check(conv(1.1), conv(1.0), structure=False, weights=False).parts[0].status == "differs"


def test_update_does_not_overwrite_something_else(tmp_path: Path) -> None:
    script, notes = tmp_path / "train.py", tmp_path / "notes.txt"
    for path in (script, notes):
        path.write_text("precious")
        with pytest.raises(OptionError, match=path.name):
            check(small(), path, update=True)
        assert path.read_text() == "precious"


def test_float32_copies_do_not_hide_another_type() -> None:
    def conv(kind: int) -> onnx.ModelProto:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        weight = numpy_helper.from_array(np.ones((3, 2, 3, 3), dtype), "w")
        value = helper.make_tensor_value_info("x", kind, [1, 2, 5, 6])
        output = helper.make_tensor_value_info("y", kind, [1, 3, 3, 4])
        graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [value], [output], [weight])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    result = check(conv(TensorProto.FLOAT), conv(TensorProto.DOUBLE), structure=False, weights=False)
    (difference,) = result.parts[0].differences
    assert (difference.where, difference.message) == ("output 'y'", "element type is FLOAT, expected DOUBLE")


def test_update_takes_a_reference_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "reference.txt"
    path.write_bytes(b"\xef\xbb\xbf" + describe(load(small())).text.encode())
    assert check(small(), path).same
    check(small(), path, update=True)
    assert path.read_bytes().startswith(b"onnxsep structure")
