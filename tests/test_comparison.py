import math
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxsep.errors import VerificationError
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.running.comparison import Comparison, compare_outputs
from onnxsep.running.feeds import Feeds, make_feeds
from onnxsep.running.float32 import as_float32, float32_copy, held_types
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

ONE_THREAD = RuntimeOptions(threads=1)
# bfloat16 is a type of Conv since opset 22, which the oldest supported runtime does not know.
CONV_OPSET = 22 if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 21) else 17


def parse(graph: str, opsets: str = '"" : 17') -> Model:
    return Model(parser.parse_model(f"<ir_version: 8, opset_import: [{opsets}]> {graph}"))


def compare(original: str, result: str, opsets: str = '"" : 17', **arrays: np.ndarray) -> Comparison:
    return compare_outputs(parse(original, opsets), parse(result, opsets), Feeds(arrays), ONE_THREAD)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# ---------------------------------------------------------------- numbers


def test_differences_of_two_outputs() -> None:
    original = "g (float[2] x) => (float[2] p, float[2] q) { p = Identity(x) q = Identity(x) }"
    result = "g (float[2] x) => (float[2] p, float[2] q) { p = Neg(x) q = Add(x, one) }"
    changed = parse(result)
    changed.proto.graph.initializer.append(numpy_helper.from_array(floats(1, 0), "one"))
    comparison = compare_outputs(parse(original), changed, Feeds({"x": floats(3, -4)}, ("a note",)), ONE_THREAD)
    first, second = comparison.outputs
    # p: (3, -4) against (-3, 4); q: (3, -4) against (4, -4). Norms by hand: |x| = 5.
    assert (first.name, first.max_abs, first.mean_abs, first.relative) == ("p", 8.0, 7.0, 2.0)
    assert (second.name, second.max_abs, second.mean_abs, second.relative) == ("q", 1.0, 0.5, 0.2)
    assert (comparison.max_abs, comparison.mean_abs, comparison.relative) == (8.0, 7.0, 2.0)
    assert comparison.notes == ("a note",)


def test_a_model_equals_itself() -> None:
    graph = "g (float[2] x) => (float[2] y) { y = Exp(x) }"
    comparison = compare(graph, graph, x=floats(1, 2))
    assert (comparison.max_abs, comparison.mean_abs, comparison.relative) == (0, 0, 0)


def test_relative_where_the_original_is_zero() -> None:
    zeros = "g (float[2] x) => (float[2] y) { y = Sub(x, x) }"
    same = "g (float[2] x) => (float[2] y) { y = Identity(x) }"
    assert compare(zeros, zeros, x=floats(1, 2)).relative == 0
    assert compare(zeros, same, x=floats(1, 2)).relative == math.inf


def test_norms_neither_overflow_nor_vanish() -> None:
    # float64 arrays, whose squares leave the range of float64.
    identity = "g (double[2] x) => (double[2] y) { y = Identity(x) }"
    double = "g (double[2] x) => (double[2] y) { y = Add(x, x) }"
    for scale in (1e200, 1e-200):
        comparison = compare(identity, double, x=np.array([3, -4]) * scale)
        assert comparison.relative == pytest.approx(1)
        assert comparison.max_abs == pytest.approx(4 * scale)


def test_integers_are_compared_exactly() -> None:
    graph = "g (int64[3] x, int64[3] z) => (int64[3] y) { y = Identity(%s) }"
    big = np.array([2**62, -(2**62) - 1, 2**60])
    moved = np.array([2**62 + 1, 2**62, 2**60])  # differences of 1, 2**63 + 1 and 0; float64 would not see the first
    comparison = compare(graph % "x", graph % "z", x=big, z=moved)
    assert comparison.max_abs == 2.0**63
    assert compare(graph % "x", graph % "z", x=big[[0, 2, 2]], z=moved[[0, 2, 2]]).max_abs == 1
    bits = "g (bool[4] x) => (bool[4] y) { y = %s(x) }"
    comparison = compare(bits % "Identity", bits % "Not", x=np.array([True, True, False, True]))
    assert (comparison.max_abs, comparison.mean_abs) == (1, 1)
    unsigned = "g (uint8[2] x, uint8[2] z) => (uint8[2] y) { y = Identity(%s) }"
    few, many = np.array([1, 5], np.uint8), np.array([255, 5], np.uint8)
    assert compare(unsigned % "x", unsigned % "z", x=few, z=many).max_abs == 254


def test_strings_are_equal_or_not() -> None:
    graph = "g (string[4] x, string[4] z) => (string[4] y) { y = Identity(%s) }"
    x, z = np.array(["a", "b", "c", "d"], object), np.array(["a", "B", "c", "d"], object)
    comparison = compare(graph % "x", graph % "z", x=x, z=z)
    assert (comparison.max_abs, comparison.mean_abs, comparison.relative) == (1, 0.25, 0.5)
    assert compare(graph % "x", graph % "x", x=x, z=z).max_abs == 0


def test_empty_and_scalar_outputs() -> None:
    graph = "g (float[n] x) => (float[n] y, float s) { y = Neg(x) s = ReduceSum<keepdims=0>(x) }"
    assert compare(graph, graph, x=floats()).max_abs == 0
    assert compare(graph, graph.replace("Neg", "Abs").replace("ReduceSum", "ReduceMax"), x=floats(2, 3)).max_abs == 6


# ---------------------------------------------------------------- sequences and maps

SEQUENCE = "g (float[2] x) => (seq(float[n]) y) { a = %s(x) y = SequenceConstruct(x, a) }"


def test_sequences_element_by_element() -> None:
    comparison = compare(SEQUENCE % "Identity", SEQUENCE % "Neg", x=floats(3, -4))
    (output,) = comparison.outputs
    # (3, -4), (3, -4) against (3, -4), (-3, 4).
    assert (output.name, output.max_abs, output.mean_abs) == ("y", 8, 3.5)
    assert output.relative == pytest.approx(10 / math.sqrt(50))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            "g (float[2] x) => (seq(float[n]) y) { y = SequenceConstruct(x) }",
            r"'y' has 1 elements in the result, not 2",
        ),
        (
            "g (float[2] x) => (seq(float[n]) y) { a = Concat<axis=0>(x, x) y = SequenceConstruct(x, a) }",
            r"'y'\[1\] has shape \[4\] in the result, not \[2\]",
        ),
        ("g (float[2] x) => (float[2] y) { y = Neg(x) }", "'y' is a tensor in the result, not a sequence"),
    ],
)
def test_sequences_that_differ(result: str, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        compare(SEQUENCE % "Neg", result, x=floats(3, -4))


def test_maps_element_by_element() -> None:
    opsets = '"" : 17, "ai.onnx.ml" : 3'
    graph = (
        "g (float[2,2] x) => (seq(map(int64,float)) y) { a = %s(x) y = ai.onnx.ml.ZipMap<classlabels_int64s=%s>(a) }"
    )
    x = np.array([[3, -4], [0, 0]], np.float32)
    comparison = compare(graph % ("Abs", "[3,5]"), graph % ("Identity", "[3,5]"), opsets, x=x)
    assert (comparison.max_abs, comparison.mean_abs, comparison.relative) == (8, 2, 8 / 5)
    with pytest.raises(VerificationError, match=r"'y'\[0\] has the keys \[3, 6\] in the result, not \[3, 5\]"):
        compare(graph % ("Abs", "[3,5]"), graph % ("Abs", "[3,6]"), opsets, x=x)


# ---------------------------------------------------------------- NaN and infinity


def test_the_same_nan_in_both_is_left_out() -> None:
    graph = "g (float[4] x) => (float[4] y) { r = Log(x) y = %s }"
    comparison = compare(graph % "Identity(r)", graph % "Add(r, x)", x=floats(-1, 0, 1, 1))
    assert (comparison.max_abs, comparison.mean_abs) == (1, 1)  # log(-1) is NaN, log(0) is -infinity
    assert comparison.notes == ("output 'y': 2 values are the same NaN or infinity in both and were left out",)


def test_not_finite_in_the_original_only() -> None:
    original = "g (float[3] x) => (float[3] y) { y = Log(x) }"
    result = "g (float[3] x) => (float[3] y) { a = Abs(x) y = Log(a) }"
    comparison = compare(original, result, x=floats(-1, 0, 1))
    assert comparison.max_abs == 0
    assert "1 values are the same" in comparison.notes[0]
    assert "1 values are NaN or infinite in the original" in comparison.notes[1]


@pytest.mark.parametrize("operator", ["Log", "Reciprocal"])
def test_not_finite_in_the_result_only(operator: str) -> None:
    original = "g (float[3] x) => (float[3] y) { y = Abs(x) }"
    result = f"g (float[3] x) => (float[3] y) {{ y = {operator}(x) }}"
    with pytest.raises(VerificationError, match=r"output 'y' has 1 values in the result that are NaN or infinite"):
        compare(original, result, x=floats(0, 1, 2))


# ---------------------------------------------------------------- results that are wrong

ORIGINAL = "g (float[2,3] x) => (float[a,b] y) { y = Neg(x) }"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("g (float[2,3] x) => (float[a,b] z) { z = Neg(x) }", r"has the outputs \['z'\], the original has \['y'\]"),
        ("g (float[2,3] x) => (float[a,b] y) { y = Transpose(x) }", r"shape \[3, 2\] in the result, not \[2, 3\]"),
        ("g (float[2,3] x) => (double[a,b] y) { y = Cast<to=11>(x) }", "type float64 in the result, not float32"),
        ("g (float[2,3] x) => (string[a,b] y) { y = Cast<to=8>(x) }", "type object in the result, not float32"),
        ("g (float[2,3] x) => (float[a,b] y) { y = my.ops.Foo(x) }", r"not the result: my\.ops:Foo\(-1\) is not a reg"),
        (
            "g (float[2,3] x) => (float[a,b] y) { s = Constant<value = int64[2] {4, 4}>() n = Neg(s) m = Neg(n)"
            " y = Reshape(x, m) }",
            "not the result: .*Reshape",
        ),
    ],
)
def test_results_that_are_wrong(result: str, message: str) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(VerificationError, match=message):
        compare(ORIGINAL, result, '"" : 17, "my.ops" : 1', x=x)


def test_more_outputs_than_the_original() -> None:
    with pytest.raises(VerificationError, match=r"\['y', 'z'\]"):
        compare(
            ORIGINAL,
            ORIGINAL.replace("y)", "y, float[a,b] z)").replace("}", "z = Abs(x) }"),
            x=np.ones((2, 3), np.float32),
        )


def test_an_original_that_cannot_run() -> None:
    graph = "g (float[2] x) => (float[2] y) { y = my.ops.Foo(x) }"
    with pytest.raises(CannotRun, match=r"^my\.ops:Foo\(-1\) is not a registered function/op$"):
        compare(graph, graph, '"" : 17, "my.ops" : 1', x=floats(1, 2))


def test_negative_models(shared: Path) -> None:
    for name, reason in (("custom_domain_decodeimage", "DecodeImage"), ("opset1_constant_weights_cntk", r"Add\(1\)")):
        model = load(shared / "models" / "negative" / f"neg_{name}.onnx")
        with pytest.raises(CannotRun, match=reason):
            compare_outputs(model, model, make_feeds(model), ONE_THREAD)


def test_one_session_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Runner] = weakref.WeakSet()
    most = []
    make = Runner.__init__

    def record(self: Runner, model: Model, options: RuntimeOptions) -> None:
        alive.add(self)
        most.append(len(alive))
        make(self, model, options)

    monkeypatch.setattr(Runner, "__init__", record)
    graph = "g (float[2] x) => (float[2] y) { y = Exp(x) }"
    compare(graph, graph, x=floats(1, 2))
    assert most == [1, 1]


# ---------------------------------------------------------------- float32 copies


def conv(elem_type: int, *, scale: float = 1.0, other_operator: str = "Relu") -> Model:
    weight = np.random.default_rng(3).standard_normal((2, 3, 3, 3)) * scale
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node(other_operator, ["c"], ["y"])],
        "conv",
        [helper.make_tensor_value_info("x", elem_type, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", elem_type, [1, 2, 6, 6])],
        [helper.make_tensor("w", elem_type, weight.shape, weight.ravel())],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", CONV_OPSET)], ir_version=10))


@pytest.mark.parametrize(("elem_type", "name"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.DOUBLE, "float64")])
def test_types_without_kernels_are_compared_in_float32(elem_type: int, name: str) -> None:
    original, result = conv(elem_type), conv(elem_type, scale=1.5)
    feeds = make_feeds(original)
    before = original.proto.SerializeToString()
    with pytest.raises(CannotRun):
        Runner(original, ONE_THREAD)
    comparison = compare_outputs(original, result, feeds, ONE_THREAD)
    # The weights are half as large again, but for rounding to bfloat16, so all outputs are.
    assert comparison.relative == pytest.approx(0.5, rel=0.01)
    assert compare_outputs(original, original, feeds, ONE_THREAD).relative == 0
    assert len(comparison.notes) == 1
    assert comparison.notes[0].startswith(f"compared through float32 copies: the runtime cannot run {name} here (")
    assert original.proto.SerializeToString() == before
    assert feeds.arrays["x"].dtype.name == name


def test_the_reason_is_the_originals_where_the_copy_does_not_run_either() -> None:
    # The original has no kernel for Conv; the copy gets further, to a Reshape whose shape is wrong.
    model = parse(
        "g (double[1,1,3,3] x, int64[2] s) => (double[a,b] y)"
        "{ w = Constant<value = double[1,1,1,1] {2}>() c = Conv(x, w) y = Reshape(c, s) }"
    )
    feeds = Feeds({"x": np.ones((1, 1, 3, 3)), "s": np.array([4, 4])})
    with pytest.raises(CannotRun, match="Reshape"):
        Runner(float32_copy(model), ONE_THREAD)({"x": np.ones((1, 1, 3, 3), np.float32), "s": np.array([4, 4])})
    with pytest.raises(CannotRun, match=r"^Could not find an implementation for Conv\(11\)"):
        compare_outputs(model, model, feeds, ONE_THREAD)


def test_a_result_whose_copy_does_not_run() -> None:
    original, result = conv(TensorProto.BFLOAT16), conv(TensorProto.BFLOAT16, other_operator="Foo")
    with pytest.raises(VerificationError, match=r"not the result: .*Foo"):
        compare_outputs(original, result, make_feeds(original), ONE_THREAD)


def test_float32_models_have_no_types_to_convert() -> None:
    assert held_types(conv(TensorProto.FLOAT)) == ()
    assert held_types(conv(TensorProto.FLOAT16)) == ()
    mixed = parse("g (double[2] x) => (bfloat16[2] y) { y = Cast<to=16>(x) }")
    assert held_types(mixed) == ("bfloat16", "float64")


# 16448 is 0x4040, the bits of 3.0 in bfloat16.
EVERYWHERE = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (double[2] x, bool condition, seq(double[2]) list, int64[2] i) => (double[2] y, double[n] z, float16[2] h)
<double[2] w = {1.5, -2.5}, bfloat16[2] b, double[2] twice, float16[2] half = {1, 2}>
{
    k = Constant<value = double[2] {0.25, 4}>()
    shape = Constant<value = int64[1] {2}>()
    filled = ConstantOfShape<value = bfloat16[1] {16448}>(shape)
    filled64 = Cast<to = 11>(filled)
    random = RandomNormalLike<dtype = 11, seed = 1.0>(i)
    zero = Sub(random, random)
    window = HannWindow<output_datatype = 11>(n)
    sum = Sum(x, w, k, filled64, zero)
    twice = local.double_it(sum)
    y = If (condition) <
        then_branch = t () => (double[2] ty) { c = Constant<value = double[2] {10, 20}>() ty = Add(twice, c) },
        else_branch = e () => (double[2] ey) <double[2] v = {30, 40}> { ey = Add(twice, v) }
    >
    first = SequenceAt(list, zero_index)
    z = Concat<axis = 0>(first, window)
    h = Add(half, half)
}
<domain: "local", opset_import: ["" : 17]>
double_it (a) => (r) { two = Constant<value = double {2}>() f = Cast<to = 11>(a) r = Mul(f, two) }
"""


def everywhere() -> Model:
    proto = parser.parse_model(EVERYWHERE)
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(np.array(4), "n"))
    graph.initializer.append(numpy_helper.from_array(np.array(0), "zero_index"))
    return Model(proto)


def test_the_copy_converts_every_place() -> None:
    model = everywhere()
    before = model.proto.SerializeToString()
    copy = float32_copy(model)
    assert held_types(copy) == ()
    assert model.proto.SerializeToString() == before
    onnx.checker.check_model(copy.proto, full_check=True)
    x = np.array([1.0, -1.0])
    feeds = {"x": x, "condition": np.array(True), "list": [x], "i": np.array([0, 1])}
    feeds32 = feeds | {"x": x.astype(np.float32), "list": [x.astype(np.float32)]}
    outputs = Runner(copy, ONE_THREAD)(feeds32)
    # ((1, -1) + w + k + 3) * 2 + (10, 20), by hand; then the other branch.
    assert outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], [(1 + 1.5 + 0.25 + 3) * 2 + 10, (-1 - 2.5 + 4 + 3) * 2 + 20])
    other = Runner(copy, ONE_THREAD)(feeds32 | {"condition": np.array(False)})
    np.testing.assert_array_equal(other["y"], outputs["y"] + 20)
    # HannWindow of 4: 0, 3/4, 3/4, 0 for a symmetric one, 0, 1/2, 1, 1/2 for the periodic one that is the default.
    np.testing.assert_allclose(outputs["z"], [1, -1, 0, 0.5, 1, 0.5], atol=1e-6)
    assert outputs["h"].dtype == np.float16


def holding(place: str) -> Model:
    """A model in which float64 stands at one place only."""
    model = onnx.ModelProto()
    model.graph.name = "empty"
    function = model.functions.add(name="f", domain="local")
    wide = numpy_helper.from_array(np.array([1.5]), "wide")
    sparse = helper.make_sparse_tensor(wide, numpy_helper.from_array(np.array([1]), "at"), [3])
    wide_type = helper.make_tensor_type_proto(TensorProto.DOUBLE, [1])
    if place == "sparse initialiser":
        model.graph.sparse_initializer.append(sparse)
    elif place == "sparse attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    elif place == "list of tensors":
        model.graph.node.append(helper.make_node("Foo", [], ["c"], domain="my.ops", tables=[wide]))
    elif place == "list of graphs":
        graph = helper.make_graph([], "inner", [], [], [wide])
        model.graph.node.append(helper.make_node("Foo", [], ["c"], domain="my.ops", graphs=[graph]))
    elif place == "type attribute":
        model.graph.node.append(helper.make_node("Optional", [], ["c"], type=wide_type))
    elif place == "map value":
        kind = onnx.TypeProto()
        kind.map_type.key_type = TensorProto.INT64
        kind.map_type.value_type.CopyFrom(wide_type)
        model.graph.output.append(helper.make_value_info("m", helper.make_sequence_type_proto(kind)))
    elif place == "optional":
        model.graph.input.append(helper.make_value_info("o", helper.make_optional_type_proto(wide_type)))
    elif place == "value info":
        model.graph.value_info.append(helper.make_value_info("v", wide_type))
    elif place == "function's value info":
        function.value_info.append(helper.make_value_info("v", wide_type))
    elif place == "function's default attribute":
        function.attribute_proto.append(helper.make_attribute("weight", wide))
    elif place == "function's node":
        function.node.append(helper.make_node("Cast", ["a"], ["b"], to=TensorProto.DOUBLE))
    else:
        raise AssertionError(place)
    return Model(model)


@pytest.mark.parametrize(
    "place",
    [
        "sparse initialiser",
        "sparse attribute",
        "list of tensors",
        "list of graphs",
        "type attribute",
        "map value",
        "optional",
        "value info",
        "function's value info",
        "function's default attribute",
        "function's node",
    ],
)
def test_each_place_alone(place: str) -> None:
    model = holding(place)
    assert held_types(model) == ("float64",)
    assert held_types(float32_copy(model)) == ()


def test_tensors_keep_their_names_and_shapes() -> None:
    model = parse("g (double[2,3] x) => (double[2,3] y) { y = Add(x, w) }")
    tensor = numpy_helper.from_array(np.arange(6.0).reshape(2, 3) / 3, "w")
    tensor.doc_string = "kept"
    model.proto.graph.initializer.append(tensor)
    (converted,) = float32_copy(model).proto.graph.initializer
    assert (converted.name, converted.doc_string, list(converted.dims)) == ("w", "kept", [2, 3])
    np.testing.assert_array_equal(
        numpy_helper.to_array(converted), (np.arange(6.0).reshape(2, 3) / 3).astype(np.float32)
    )


def test_bits_are_not_converted() -> None:
    graph = helper.make_graph([helper.make_node("BitCast", ["x"], ["y"], to=TensorProto.DOUBLE)], "bits", [], [])
    copy = float32_copy(Model(helper.make_model(graph)))
    assert copy.proto.graph.node[0].attribute[0].i == TensorProto.DOUBLE


def test_values_beyond_float32_stay_finite() -> None:
    wide = np.array([1e300, -1e300, np.inf, -np.inf, np.nan, 0.1])
    narrow = as_float32(wide)
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(narrow, floats(largest, -largest, np.inf, -np.inf, np.nan, 0.1))
    assert as_float32(np.ones(2, ml_dtypes.bfloat16)).dtype == np.float32
    for other in (np.float16, np.int64, np.float32):
        array = np.ones(2, other)
        assert as_float32(array) is array


def test_external_weights_are_read_or_stay_where_they_are(tmp_path: Path) -> None:
    wide, narrow = np.arange(600.0).reshape(2, 300), np.ones((300, 4), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "wide"], ["h"]),
            helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "narrow"], ["y"]),
        ],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(wide, "wide"), numpy_helper.from_array(narrow, "narrow")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    model = load(tmp_path / "model.onnx")
    copy = float32_copy(model)
    first, second = copy.proto.graph.initializer
    assert first.data_location == TensorProto.DEFAULT
    assert second.data_location == TensorProto.EXTERNAL
    assert not first.external_data
    np.testing.assert_array_equal(read_tensor(copy, first), wide.astype(np.float32))
    outputs = Runner(copy, ONE_THREAD)({"x": floats(1, 1)[None]})
    np.testing.assert_array_equal(outputs["y"], np.full((1, 4), wide.sum(), np.float32))
