"""The text form: what it says, what it leaves out, and that the same model always gives the same text."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporters import EXPORTED, NEGATIVE
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsep.checking.structure import HEADER, describe
from onnxsep.checking.structure_words import quoted, word
from onnxsep.model import io
from onnxsep.model.tensors import tensor_protos

MODELS = (*EXPORTED, *NEGATIVE)


def lines(proto: onnx.ModelProto) -> list[str]:
    return [line.strip() for line in describe(io.load(proto)).lines]


def tensor(name: str, values: object, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def one_node(node: onnx.NodeProto, *weights: TensorProto, inputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in inputs],
        [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)])


def statement(node: onnx.NodeProto) -> str:
    """The one line that a node of an unknown operator gives."""
    [found] = [line for line in lines(one_node(node, inputs=tuple(node.input))) if " = " in line]
    return found


def test_the_text_of_a_small_network() -> None:
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        main (float[batch, 3, 8, 8] image) => (float[batch, 4] scores)
        <float[4] bias = {1.0, 2.0, 3.0, 4.0}>
        {
            axes = Constant <value = int64[2] {2, 3}> ()
            features = Conv <pads = [1, 1, 1, 1]> (image, kernel, bias)
            active = Relu (features)
            scores = ReduceMean <axes = [2, 3], keepdims = 0> (active)
        }
        """
    )
    proto.graph.node[1].name = "first conv"
    proto.graph.node[2].name = "/relu"
    proto.graph.initializer.append(tensor("kernel", np.ones((4, 3, 3, 3))))
    entry = proto.graph.node[1].metadata_props.add()
    entry.key, entry.value = "onnxsep.mode", "depthwise"
    assert describe(io.load(proto)).text == (
        "onnxsep structure, version 1\n"
        "ir_version 8\n"
        "opset ai.onnx 17\n"
        "graph @main\n"
        "  input %image: float32[$batch, 3, 8, 8]\n"
        "  weight %kernel: float32[4, 3, 3, 3]\n"
        "  weight %bias: float32[4]\n"
        "  %features = Conv(%image, %kernel, %bias) {pads = [1, 1, 1, 1]} "
        '@"first conv" -> float32[$batch, 4, 8, 8]\n'
        "    # onnxsep.mode = depthwise\n"
        "  %active = Relu(%features) @/relu -> float32[$batch, 4, 8, 8]\n"
        "  %scores = ReduceMean(%active) {axes = [2, 3], keepdims = 0} -> float32[$batch, 4]\n"
        "  constant %axes: int64[2] = [2, 3]\n"
        "  output %scores: float32[$batch, 4]\n"
    )


@pytest.mark.parametrize("name", MODELS)
def test_real_models(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    model = io.load(path)
    structure = describe(model)
    assert structure.lines[0] == HEADER

    again = onnx.ModelProto.FromString(model.proto.SerializeToString(deterministic=True))
    assert describe(io.Model(again, None, model.base_dir)).text == structure.text

    weights = list(tensor_protos(model.proto))
    assert len(structure.tensors) == len(weights), "each tensor is declared once"
    assert len({entry.where for entry in structure.tensors}) == len(weights)
    assert {id(entry.tensor) for entry in structure.tensors} == {id(weight) for weight in weights}

    if path.stat().st_size > 1_000_000:
        assert len(structure.text) < 0.1 * path.stat().st_size
    assert max(map(len, structure.lines)) < 2000


@pytest.mark.parametrize("name", MODELS)
def test_types_are_those_that_onnx_infers_on_the_whole_model(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    model = io.load(path)
    full = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    elements: dict[int, str] = {
        TensorProto.FLOAT: "float32",
        TensorProto.INT64: "int64",
        TensorProto.FLOAT16: "float16",
    }
    wanted = {}
    for info in full.graph.value_info:
        dims = info.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims) and info.type.tensor_type.elem_type in elements:
            sizes = ", ".join(str(dim.dim_value) for dim in dims)
            if info.type.tensor_type.HasField("shape"):
                wanted[f"%{word(info.name)}"] = f"{elements[info.type.tensor_type.elem_type]}[{sizes}]"
    compared = set()
    for line in describe(model).lines:
        outputs, equals, rest = line.strip().partition(" = ")
        if line.startswith("  %") and equals and " -> " in rest:
            types = re.split(r", (?![^\[]*\])", rest.rpartition(" -> ")[2])  # at commas outside of brackets
            for name, kind in zip(outputs.split(", "), types, strict=True):
                if name in wanted:
                    assert kind == wanted[name]
                    compared.add(name)
    nodes = [node for node in model.proto.graph.node if node.op_type != "Constant"]
    assert compared == set(wanted) & {f"%{word(name)}" for node in nodes for name in node.output}


def test_order_of_weights_and_constants_does_not_matter() -> None:
    def build(order: list[int], constant_first: bool) -> onnx.ModelProto:
        weights = [tensor("a", np.ones(4)), tensor("b", np.ones((2, 4))), tensor("unused", np.ones(3))]
        constant = helper.make_node("Constant", [], ["c"], value=tensor("", [1.5]))
        nodes = [helper.make_node("Add", ["x", "a"], ["y"]), helper.make_node("Mul", ["y", "b"], ["z"])]
        last = helper.make_node("Add", ["z", "c"], ["out"])
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            [constant, *nodes, last] if constant_first else [*nodes, constant, last],
            "g",
            [info("x", TensorProto.FLOAT, [2, 4])],
            [info("out", TensorProto.FLOAT, [2, 4])],
            [weights[index] for index in order],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    text = lines(build([0, 1, 2], True))
    assert text == lines(build([2, 1, 0], False))
    declared = [line for line in text if line.startswith(("weight", "constant", "%"))]
    assert [line.split()[0] for line in declared] == ["weight", "%y", "weight", "%z", "constant", "%out", "weight"]


def test_values_are_shown_for_small_integers_only() -> None:
    node = helper.make_node("Any", ["i", "f", "long", "scalar", "flag", "label", "q"], ["y"], domain="custom")
    text = lines(
        one_node(
            node,
            tensor("i", [[1, -2], [3, 4]], np.int64),
            tensor("f", [0.25]),
            tensor("long", np.arange(17), np.int64),
            tensor("scalar", 7, np.int32),
            tensor("flag", [True, False], np.bool_),
            TensorProto(name="label", data_type=TensorProto.STRING, dims=[2], string_data=[b"a b", b"\xff"]),
            tensor("q", [1, 2], np.int8),
        )
    )
    assert "weight %i: int64[2, 2] = [[1, -2], [3, 4]]" in text
    assert "weight %f: float32[1]" in text
    assert "weight %long: int64[17]" in text
    assert "weight %scalar: int32[] = 7" in text
    assert "weight %flag: bool[2] = [true, false]" in text
    assert r'weight %label: string[2] = ["a b", b"\xff"]' in text
    assert "weight %q: int8[2]" in text


def test_data_of_a_quantised_layer_is_not_shown() -> None:
    node = helper.make_node("DequantizeLinear", ["bias", "scale"], ["y"])
    assert "weight %bias: int32[2]" in lines(one_node(node, tensor("bias", [5, 6], np.int32), tensor("scale", 0.5)))


def test_no_weight_is_read(tmp_path: Path) -> None:
    proto = one_node(helper.make_node("Add", ["x", "w"], ["y"]), tensor("w", np.ones((100, 4))), inputs=("x",))
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "not-there.bin"
    text = describe(io.Model(proto, None, tmp_path)).text
    assert "  weight %w: float32[100, 4]\n" in text
    assert "  %y = Add(%x, %w) -> float32[100, 4]\n" in text


def test_external_data_gives_the_same_text(tmp_path: Path) -> None:
    shape = tensor("shape", [2, -1], np.int64)
    proto = one_node(helper.make_node("Reshape", ["x", "shape"], ["y"]), shape, inputs=("x",))
    path = tmp_path / "external.onnx"
    inline = describe(io.load(proto)).text
    onnx.save_model(proto, path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    model = io.load(path)
    assert model.proto.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert describe(model).text == inline
    assert "weight %shape: int64[2] = [2, -1]" in inline


def test_external_data_of_types_that_numpy_does_not_have(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    proto = one_node(helper.make_node("Cast", ["w"], ["y"], to=1), weight)
    weight = proto.graph.initializer[0]
    weight.raw_data = b"\x80\x3f\x00\x40"
    weight.ClearField("int32_data")
    path = tmp_path / "external.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, size_threshold=0)
    assert "  %y = Cast(%w) {to = 1} -> float32[2]" in describe(io.load(path)).lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.1, "0.1"),
        (2.0, "2.0"),
        (1e-5, "1e-05"),
        (math.inf, "inf"),
        ("same_upper", '"same_upper"'),
        ('say "hi"\n', r'"say \"hi\"\n"'),
        (b"\x00\xfe", r'b"\x00\xfe"'),
        ([1, 2], "[1, 2]"),
        ([0.5, 1.0], "[0.5, 1.0]"),
        (["a", "b"], '["a", "b"]'),
        (tensor("", [3], np.int64), "tensor int64[1] = [3]"),
        (tensor("", [3.0]), "tensor float32[1]"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", None]), "type float32[$n, ?]"),
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.DOUBLE, None)),
            "type sequence(float64[...])",
        ),
        (
            helper.make_sparse_tensor(tensor("", [1.0]), tensor("", [2], np.int64), [9]),
            "sparse tensor float32[9]",
        ),
    ],
)
def test_attributes(value: object, text: str) -> None:
    node = helper.make_node("Any", ["x"], ["y"], domain="custom", z=1, a=value)
    assert statement(node) == f"%y = custom.Any(%x) {{a = {text}, z = 1}}"


def test_empty_lists_keep_their_kind() -> None:
    node = helper.make_node("Any", ["x"], ["y"], domain="custom")
    node.attribute.append(onnx.AttributeProto(name="i", type=onnx.AttributeProto.INTS))
    node.attribute.append(onnx.AttributeProto(name="f", type=onnx.AttributeProto.FLOATS))
    assert statement(node) == "%y = custom.Any(%x) {f = floats[], i = ints[]}"


def test_attributes_without_a_type_as_old_files_have_them() -> None:
    node = helper.make_node("Any", ["x"], ["y"], domain="custom")
    node.attribute.append(onnx.AttributeProto(name="i", ints=[1, 2]))
    node.attribute.append(onnx.AttributeProto(name="f", f=0.5))
    assert statement(node) == "%y = custom.Any(%x) {f = 0.5, i = [1, 2]}"


def test_long_attributes_stand_as_digests_that_tell_them_apart() -> None:
    def digest(value: object) -> str:
        return statement(helper.make_node("Any", ["x"], ["y"], domain="custom", a=value))

    assert "a = floats(100 values, sha256 " in digest([0.5] * 100)
    assert digest([0.5] * 100) != digest([0.5] * 99 + [0.75])
    assert f'a = "{"t" * 200}"' in digest("t" * 200)
    assert "a = text(201 bytes, sha256 " in digest("t" * 201)
    assert digest("t" * 201) != digest("t" * 200 + "u")
    assert len(digest(list(range(100000)))) < 100


def test_optional_inputs_and_outputs() -> None:
    node = helper.make_node("Any", ["x", "", "x", "", ""], ["", "y"], domain="custom")
    assert "_, %y = custom.Any(%x, _, %x)" in lines(one_node(node, inputs=("x",)))


def test_domains_and_overloads() -> None:
    assert statement(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")).startswith("%y = Relu(%x)")
    node = helper.make_node("Any", ["x"], ["y"], domain="custom")
    node.overload = "second"
    assert statement(node) == "%y = custom.Any<second>(%x)"


def test_subgraphs_are_indented_blocks_with_types() -> None:
    text = describe(
        io.load(
            parser.parse_model(
                """
                <ir_version: 8, opset_import: ["" : 17]>
                main (bool flag, float[n, 4] x) => (float[n, 4] y)
                {
                    y = If (flag) <
                        then_branch = yes () => (float[n, 4] a)
                        { w = Constant <value = float {2.0}> () a = Mul (x, w) },
                        else_branch = no () => (float[n, 4] b) { t = Abs (x) b = Neg (t) }
                    >
                }
                """
            )
        )
    )
    assert text.lines[6:] == (
        "  %y = If(%flag) -> float32[$n, 4]",
        "    else_branch: graph @no",
        "      %t = Abs(%x) -> float32[$n, 4]",
        "      %b = Neg(%t) -> float32[$n, 4]",
        "      output %b: float32[$n, 4]",
        "    then_branch: graph @yes",
        "      constant %w: float32[]",
        "      %a = Mul(%x, %w) -> float32[$n, 4]",
        "      output %a: float32[$n, 4]",
        "  output %y: float32[$n, 4]",
    )
    assert [entry.where for entry in text.tensors] == ["%y then_branch > %w"]


def test_functions() -> None:
    text = describe(
        io.load(
            parser.parse_model(
                """
                <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
                main (float[n, 4] x) => (float[n, 4] y) { y = local.Scale <alpha = 2.0> (x) }
                <domain: "local", opset_import: ["" : 17]>
                Scale <alpha, beta: float = 0.5> (a) => (b)
                { s = Constant <value_float: float = @alpha> () b = Mul (a, s) }
                """
            )
        )
    )
    assert text.lines[2:] == (
        "opset ai.onnx 17",
        "opset local 1",
        "function local.Scale",
        "  opset ai.onnx 17",
        "  attribute alpha",
        "  attribute beta = 0.5",
        "  input %a",
        "  %s = Constant() {value_float = parameter alpha}",
        "  %b = Mul(%a, %s)",
        "  output %b",
        "graph @main",
        "  input %x: float32[$n, 4]",
        "  %y = local.Scale(%x) {alpha = 2.0} -> float32[$n, 4]",
        "  output %y: float32[$n, 4]",
    )


def test_metadata_everywhere_sorted() -> None:
    proto = one_node(helper.make_node("Add", ["x", "w"], ["y"]), tensor("w", np.ones(4)), inputs=("x",))
    inner = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    proto.graph.value_info.append(inner)
    graph = proto.graph
    holders: dict[str, Any] = {
        "model": proto,
        "graph": graph,
        "node": graph.node[0],
        "weight": graph.initializer[0],
        "input": graph.input[0],
        "output": graph.output[0],
        "value": graph.value_info[0],
    }
    for place, holder in holders.items():
        for key in ("b", "a"):
            entry = holder.metadata_props.add()
            entry.key, entry.value = key, f"{place} of {key}"
    assert describe(io.load(proto)).lines[3:] == (
        "opset custom 1",
        '# a = "model of a"',
        '# b = "model of b"',
        "graph @g",
        '  # a = "graph of a"',
        '  # b = "graph of b"',
        "  input %x: float32[$n, 4]",
        '    # a = "input of a"',
        '    # b = "input of b"',
        "  weight %w: float32[4]",
        '    # a = "weight of a"',
        '    # b = "weight of b"',
        "  %y = Add(%x, %w) -> float32[$n, 4]",
        '    # a = "node of a"',
        '    # b = "node of b"',
        '    # %y: a = "value of a"',
        '    # %y: b = "value of b"',
        "  output %y: ?",
        '    # a = "output of a"',
        '    # b = "output of b"',
    )


def test_quantization_annotations() -> None:
    proto = one_node(helper.make_node("Relu", ["x"], ["y"]), inputs=("x",))
    for name in ("y", "elsewhere"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        for key in ("ZERO_POINT_TENSOR", "SCALE_TENSOR"):
            entry = annotation.quant_parameter_tensor_names.add()
            entry.key, entry.value = key, f"{name}.{key.lower()}"
    found = [line for line in lines(proto) if line.startswith("quantization")]
    assert found == [
        "quantization %y SCALE_TENSOR = %y.scale_tensor",
        "quantization %y ZERO_POINT_TENSOR = %y.zero_point_tensor",
        "quantization %elsewhere SCALE_TENSOR = %elsewhere.scale_tensor",
        "quantization %elsewhere ZERO_POINT_TENSOR = %elsewhere.zero_point_tensor",
    ]


def test_weights_that_are_also_inputs() -> None:
    proto = one_node(helper.make_node("Add", ["x", "w"], ["y"]), tensor("w", np.ones((1, 4))), inputs=("x", "w"))
    assert "weight input %w: float32[1, 4] declared float32[$n, 4]" in lines(proto)
    assert [line for line in lines(proto) if line.startswith("input")] == ["input %x: float32[$n, 4]"]


def test_sparse_weights_and_constants() -> None:
    def sparse(name: str) -> onnx.SparseTensorProto:
        return helper.make_sparse_tensor(tensor(name, [1.0, 2.0]), tensor("", [3, 5], np.int64), [10])

    proto = one_node(helper.make_node("Any", ["w", "c"], ["y"], domain="custom"))
    proto.graph.sparse_initializer.append(sparse("w"))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="k", sparse_value=sparse("")))
    text = describe(io.load(proto))
    assert [line.strip() for line in text.lines[5:7]] == [
        "sparse weight %w: float32[10]",
        "sparse constant %c: float32[10] @k",
    ]
    assert [entry.where for entry in text.tensors] == ["%w, values", "%w, indices", "%c, values", "%c, indices"]


def test_training_information() -> None:
    proto = one_node(helper.make_node("Relu", ["x"], ["y"]), inputs=("x",))
    training = proto.training_info.add()
    training.algorithm.CopyFrom(one_node(helper.make_node("Neg", ["x"], ["step"]), inputs=("x",)).graph)
    entry = training.update_binding.add()
    entry.key, entry.value = "w", "step"
    text = lines(proto)
    assert text[text.index("training") :][2:] == [
        "algorithm graph @g",
        "input %x: float32[$n, 4]",
        "%step = Neg(%x)",
        "output %step: ?",
        "update %w = %step",
    ]


def test_what_changes_with_every_export_is_left_out() -> None:
    proto = one_node(helper.make_node("Relu", ["x"], ["y"]), inputs=("x",))
    before = lines(proto)
    proto.producer_name, proto.producer_version, proto.model_version = "someone", "2", 3
    proto.doc_string = proto.graph.doc_string = proto.graph.node[0].doc_string = "changed"
    proto.graph.input[0].doc_string = proto.graph.output[0].doc_string = "changed"
    assert lines(proto) == before


def test_symbols_that_inference_invents_are_unknown_dimensions() -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    proto = one_node(node, inputs=("x",))
    assert "%y = NonZero(%x) -> int64[2, ?]" in lines(proto)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"]))
    assert "%y = NonZero(%x) -> int64[2, $found]" in lines(proto)


def test_a_model_that_onnx_cannot_infer_still_has_a_text() -> None:
    proto = one_node(helper.make_node("Relu", ["x"], ["y"]), inputs=("x",))
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 9999))
    assert "%y = Relu(%x)" in lines(proto)[-2]


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_name_stays_on_its_line_and_apart_from_others(one: str, other: str) -> None:
    for text in (word(one), quoted(one)):
        assert text.isprintable()
        assert (one == other) == (text == (word(other) if text == word(one) else quoted(other)))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_can_be_written(name: str) -> None:
    node = helper.make_node("Relu", ["x"], [name], name=name)
    proto = one_node(node, inputs=("x",) if name != "x" else ("x", "x"))
    text = describe(io.Model(proto))
    assert len(text.text.splitlines()) == len(text.lines)
    assert any(line.startswith(f"  %{word(name)} = Relu(%x) @{word(name)}") for line in text.lines)
