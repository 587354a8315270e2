"""Where weights come from and where Convs stand: each case rewritten at full rank, run, and its structure looked at."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from marked import marked
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxsep
from onnxsep import Mode, Result
from onnxsep.errors import PassError
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import INPUT, ConvLayer, Layer
from onnxsep.layers.rank import Rank, RankAxis
from onnxsep.modes.base import Factors, Task
from onnxsep.rewriting.report import ConvReport

Array = npt.NDArray[Any]
Body = onnx.GraphProto | onnx.FunctionProto
FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
ANY = [None] * 4  # sizes are not given
X, Y = ("x", FLOAT, [2, 3, 6, 7]), ("y", FLOAT, ANY)  # asymmetric, so that swapped axes show
# 3 -> 4 channels at 3 x 3: at full rank 4 pairs of depthwise, or 9 channels in between.
PIECES = {"depthwise": (8, 3), "spatial": (2, 0)}  # Convs and Adds of one replacement
MODES = tuple(PIECES)


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def tensor(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(values(*shape, seed=seed), name)


def constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"{name}_node", value=numpy_helper.from_array(array, name))


def conv(x: str, w: str, y: str, bias: str | None = None, **attributes: Any) -> onnx.NodeProto:
    inputs = [x, w] if bias is None else [x, w, bias]
    name = attributes.pop("name", f"conv_{y}")
    return helper.make_node("Conv", inputs, [y], name=name, **{"kernel_shape": [3, 3], **attributes})


def value(name: str, kind: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Any]] = (),
    outputs: Sequence[tuple[str, int, Any]] = (Y,),
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "g", [value(*one) for one in inputs], [value(*one) for one in outputs], list(initializers)
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    inputs: Sequence[tuple[str, int, Any]] = (X,),
    outputs: Sequence[tuple[str, int, Any]] = (Y,),
    functions: Sequence[onnx.FunctionProto] = (),
    ir: int = 8,
    opset: int = 17,
) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted({function.domain for function in functions})]
    proto = helper.make_model(
        graph(nodes, inputs, outputs, initializers), opset_imports=imports, functions=functions, ir_version=ir
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[onnx.NodeProto], **options: Any
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, outputs, nodes, imports, **options)


def argument(name: str, kind: onnx.AttributeProto.AttributeType, reference: str) -> onnx.AttributeProto:
    """An attribute inside a function whose value each call gives."""
    return onnx.AttributeProto(name=name, type=kind, ref_attr_name=reference)


# ---------------------------------------------------------------- running and looking


def feeds(proto: onnx.ModelProto) -> dict[str, Array]:
    """Random values for every input that has no initialiser."""
    given = {one.name for one in proto.graph.initializer}
    arrays: dict[str, Array] = {}
    for one in proto.graph.input:
        if one.name in given:
            continue
        shape = [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)
        arrays[one.name] = np.asarray(values(*shape, seed=7)).astype(kind)
    return arrays


def run(proto: onnx.ModelProto, arrays: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: Any = session.run(None, arrays)
    return list(outputs)


def reference(proto: onnx.ModelProto, arrays: dict[str, Array]) -> list[Array]:
    outputs: Any = ReferenceEvaluator(proto).run(None, arrays)
    return list(outputs)


def rewrite(proto: onnx.ModelProto, mode: str, **options: Any) -> Result:
    """At full rank, every Conv; valid for the checker, with the same inputs and outputs."""
    before = proto.SerializeToString()
    settings = {"rank": "full", "force": True, "include_first": True, "verify": "none", **options}
    result = onnxsep.rewrite(proto, mode=mode, **settings)
    assert proto.SerializeToString() == before  # the source is never changed
    onnx.checker.check_model(result.proto, full_check=True)
    assert list(result.proto.graph.output) == list(proto.graph.output)
    return result


def same_outputs(
    proto: onnx.ModelProto, result: Result, arrays: dict[str, Array] | None = None, evaluate: Any = run
) -> None:
    given = feeds(proto) if arrays is None else arrays
    for expected, actual in zip(evaluate(proto, given), evaluate(result.proto, given), strict=True):
        assert actual.dtype == expected.dtype
        assert np.linalg.norm(expected.astype(float)) > 0
        error = np.linalg.norm(actual.astype(float) - expected.astype(float)) / np.linalg.norm(expected.astype(float))
        assert error < 1e-4


def exact(proto: onnx.ModelProto, mode: str, replaced: int = 1, **options: Any) -> onnx.ModelProto:
    """Rewrite at full rank, compare the outputs with the original's, and give the result, its nodes marked."""
    result = rewrite(proto, mode, **options)
    assert result.report.totals.replaced == replaced, [row.reason for row in result.report.convs]
    same_outputs(proto, result)
    return marked(result.proto)


def bodies(proto: onnx.ModelProto) -> Iterator[Body]:
    """Every graph and function, the main graph first."""
    pending: list[Body] = [proto.graph, *proto.functions]
    while pending:
        body = pending.pop(0)
        yield body
        for node in body.node:
            pending += [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]


def initializers_of(body: Body) -> list[onnx.TensorProto]:
    return list(body.initializer) if isinstance(body, onnx.GraphProto) else []


def kinds(body: Body) -> Counter[str]:
    return Counter(node.op_type for node in body.node)


def made(body: Body) -> list[onnx.NodeProto]:
    """Nodes that onnxsep made."""
    return [node for node in body.node if any(entry.key == "onnxsep.mode" for entry in node.metadata_props)]


def names(items: Any) -> list[str]:
    return [item.name for item in items]


def left(result: Result) -> list[ConvReport]:
    return [row for row in result.report.convs if row.status == "left"]


def only_reason(result: Result) -> str:
    (row,) = result.report.convs
    assert row.status == "left"
    return row.reason


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# ---------------------------------------------------------------- where the weight is stored


def test_weight_in_an_initializer(mode: str) -> None:
    proto = model(
        [
            helper.make_node("Relu", ["x"], ["a"], name="before"),
            conv("a", "w", "b", "bias", pads=[1, 0, 2, 1], strides=[2, 1]),
            helper.make_node("Relu", ["b"], ["y"], name="after"),
        ],
        [tensor("other", 2), tensor("w", 4, 3, 3, 3), tensor("bias", 4)],
    )
    result = exact(proto, mode)
    convs, adds = PIECES[mode]
    assert kinds(result.graph) == {"Relu": 2, "Conv": convs, **({"Add": adds} if adds else {})}
    assert result.graph.node[0] == proto.graph.node[0]
    assert result.graph.node[-1] == proto.graph.node[-1]
    assert made(result.graph) == list(result.graph.node)[1:-1]  # in the Conv's place
    assert result.graph.node[-2].output == ["b"]
    assert names(result.graph.initializer)[:2] == ["other", "bias"]  # the old ones in their order, without "w"
    assert len(result.graph.initializer) == 2 + convs
    biased = [node for node in made(result.graph) if "bias" in node.input]
    assert len(biased) == 1
    assert list(result.graph.input) == list(proto.graph.input)


def test_weight_in_a_constant_node(mode: str) -> None:
    proto = model(
        [
            constant("w", values(4, 3, 3, 3)),
            constant("bias", values(4)),
            helper.make_node("Relu", ["x"], ["a"], name="relu"),
            conv("a", "w", "y", "bias"),
        ]
    )
    result = exact(proto, mode)
    convs, _ = PIECES[mode]
    assert not result.graph.initializer
    assert kinds(result.graph)["Constant"] == convs + 1  # the bias is as it was, the old weight is gone
    # The factors stand where the old weight stood, before everything else.
    assert [node.op_type for node in result.graph.node[: convs + 2]] == ["Constant"] * (convs + 1) + ["Relu"]
    assert result.graph.node[convs] == proto.graph.node[1]
    assert "w" not in {name for node in result.graph.node for name in (*node.input, *node.output)}


def expression(kind: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that make a constant weight "w" of shape [4, 3, 3, 3], and their initialisers."""
    node = helper.make_node
    if kind == "ConstantOfShape":
        filled = numpy_helper.from_array(np.array([0.5], np.float32))
        shape = numpy_helper.from_array(np.array([4, 3, 3, 3]), "shape")
        return [node("ConstantOfShape", ["shape"], ["w"], value=filled)], [shape]
    if kind == "Identity":
        return [node("Identity", ["raw"], ["w"])], [tensor("raw", 4, 3, 3, 3)]
    if kind == "Transpose":
        return [node("Transpose", ["raw"], ["w"], perm=[3, 2, 0, 1])], [tensor("raw", 3, 3, 3, 4)]
    if kind == "Reshape":
        shape = numpy_helper.from_array(np.array([4, 3, 3, -1]), "shape")
        return [node("Reshape", ["raw", "shape"], ["w"])], [tensor("raw", 12, 9), shape]
    if kind == "Cast":
        raw = numpy_helper.from_array(values(4, 3, 3, 3).astype(np.float16), "raw")
        return [node("Cast", ["raw"], ["w"], to=FLOAT)], [raw]
    if kind == "Mul":
        return [node("Mul", ["raw", "scale"], ["w"])], [tensor("raw", 4, 3, 3, 3), tensor("scale", 4, 1, 1, 1)]
    assert kind == "chain"  # weight norm, as exporters that do not fold constants leave it
    nodes = [
        constant("axes", np.array([3, 2, 0, 1])),
        node("Transpose", ["raw"], ["turned"], perm=[3, 2, 0, 1]),
        node("Mul", ["turned", "turned"], ["squared"]),
        node("ReduceSum", ["squared", "axes"], ["norm"], keepdims=1),
        node("Sqrt", ["norm"], ["root"]),
        node("Div", ["turned", "root"], ["unit"]),
        node("Mul", ["unit", "scale"], ["w"]),
    ]
    return nodes, [tensor("raw", 3, 3, 3, 4), tensor("scale", 4, 1, 1, 1)]


EXPRESSIONS = ("ConstantOfShape", "Identity", "Transpose", "Reshape", "Cast", "Mul", "chain")


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_weight_from_an_expression(mode: str, kind: str) -> None:
    nodes, initializers = expression(kind)
    result = exact(model([*nodes, conv("x", "w", "y")], initializers), mode)
    # Nothing of the expression is left, and the factors are constants in its place.
    convs, adds = PIECES[mode]
    if kind == "ConstantOfShape":
        assert set(kinds(result.graph)) <= {"Constant", "Conv", "Add"}
        assert not result.graph.initializer
        return
    assert kinds(result.graph) == Counter({"Constant": convs, "Conv": convs} | ({"Add": adds} if adds else {}))
    assert not result.graph.initializer


def test_expression_whose_parts_others_use_loses_only_its_own_part() -> None:
    node = helper.make_node
    nodes = [
        node("Neg", ["raw"], ["minus"], name="neg"),  # also used by the Mul below
        node("Transpose", ["minus"], ["w"], name="turn", perm=[3, 2, 0, 1]),
        conv("x", "w", "y"),
        node("Mul", ["minus", "scale"], ["z"], name="mul"),
    ]
    raw = [tensor("raw", 3, 3, 3, 4), tensor("scale", 1)]
    proto = model(nodes, raw, outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, "spatial")
    assert [node.name for node in result.graph.node if node.op_type in ("Neg", "Transpose", "Mul")] == ["neg", "mul"]
    assert list(result.graph.initializer) == raw


def test_expression_that_takes_one_of_several_outputs(mode: str) -> None:
    """The Split stays for its other output, and so does what the model says about the one that nothing reads now."""
    nodes = [
        helper.make_node("Split", ["raw"], ["part", "rest"], name="split", axis=0, num_outputs=2),
        helper.make_node("Neg", ["part"], ["w"], name="neg"),
        conv("x", "w", "y"),
        helper.make_node("Exp", ["rest"], ["z"]),
    ]
    proto = model(nodes, [tensor("raw", 8, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)], opset=18)
    infos = [value(name, FLOAT, [4, 3, 3, 3]) for name in ("part", "w", "rest")]
    proto.graph.value_info.extend(infos)
    result = exact(proto, mode)
    assert nodes[0] in result.graph.node
    assert nodes[1] not in result.graph.node
    assert list(result.graph.value_info) == [infos[0], infos[2]]


def test_weight_chosen_by_an_if_is_left_alone(mode: str) -> None:
    """Even where the condition is a constant: folding it is the exporter's business."""
    branches = [graph([helper.make_node(kind, ["raw"], ["o"])], outputs=[("o", FLOAT, ANY)]) for kind in ("Neg", "Exp")]
    nodes = [constant("c", np.array(True)), if_node(branches[0], branches[1], "w"), conv("x", "w", "y")]
    proto = model(nodes, [tensor("raw", 4, 3, 3, 3)])
    assert only_reason(rewrite(proto, mode)) == "its weight is computed at run time by If 'if_w'"


def test_weight_that_depends_on_itself_is_left_alone(mode: str) -> None:
    """Not a valid graph, and no reason to hang."""
    nodes = [helper.make_node("Neg", ["w"], ["v"], name="neg"), helper.make_node("Neg", ["v"], ["w"], name="neg2")]
    proto = helper.make_model(graph([*nodes, conv("x", "w", "y")], [X]), opset_imports=[helper.make_opsetid("", 17)])
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert only_reason(result).startswith("its weight depends on itself, through Neg 'neg")


def test_two_weights_from_one_expression() -> None:
    nodes = [
        helper.make_node("Mul", ["raw", "scale"], ["scaled"], name="mul"),
        helper.make_node("Transpose", ["scaled"], ["w1"], name="turn1", perm=[3, 2, 0, 1]),
        helper.make_node("Transpose", ["scaled"], ["w2"], name="turn2", perm=[3, 2, 1, 0]),
        conv("x", "w1", "y"),
        conv("x", "w2", "z"),
    ]
    proto = model(nodes, [tensor("raw", 3, 3, 3, 4), tensor("scale", 1)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, "spatial", replaced=2)
    assert kinds(result.graph) == {"Constant": 4, "Conv": 4}
    assert not result.graph.initializer
    half = exact(proto, "spatial", only=["conv_y"])
    assert [node.name for node in half.graph.node if node.name in ("mul", "turn1", "turn2")] == ["mul", "turn2"]
    assert names(half.graph.initializer) == ["raw", "scale"]


def test_constant_behind_an_identity_of_another_convs_weight() -> None:
    nodes = [conv("x", "w", "y"), helper.make_node("Identity", ["w"], ["v"]), conv("x", "v", "z")]
    proto = model(nodes, [tensor("w", 4, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, "spatial", replaced=2)
    assert kinds(result.graph) == {"Conv": 4, "Constant": 2}
    assert len(result.graph.initializer) == 2  # "w" went: first the Conv, then the Identity left it


def test_ir_3_keeps_initializers_among_the_inputs(mode: str) -> None:
    weights = [tensor("w", 4, 3, 3, 3), tensor("bias", 4)]
    inputs = [("w", FLOAT, [4, 3, 3, 3]), X, ("bias", FLOAT, [4])]
    proto = model([conv("x", "w", "y", "bias")], weights, inputs=inputs, ir=3, opset=7)
    result = rewrite(proto, mode)
    same_outputs(proto, result)
    graph = result.proto.graph
    convs, _ = PIECES[mode]
    assert list(graph.input)[:2] == list(proto.graph.input)[1:]  # "w" went, "x" and "bias" are the source's own
    assert names(graph.input)[2:] == names(graph.initializer)[1:]
    assert len(graph.input) == 2 + convs
    for entry, stored in zip(graph.input[2:], graph.initializer[1:], strict=True):
        assert entry.type.tensor_type.elem_type == FLOAT
        assert [dim.dim_value for dim in entry.type.tensor_type.shape.dim] == list(stored.dims)
    assert result.report.removed_inputs == ("w",)
    assert result.report.removed_weights == ("w",)


def test_ir_8_does_not_add_factors_to_the_inputs(mode: str) -> None:
    weights = [tensor("w", 4, 3, 3, 3), tensor("bias", 4)]
    inputs = [("w", FLOAT, [4, 3, 3, 3]), X, ("bias", FLOAT, [4])]
    proto = model([conv("x", "w", "y", "bias")], weights, inputs=inputs)
    result = rewrite(proto, mode)
    same_outputs(proto, result)
    assert list(result.proto.graph.input) == list(proto.graph.input)[1:]
    assert result.report.removed_inputs == ("w",)
    assert any("'w'" in note or " w" in note for note in result.report.notes)


def test_weight_that_is_only_a_graph_input_is_left_alone(mode: str) -> None:
    proto = model([conv("x", "w", "y")], inputs=[X, ("w", FLOAT, [4, 3, 3, 3])])
    assert only_reason(rewrite(proto, mode)) == "its weight 'w' is a graph input: it is given at run time"


def test_weight_that_is_a_sparse_initializer_is_left_alone(mode: str) -> None:
    proto = model([conv("x", "w", "y")], inputs=[X, ("w", FLOAT, [4, 3, 3, 3])])
    del proto.graph.input[1]
    picked = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "w")
    where = numpy_helper.from_array(np.array([3, 50]), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(picked, where, [4, 3, 3, 3]))
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert only_reason(result) == "its weight is stored as a sparse tensor"
    assert result.proto == proto


def test_weight_behind_a_long_chain_of_run_time_nodes_is_left_alone(mode: str) -> None:
    """Deeper than Python's limit of recursion: a network that makes the weights of another one."""
    nodes = [helper.make_node("Relu", ["v"], ["r0"])]
    nodes += [helper.make_node("Relu", [f"r{depth}"], [f"r{depth + 1}"]) for depth in range(3000)]
    proto = model([*nodes, conv("x", "r3000", "y")], inputs=[X, ("v", FLOAT, [4, 3, 3, 3])])
    assert only_reason(rewrite(proto, mode)).startswith("its weight is computed at run time by Relu ")


def test_weight_behind_a_long_chain_of_constant_nodes(mode: str) -> None:
    nodes = [helper.make_node("Neg", ["raw"], ["r0"])]
    nodes += [helper.make_node("Neg", [f"r{depth}"], [f"r{depth + 1}"]) for depth in range(1500)]
    proto = model([*nodes, conv("x", "r1500", "y")], [tensor("raw", 4, 3, 3, 3)])
    result = exact(proto, mode)
    assert "Neg" not in kinds(result.graph)


def test_weight_made_of_random_numbers_is_left_alone(mode: str) -> None:
    noise = helper.make_node("RandomNormal", [], ["w"], shape=[4, 3, 3, 3], seed=1.0, name="noise")
    result = rewrite(model([noise, conv("x", "w", "y")]), mode)
    assert only_reason(result) == "its weight is computed at run time by RandomNormal 'noise'"


def test_weight_behind_dequantize_is_left_alone(mode: str) -> None:
    stored = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "q")
    scale = numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    dequantize = helper.make_node("DequantizeLinear", ["q", "scale"], ["d"], name="dq")
    turn = helper.make_node("Transpose", ["d"], ["w"], perm=[0, 1, 3, 2], name="turn")
    result = rewrite(model([dequantize, turn, conv("x", "w", "y")], [stored, scale]), mode)
    assert only_reason(result) == "its weight is behind DequantizeLinear 'dq': it is quantised already"


def test_weight_that_holds_nan_is_left_alone(mode: str) -> None:
    broken = values(4, 3, 3, 3)
    broken[1, 2, 0, 1] = np.nan
    result = rewrite(model([conv("x", "w", "y")], [numpy_helper.from_array(broken, "w")]), mode)
    assert only_reason(result) == "its weight holds NaN or infinity"


def as_double(proto: onnx.ModelProto, dtype: Any) -> onnx.ModelProto:
    """A copy that computes in float64, so that the types of the weights can be compared in any version of onnx."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for index, one in enumerate(proto.graph.initializer):
        wide = np.frombuffer(one.raw_data, dtype).reshape(tuple(one.dims)).astype(np.float64)
        copy.graph.initializer[index].CopyFrom(numpy_helper.from_array(wide, one.name))
    for entry in (*copy.graph.input, *copy.graph.output):
        entry.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.float16, TensorProto.FLOAT16),
        (np.float64, TensorProto.DOUBLE),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    ],
)
def test_factors_have_the_type_of_the_weight(mode: str, dtype: Any, kind: TensorProto.DataType) -> None:
    data = values(4, 3, 3, 3).astype(dtype).tobytes()
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[4, 3, 3, 3], raw_data=data)
    inputs, outputs = [("x", kind, [1, 3, 6, 7])], [("y", kind, ANY)]
    proto = model([conv("x", "w", "y")], [weight], inputs=inputs, outputs=outputs, ir=10, opset=22)
    result = rewrite(proto, mode)
    assert result.report.totals.replaced == 1
    assert {one.data_type for one in result.proto.graph.initializer} == {kind}
    before, after = as_double(proto, dtype), as_double(result.proto, dtype)
    arrays = feeds(before)
    (expected,), (actual,) = reference(before, arrays), reference(after, arrays)
    units = 64 * float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
    assert np.linalg.norm(actual - expected) < units * np.linalg.norm(expected)


# ---------------------------------------------------------------- weights that others use too


def test_weight_shared_by_convs_gives_one_set_of_factors(mode: str) -> None:
    nodes = [conv("x", "w", "y", "bias", strides=[2, 1]), conv("x", "w", "z", pads=[1, 1, 1, 1], dilations=[1, 2])]
    weights = [tensor("w", 4, 3, 3, 3), tensor("bias", 4)]
    result = exact(model(nodes, weights, outputs=[Y, ("z", FLOAT, ANY)]), mode, replaced=2)
    convs, _ = PIECES[mode]
    assert kinds(result.graph)["Conv"] == 2 * convs
    assert len(result.graph.initializer) == convs + 1
    assert "w" not in names(result.graph.initializer)
    factors = [[node.input[1] for node in made(result.graph) if node.op_type == "Conv"][half::] for half in (0, convs)]
    assert factors[0][:convs] == factors[1]  # both replacements read the same ones


def test_weight_shared_by_convs_of_different_groups(mode: str) -> None:
    """Two sets of factors (spatial), or only one of the two Convs can be replaced (depthwise)."""
    nodes = [conv("x", "w", "y"), helper.make_node("Concat", ["x", "x"], ["xx"], axis=1)]
    nodes.append(conv("xx", "w", "z", group=2))
    proto = model(nodes, [tensor("w", 4, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, mode, replaced=2 if mode == "spatial" else 1)
    stored = names(result.graph.initializer)
    assert len(stored) == (4 if mode == "spatial" else 1 + PIECES["depthwise"][0])
    assert ("w" in stored) == (mode == "depthwise")


def test_shared_weight_of_which_one_conv_stays_is_not_changed_for_it(mode: str) -> None:
    nodes = [conv("x", "w", "y"), conv("x", "w", "z", name="keep")]
    proto = model(nodes, [tensor("w", 4, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, mode, skip=["keep"])
    assert result.graph.initializer[0] == proto.graph.initializer[0]
    assert nodes[1] in result.graph.node
    gentle = rewrite(proto, mode, rank=1, force=False, skip=["keep"])
    assert [row.reason for row in left(gentle)] == [
        "does not pay: its weight stays, for it is also used by Conv 'keep', which is left alone (force=True)",
        "left out by skip 'keep'",
    ]


def test_weight_that_another_operator_uses_stays(mode: str) -> None:
    nodes = [conv("x", "w", "y"), helper.make_node("Exp", ["w"], ["z"], name="exp")]
    proto = model(nodes, [tensor("w", 4, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, mode)
    assert result.graph.initializer[0] == proto.graph.initializer[0]
    gentle = rewrite(proto, mode, rank=1, force=False)
    assert only_reason(gentle) == "does not pay: its weight stays, for it is also used by Exp 'exp' (force=True)"


@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_weight_that_is_a_graph_output_stays(mode: str, stored: str) -> None:
    weight = values(4, 3, 3, 3)
    nodes = [conv("x", "w", "y")]
    weights = [numpy_helper.from_array(weight, "w")]
    if stored == "node":
        nodes, weights = [constant("w", weight), *nodes], []
    proto = model(nodes, weights, outputs=[Y, ("w", FLOAT, [4, 3, 3, 3])])
    result = exact(proto, mode)
    if stored == "node":
        assert proto.graph.node[0] in result.graph.node
    else:
        assert proto.graph.initializer[0] in result.graph.initializer
    assert "an output of the graph" in only_reason(rewrite(proto, mode, rank=1, force=False))


def test_conv_of_a_constant_with_itself(mode: str) -> None:
    """The weight is also the Conv's own input, so it has to stay."""
    nodes = [conv("w", "w", "y", pads=[1, 1, 1, 1]), helper.make_node("Relu", ["x"], ["z"])]
    proto = model(nodes, [tensor("w", 3, 3, 3, 3)], outputs=[Y, ("z", FLOAT, ANY)])
    result = exact(proto, mode)
    assert "w" in names(result.graph.initializer)


@pytest.mark.parametrize("reads", [True, False])
def test_weight_that_the_training_information_updates_stays(mode: str, reads: bool) -> None:
    """Whether its algorithm reads the weight, or only says that a new value takes its place."""
    proto = model([conv("x", "w", "y")], [tensor("w", 4, 3, 3, 3)])
    node = helper.make_node("Neg", ["w"], ["w_new"]) if reads else constant("w_new", values(4, 3, 3, 3, seed=5))
    step = graph([node], outputs=[("w_new", FLOAT, ANY)])
    proto.training_info.append(helper.make_training_info(step, [("w", "w_new")], None, None))
    result = exact(proto, mode)
    assert proto.graph.initializer[0] in result.graph.initializer
    assert result.training_info == proto.training_info


def test_weight_that_a_nested_graph_of_the_training_information_reads_stays(mode: str) -> None:
    proto = model([conv("x", "w", "y")], [tensor("w", 4, 3, 3, 3)])
    branch = graph([helper.make_node("Neg", ["w"], ["n"])], outputs=[("n", FLOAT, ANY)])
    nodes = [constant("yes", np.array(True)), if_node(branch, branch, "w2", "yes")]
    step = graph(nodes, outputs=[("w2", FLOAT, ANY)])
    proto.training_info.append(helper.make_training_info(step, [("other", "w2")], None, None))
    proto.graph.initializer.append(tensor("other", 4, 3, 3, 3))
    result = exact(proto, mode)
    assert proto.graph.initializer[0] in result.graph.initializer


def test_weight_that_a_custom_operators_list_of_graphs_reads_stays(mode: str) -> None:
    """ONNX's own operators have no such attribute, so no runtime runs this: only the structure is looked at."""
    inner = graph([helper.make_node("Neg", ["w"], ["n"])], outputs=[("n", FLOAT, ANY)])
    custom = helper.make_node("Choose", ["x"], ["z"], name="choose", domain="custom", branches=[inner])
    nodes = [conv("x", "w", "y"), custom]
    proto = helper.make_model(
        graph(nodes, [X], [Y, ("z", FLOAT, ANY)], [tensor("w", 4, 3, 3, 3)]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)],
        ir_version=8,
    )
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert result.report.totals.replaced == 1
    assert "w" in names(result.proto.graph.initializer)
    assert custom in result.proto.graph.node


def test_annotation_of_a_weight_goes_with_it_and_others_stay(mode: str) -> None:
    proto = model(
        [conv("x", "w", "a"), helper.make_node("Relu", ["a"], ["y"])],
        [tensor("w", 4, 3, 3, 3), tensor("w_scale"), tensor("a_scale")],
    )
    for name in ("w", "a"):
        note = proto.graph.quantization_annotation.add(tensor_name=name)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{name}_scale")
    result = exact(proto, mode)
    assert list(result.graph.quantization_annotation) == [proto.graph.quantization_annotation[1]]
    assert {"w_scale", "a_scale"} <= set(names(result.graph.initializer))


def test_weight_that_an_annotation_names_as_a_scale_stays(mode: str) -> None:
    proto = model([conv("x", "w", "y")], [tensor("w", 4, 3, 3, 3)])
    note = proto.graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    assert "w" in names(exact(proto, mode).graph.initializer)


# ---------------------------------------------------------------- nested graphs


def if_node(then: onnx.GraphProto, other: onnx.GraphProto, output: str = "y", condition: str = "c") -> onnx.NodeProto:
    node = helper.make_node("If", [condition], [output], name=f"if_{output}")
    branches = {"then_branch": then, "else_branch": other}
    node.attribute.extend(helper.make_attribute(name, branch) for name, branch in branches.items())
    return node


C: tuple[str, int, list[int]] = ("c", BOOL, [])


def both_branches(proto: onnx.ModelProto, result: Result) -> None:
    for condition in (True, False):
        same_outputs(proto, result, {"x": values(2, 3, 6, 7), "c": np.array(condition)})


def branch_rewrite(proto: onnx.ModelProto, mode: str, replaced: int, **options: Any) -> onnx.ModelProto:
    result = rewrite(proto, mode, **options)
    assert result.report.totals.replaced == replaced, [row.reason for row in result.report.convs]
    both_branches(proto, result)
    return marked(result.proto)


def test_weights_of_its_own_in_each_branch(mode: str) -> None:
    """One branch keeps its weight in an initialiser, the other one in a Constant node."""
    then = graph([conv("x", "w1", "t")], outputs=[("t", FLOAT, ANY)], initializers=[tensor("w1", 4, 3, 3, 3)])
    other = graph([constant("w2", values(4, 3, 3, 3, seed=2)), conv("x", "w2", "e")], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 2)
    main, yes, no = bodies(result)
    convs, _ = PIECES[mode]
    assert kinds(main) == {"If": 1}
    assert not initializers_of(main)
    assert (kinds(yes)["Conv"], len(initializers_of(yes))) == (convs, convs)
    assert (kinds(no)["Conv"], kinds(no)["Constant"], len(initializers_of(no))) == (convs, convs, 0)


def test_outer_initializer_shared_by_the_main_graph_and_a_branch(mode: str) -> None:
    then = graph([conv("x", "w", "t", strides=[2, 2])], outputs=[("t", FLOAT, ANY)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    proto = model(
        [conv("x", "w", "z"), if_node(then, other)],
        [tensor("w", 4, 3, 3, 3)],
        inputs=[X, C],
        outputs=[Y, ("z", FLOAT, ANY)],
    )
    result = branch_rewrite(proto, mode, 2)
    main, yes, _ = bodies(result)
    convs, _ = PIECES[mode]
    assert (len(initializers_of(main)), len(initializers_of(yes))) == (convs, 0)
    assert {node.input[1] for node in made(yes) if node.op_type == "Conv"} == set(names(initializers_of(main)))
    half = branch_rewrite(proto, mode, 1, only=["conv_t"])
    assert "w" in names(half.graph.initializer)


def test_outer_initializer_shared_by_two_branches(mode: str) -> None:
    then = graph([conv("x", "w", "t", strides=[2, 2])], outputs=[("t", FLOAT, ANY)])
    other = graph([conv("x", "w", "e", pads=[1, 1, 1, 1])], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], [tensor("w", 4, 3, 3, 3)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 2)
    assert len(result.graph.initializer) == PIECES[mode][0]
    half = branch_rewrite(proto, mode, 1, only=["conv_e"])
    assert "w" in names(half.graph.initializer)


def test_outer_constant_node_used_inside_a_branch(mode: str) -> None:
    then = graph([conv("x", "w", "t")], outputs=[("t", FLOAT, ANY)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    proto = model([constant("w", values(4, 3, 3, 3)), if_node(then, other)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 1)
    main, yes, _ = bodies(result)
    convs, _ = PIECES[mode]
    assert [node.op_type for node in main.node] == ["Constant"] * convs + ["If"]
    assert "Constant" not in kinds(yes)


def test_expression_inside_a_branch_of_an_outer_initializer(mode: str) -> None:
    turn = helper.make_node("Transpose", ["raw"], ["w"], perm=[3, 2, 0, 1])
    then = graph([turn, conv("x", "w", "t")], outputs=[("t", FLOAT, ANY)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], [tensor("raw", 3, 3, 3, 4)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 1)
    main, yes, _ = bodies(result)
    assert not initializers_of(main)
    assert kinds(yes)["Constant"] == PIECES[mode][0]
    assert "Transpose" not in kinds(yes)


def test_ir_3_keeps_initializers_of_a_branch_among_its_inputs(mode: str) -> None:
    inputs, weights = [("w", FLOAT, [3, 3, 3, 3])], [tensor("w", 3, 3, 3, 3)]
    then = graph([conv("x", "w", "t", **SAME)], inputs, [("t", FLOAT, ANY)], weights)
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], inputs=[X, C], ir=3, opset=10)
    result = branch_rewrite(proto, mode, 1)
    _, yes, _ = bodies(result)
    assert isinstance(yes, onnx.GraphProto)
    assert names(yes.input) == names(yes.initializer)
    assert len(yes.input) == (6 if mode == "depthwise" else 2)
    assert list(result.graph.input) == list(proto.graph.input)


def branches_with_equal_names(other_use: onnx.NodeProto) -> onnx.ModelProto:
    """Both branches call their own weight "w" and their output "o", which ONNX allows."""
    w1, w2 = tensor("w", 4, 3, 3, 3, seed=1), tensor("w", 4, 3, 3, 3, seed=2)
    then = graph([conv("x", "w", "o")], outputs=[("o", FLOAT, ANY)], initializers=[w1])
    other = graph([other_use], outputs=[("o", FLOAT, ANY)], initializers=[w2])
    return model([if_node(then, other)], inputs=[X, C])


def test_branches_with_equal_names(mode: str) -> None:
    proto = branches_with_equal_names(conv("x", "w", "o", strides=[2, 1]))
    result = branch_rewrite(proto, mode, 2)
    for body in list(bodies(result))[1:]:
        assert len(initializers_of(body)) == PIECES[mode][0]
        assert {node.input[1] for node in made(body) if node.op_type == "Conv"} == set(names(initializers_of(body)))


def test_use_of_an_equal_name_in_the_other_branch_does_not_keep_a_weight(mode: str) -> None:
    proto = branches_with_equal_names(helper.make_node("Exp", ["w"], ["o"]))
    _, yes, no = bodies(branch_rewrite(proto, mode, 1))
    assert "w" not in names(initializers_of(yes))
    assert names(initializers_of(no)) == ["w"]


def test_unused_initializer_of_an_equal_name_in_the_other_branch_stays(mode: str) -> None:
    proto = branches_with_equal_names(helper.make_node("Exp", ["x"], ["o"]))
    _, yes, no = bodies(branch_rewrite(proto, mode, 1))
    assert "w" not in names(initializers_of(yes))
    assert names(initializers_of(no)) == ["w"]


def loop_body(nodes: Sequence[onnx.NodeProto], *, initializers: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """One carried tensor: state -> next, and the condition handed on."""
    handed = helper.make_node("Identity", ["go"], ["go_on"])
    inputs = [("i", INT64, []), ("go", BOOL, []), ("state", FLOAT, [2, 3, 6, 7])]
    return graph([handed, *nodes], inputs, [("go_on", BOOL, []), ("next", FLOAT, [2, 3, 6, 7])], initializers)


def loop_node(body: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("Loop", ["times", "", "x"], ["y"], name="loop", body=body)


TIMES = numpy_helper.from_array(np.array(3), "times")
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def test_conv_in_a_loop_with_weight_inside_and_outside(mode: str) -> None:
    body = loop_body(
        [conv("state", "w_in", "a", **SAME), conv("a", "w_out", "next", **SAME)],
        initializers=[tensor("w_in", 3, 3, 3, 3, seed=1)],
    )
    proto = model([loop_node(body)], [TIMES, tensor("w_out", 3, 3, 3, 3, seed=2)])
    result = exact(proto, mode, replaced=2)
    main, inner = bodies(result)
    assert "w_out" not in names(initializers_of(main))
    assert "w_in" not in names(initializers_of(inner))
    assert list(inner.input) == list(body.input)
    assert list(inner.output) == list(body.output)


def test_weight_carried_by_a_loop_is_left_alone(mode: str) -> None:
    handed = helper.make_node("Identity", ["go"], ["go_on"])
    halved = helper.make_node("Mul", ["state", "half"], ["next"])
    body = graph(
        [handed, halved, conv("x", "state", "o")],
        [("i", INT64, []), ("go", BOOL, []), ("state", FLOAT, [4, 3, 3, 3])],
        [("go_on", BOOL, []), ("next", FLOAT, [4, 3, 3, 3]), ("o", FLOAT, ANY)],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    node = helper.make_node("Loop", ["times", "", "w"], ["last", "y"], body=body)
    proto = model([node], [TIMES, tensor("w", 4, 3, 3, 3)], outputs=[("y", FLOAT, [None] * 5)])
    result = rewrite(proto, mode)
    assert "'state' is a graph input" in only_reason(result)
    assert result.proto == proto


def test_unused_loop_input_that_is_called_like_a_weight_elsewhere_stays(mode: str) -> None:
    """The formal input of one graph and the weight of another one only share a name."""
    then = graph([conv("x", "i", "t", **SAME)], outputs=[("t", FLOAT, ANY)], initializers=[tensor("i", 3, 3, 3, 3)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    body = loop_body([helper.make_node("Neg", ["state"], ["next"])])  # never looks at its counter "i"
    loop = helper.make_node("Loop", ["times", "", "z"], ["y"], name="loop", body=body)
    proto = model([if_node(then, other, "z"), loop], [TIMES], inputs=[X, C])
    result = branch_rewrite(proto, mode, 1)
    assert next(node for node in result.graph.node if node.op_type == "Loop") == loop


def test_conv_in_a_scan(mode: str) -> None:
    body = graph(
        [conv("image", "w", "out", strides=[1, 2])],
        [("image", FLOAT, [1, 3, 6, 7])],
        [("out", FLOAT, ANY)],
        [tensor("w", 4, 3, 3, 3)],
    )
    scan = helper.make_node("Scan", ["x"], ["y"], name="scan", body=body, num_scan_inputs=1)
    result = exact(model([scan], inputs=[("x", FLOAT, [5, 1, 3, 6, 7])], outputs=[("y", FLOAT, [None] * 5)]), mode)
    _, inner = bodies(result)
    assert kinds(inner)["Conv"] == PIECES[mode][0]


def test_conv_two_levels_deep_with_the_weight_at_every_level(mode: str) -> None:
    """If in Loop in the main graph; weights in all three, one of them in a Constant node of the Loop's body."""
    then = graph(
        [conv("state", "w_if", "t1", **SAME), conv("t1", "w_loop", "t2", **SAME), conv("t2", "w_main", "t3", **SAME)],
        outputs=[("t3", FLOAT, ANY)],
        initializers=[tensor("w_if", 3, 3, 3, 3, seed=1)],
    )
    other = graph([conv("state", "w_loop", "e", **SAME)], outputs=[("e", FLOAT, ANY)])
    body = loop_body([constant("w_loop", values(3, 3, 3, 3, seed=2)), if_node(then, other, "next")])
    proto = model([loop_node(body)], [TIMES, tensor("w_main", 3, 3, 3, 3, seed=3)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 4)
    main, loop, yes, no = bodies(result)
    convs = 6 if mode == "depthwise" else 2
    assert len(initializers_of(main)) == 1 + convs
    assert kinds(loop)["Constant"] == convs
    assert len(initializers_of(yes)) == convs
    assert (kinds(yes)["Conv"], kinds(no)["Conv"]) == (3 * convs, convs)


def test_names_of_new_tensors_are_unique_across_nested_graphs(mode: str) -> None:
    """Two Convs in sibling branches have outputs of one name and share an outer weight: it gives one set of factors."""
    then = graph([conv("x", "w", "o")], outputs=[("o", FLOAT, ANY)])
    other = graph([conv("x", "w", "o", strides=[2, 2])], outputs=[("o", FLOAT, ANY)])
    proto = model([if_node(then, other)], [tensor("w", 4, 3, 3, 3)], inputs=[X, C])
    result = branch_rewrite(proto, mode, 2)
    outputs = [name for body in list(bodies(result))[1:] for node in body.node for name in node.output]
    assert [name for name, count in Counter(outputs).items() if count > 1] == ["o"]


def test_weights_of_one_name_in_nested_graphs_are_left_alone(mode: str) -> None:
    """ONNX forbids it, the checker lets it pass, and which weight the runtime takes depends on other nodes."""
    then = graph([conv("x", "w", "t")], outputs=[("t", FLOAT, ANY)], initializers=[tensor("w", 4, 3, 3, 3, seed=1)])
    other = graph([conv("x", "w", "e")], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], [tensor("w", 4, 3, 3, 3, seed=2)], inputs=[X, C])
    result = rewrite(proto, mode)
    assert result.proto == proto
    reason = "its weight 'w' has a namesake in a nested graph, which ONNX does not allow"
    assert [row.reason for row in left(result)] == [reason, reason]


def test_weight_with_a_sparse_namesake_in_a_branch_is_left_alone(mode: str) -> None:
    then = graph([helper.make_node("Identity", ["x"], ["t"])], outputs=[("t", FLOAT, ANY)])
    picked, where = numpy_helper.from_array(values(1), "w"), numpy_helper.from_array(np.array([0]), "where")
    then.sparse_initializer.append(helper.make_sparse_tensor(picked, where, [3]))
    proto = helper.make_model(
        graph([if_node(then, then, "z"), conv("x", "w", "y")], [X, C], initializers=[tensor("w", 4, 3, 3, 3)]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert "has a namesake in a nested graph" in only_reason(result)


def test_weight_in_a_branch_with_a_namesake_among_the_arguments_of_the_function_is_left_alone(mode: str) -> None:
    branches = [
        graph([conv("a", "v", name)], outputs=[(name, FLOAT, ANY)], initializers=[tensor("v", 4, 3, 3, 3)])
        for name in ("t", "e")
    ]
    body = function("Block", ["a", "c", "v"], ["b"], [if_node(branches[0], branches[1], "b")])
    call = helper.make_node("Block", ["x", "c", "given"], ["y"], domain="local")
    result = rewrite(model([call], [tensor("given", 4, 3, 3, 3)], inputs=[X, C], functions=[body]), mode)
    assert len(left(result)) == 2
    assert all("has a namesake in a nested graph" in row.reason for row in left(result))


def test_conv_in_a_branch_knows_the_sizes_of_tensors_around_it(mode: str) -> None:
    then = graph([conv("x", "w", "t")], outputs=[("t", FLOAT, ANY)], initializers=[tensor("w", 4, 3, 3, 3)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    result = rewrite(model([if_node(then, other)], inputs=[X, C]), mode)
    # 2 images, 4 x 5 positions, 4 x 3 channels, 3 x 3 taps
    assert [row.macs_before for row in result.report.convs] == [2 * (4 * 5) * (4 * 3) * (3 * 3)]


def test_expression_of_a_name_in_nested_graphs_is_left_alone(mode: str) -> None:
    turn = helper.make_node("Transpose", ["raw"], ["w"], perm=[3, 2, 0, 1], name="turn")
    then = graph([turn, conv("x", "w", "t")], outputs=[("t", FLOAT, ANY)], initializers=[tensor("raw", 3, 3, 3, 4)])
    other = graph([helper.make_node("Identity", ["x"], ["e"])], outputs=[("e", FLOAT, ANY)])
    proto = model([if_node(then, other)], [tensor("raw", 3, 3, 3, 4, seed=2)], inputs=[X, C])
    reason = "its weight depends on 'raw', which has a namesake in a nested graph, through Transpose 'turn'"
    assert only_reason(rewrite(proto, mode)) == reason


# ---------------------------------------------------------------- functions


def test_function_called_twice_is_rewritten_once(mode: str) -> None:
    body = function("Block", ["a"], ["b"], [constant("w", values(3, 3, 3, 3)), conv("a", "w", "b", **SAME)])
    calls = [helper.make_node("Block", [a], [b], domain="local") for a, b in (("x", "m"), ("m", "y"))]
    proto = model(calls, functions=[body])
    result = exact(proto, mode)
    assert list(result.graph.node) == calls
    (inner,) = result.functions
    convs = 6 if mode == "depthwise" else 2
    assert (kinds(inner)["Conv"], kinds(inner)["Constant"]) == (convs, convs)
    assert "w" not in {name for node in inner.node for name in node.output}


def test_function_in_function(mode: str) -> None:
    inner = function("Inner", ["a"], ["b"], [constant("w", values(3, 3, 3, 3)), conv("a", "w", "b", **SAME)])
    outer = function(
        "Outer",
        ["a"],
        ["b"],
        [
            constant("w", values(3, 3, 3, 3, seed=1)),  # the name means another tensor here
            conv("a", "w", "m", **SAME),
            helper.make_node("Inner", ["m"], ["b"], domain="local"),
        ],
    )
    proto = model([helper.make_node("Outer", ["x"], ["y"], domain="local")], functions=[inner, outer])
    result = exact(proto, mode, replaced=2)
    assert [one.name for one in result.functions] == ["Inner", "Outer"]


def test_conv_whose_attributes_are_arguments_is_left_alone(mode: str) -> None:
    node = conv("a", "w", "b")
    node.attribute.append(argument("strides", onnx.AttributeProto.INTS, "steps"))
    body = function("Block", ["a"], ["b"], [constant("w", values(4, 3, 3, 3)), node], attributes=["steps"])
    call = helper.make_node("Block", ["x"], ["y"], domain="local", steps=[2, 1])
    proto = model([call], functions=[body])
    result = rewrite(proto, mode)
    assert only_reason(result) == "its attributes are arguments of the function"
    assert result.proto == proto


def test_weight_made_from_an_attribute_argument_is_left_alone(mode: str) -> None:
    node = helper.make_node("Constant", [], ["w"], name="given")
    node.attribute.append(argument("value", onnx.AttributeProto.TENSOR, "weight"))
    body = function("Block", ["a"], ["b"], [node, conv("a", "w", "b")], attributes=["weight"])
    call = helper.make_node("Block", ["x"], ["y"], domain="local", weight=tensor("w", 4, 3, 3, 3))
    result = rewrite(model([call], functions=[body]), mode)
    assert only_reason(result) == "its weight depends on an attribute of the function, through Constant 'given'"


def test_weight_passed_as_an_argument_is_left_alone(mode: str) -> None:
    body = function("Block", ["a", "v"], ["b"], [conv("a", "v", "b")])
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="local")
    proto = model([call], [tensor("w", 4, 3, 3, 3)], functions=[body])
    result = rewrite(proto, mode)
    assert only_reason(result) == "its weight 'v' is an argument of the function"
    assert result.proto == proto


def test_weight_passed_as_an_argument_and_used_outside_stays(mode: str) -> None:
    body = function("Block", ["a", "v"], ["b"], [conv("a", "v", "b")])
    call = helper.make_node("Block", ["x", "w"], ["y"], domain="local", name="call")
    proto = model([call, conv("x", "w", "z")], [tensor("w", 4, 3, 3, 3)], functions=[body])
    proto.graph.output.append(value("z", FLOAT, ANY))
    result = exact(proto, mode)
    assert "w" in names(result.graph.initializer)


def test_weight_that_is_an_output_of_the_function_stays(mode: str) -> None:
    body = function("Block", ["a"], ["b", "w"], [constant("w", values(4, 3, 3, 3)), conv("a", "w", "b")])
    proto = model([helper.make_node("Block", ["x"], ["y", "z"], domain="local")], functions=[body])
    proto.graph.output.append(value("z", FLOAT, [4, 3, 3, 3]))
    result = exact(proto, mode)
    assert body.node[0] in result.functions[0].node
    assert "an output of the function" in only_reason(rewrite(proto, mode, rank=1, force=False))


def test_type_of_a_weight_in_a_function_goes_with_it(mode: str) -> None:
    infos = [value("w", FLOAT, [4, 3, 3, 3]), value("m", FLOAT, ANY)]
    nodes = [constant("w", values(4, 3, 3, 3)), conv("a", "w", "m"), helper.make_node("Relu", ["m"], ["b"])]
    body = function("Block", ["a"], ["b"], nodes, value_info=infos)
    proto = model([helper.make_node("Block", ["x"], ["y"], domain="local")], functions=[body], ir=10)
    assert list(exact(proto, mode).functions[0].value_info) == infos[1:]


def test_nested_graphs_inside_a_function(mode: str) -> None:
    """One weight in the function's body, one in the branch."""
    then = graph(
        [conv("a", "w", "t1", **SAME), conv("t1", "v", "t2", **SAME)],
        outputs=[("t2", FLOAT, ANY)],
        initializers=[tensor("v", 3, 3, 3, 3, seed=4)],
    )
    other = graph([helper.make_node("Identity", ["a"], ["e"])], outputs=[("e", FLOAT, ANY)])
    body = function("Block", ["a", "c"], ["b"], [constant("w", values(3, 3, 3, 3)), if_node(then, other, "b")])
    proto = model([helper.make_node("Block", ["x", "c"], ["y"], domain="local")], inputs=[X, C], functions=[body])
    result = branch_rewrite(proto, mode, 2)
    convs = 6 if mode == "depthwise" else 2
    _, inner, yes, _ = bodies(result)
    assert kinds(inner) == {"Constant": convs, "If": 1}
    assert (kinds(yes)["Conv"], len(initializers_of(yes))) == (2 * convs, convs)


def test_functions_that_differ_in_their_overload_only(mode: str) -> None:
    bodies_ = [
        function("Block", ["a"], ["b"], [constant("w", values(3, 3, 3, 3, seed=n)), conv("a", "w", "b", **SAME)])
        for n in (1, 2)
    ]
    for number, body in enumerate(bodies_):
        body.overload = f"o{number}"
    calls = [helper.make_node("Block", [a], [b], domain="local") for a, b in (("x", "m"), ("m", "y"))]
    for number, call in enumerate(calls):
        call.overload = f"o{number}"
    proto = model(calls, functions=bodies_, ir=10)
    result = exact(proto, mode, replaced=2)
    assert [one.overload for one in result.functions] == ["o0", "o1"]


def test_function_with_defaults_of_every_kind_of_attribute(mode: str) -> None:
    inner = graph([helper.make_node("Neg", ["q"], ["r"])], [("q", FLOAT, ANY)], [("r", FLOAT, ANY)])
    defaults = [
        helper.make_attribute("alpha", 0.5),
        helper.make_attribute("weight", tensor("t", 2)),
        helper.make_attribute("inner", inner),
    ]
    leaky = helper.make_node("LeakyRelu", ["m"], ["b"])
    leaky.attribute.append(argument("alpha", onnx.AttributeProto.FLOAT, "alpha"))
    nodes = [constant("w", values(4, 3, 3, 3)), conv("a", "w", "m"), leaky]
    body = function("Block", ["a"], ["b"], nodes, attribute_protos=defaults)
    call = helper.make_node("Block", ["x"], ["y"], domain="local")
    proto = model([call], functions=[body], ir=9)
    result = exact(proto, mode)
    assert list(result.functions[0].attribute_proto) == defaults
    assert result.functions[0].node[-1] == leaky


def test_branch_that_is_an_attribute_of_the_function(mode: str) -> None:
    """The If of the function has no graph of its own; the Conv after it has to be found all the same."""
    branch = graph([constant("k", values(1))], outputs=[("k", FLOAT, [1])])
    choice = helper.make_node("If", ["c"], ["k"], name="choice")
    for name in ("then_branch", "else_branch"):
        choice.attribute.append(argument(name, onnx.AttributeProto.GRAPH, name))
    inner = graph([conv("a", "v", "t")], outputs=[("t", FLOAT, ANY)], initializers=[tensor("v", 4, 3, 3, 3)])
    nodes = [choice, constant("w", values(4, 3, 3, 3)), conv("a", "w", "o"), if_node(inner, inner, "p")]
    nodes.append(helper.make_node("Sum", ["k", "o", "p"], ["b"]))
    body = function("Block", ["a", "c"], ["b"], nodes, attributes=["then_branch", "else_branch"])
    call = helper.make_node("Block", ["x", "c"], ["y"], domain="local", then_branch=branch, else_branch=branch)
    proto = helper.make_model(
        graph([call], [X, C]),
        functions=[body],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        ir_version=8,
    )
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert result.report.totals.replaced == 3
    assert result.proto.functions[0].node[0] == choice
    assert "Conv" in kinds(result.proto.functions[0])


# ---------------------------------------------------------------- names


def stored_weight(stored: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    weight = values(4, 3, 3, 3)
    if stored == "initializer":
        return [], [numpy_helper.from_array(weight, "w")]
    return [constant("w", weight)], []


def wanted_names(mode: str, stored: str = "initializer") -> tuple[list[str], list[str]]:
    """Names of nodes and tensors that a rewrite of a Conv "conv" with output "y" gives when nothing is in its way."""
    nodes, weights = stored_weight(stored)
    result = exact(model([*nodes, conv("x", "w", "y", name="conv")], weights), mode).graph
    tensors = [name for node in result.node for name in node.output if name != "y"]
    return names(result.node), [*names(result.initializer), *tensors]


def test_new_names_come_from_the_conv_and_its_output(mode: str) -> None:
    nodes, tensors = wanted_names(mode)
    assert all(name.startswith("conv_") for name in nodes)
    assert all(name.startswith("y_") for name in tensors)


@pytest.mark.parametrize("stored", ["initializer", "node"])
@pytest.mark.parametrize("taken", ["tensors", "nodes", "both"])
def test_names_that_are_taken_are_avoided(mode: str, stored: str, taken: str) -> None:
    """Every name that a rewrite wants is already that of another tensor, of another node, or both."""
    nodes, tensors = wanted_names(mode, stored)
    in_the_way = [helper.make_node("Relu", ["x"], [name]) for name in tensors if taken != "nodes"]
    if taken != "tensors":
        in_the_way += [helper.make_node("Neg", ["x"], [f"other{n}"], name=name) for n, name in enumerate(nodes)]
    own, weights = stored_weight(stored)
    proto = model([*in_the_way, *own, conv("x", "w", "y", name="conv")], weights)
    result = exact(proto, mode).graph  # the runtime refuses equal names
    assert [node for node in result.node if node.op_type in ("Relu", "Neg")] == in_the_way
    outputs = [name for node in result.node for name in node.output] + names(result.initializer)
    assert len(set(outputs)) == len(outputs)
    new = names(made(result))
    assert len(set(new)) == len(new)
    assert taken == "tensors" or not set(new) & set(nodes)


@pytest.mark.parametrize("place", ["value_info", "input", "sparse", "branch", "annotation", "training"])
def test_names_that_stand_elsewhere_are_avoided(mode: str, place: str) -> None:
    _, tensors = wanted_names(mode)
    proto = model([conv("x", "w", "y", name="conv")], [tensor("w", 4, 3, 3, 3)], inputs=[X, C])
    graph_ = proto.graph
    for name in tensors:
        if place == "value_info":  # left over from a tensor that is gone, of another type
            graph_.value_info.append(value(name, INT64, [5]))
        elif place == "input":
            graph_.input.append(value(name, INT64, [5]))
        elif place == "annotation":
            graph_.quantization_annotation.add(tensor_name=name)
        elif place == "sparse":
            picked, where = numpy_helper.from_array(values(1), name), numpy_helper.from_array(np.array([0]), "where")
            graph_.sparse_initializer.append(helper.make_sparse_tensor(picked, where, [3]))
    if place == "training":
        step = graph([helper.make_node("Relu", [tensors[0]], tensors[1:])], outputs=[(tensors[-1], FLOAT, ANY)])
        proto.training_info.append(helper.make_training_info(step, [], None, None))
    if place == "branch":
        relus = [helper.make_node("Relu", ["x"], [name]) for name in tensors]
        then = graph(relus, outputs=[(tensors[0], FLOAT, ANY)])
        graph_.node.append(if_node(then, then, "z"))
        graph_.output.append(value("z", FLOAT, ANY))
    result = rewrite(proto, mode)
    new = [name for node in made(marked(result.proto).graph) for name in (*node.output, *node.input[1:2])]
    assert not set(new) & set(tensors)
    arrays = {"x": values(2, 3, 6, 7), "c": np.array(True)}
    if place == "input":
        arrays |= {name: np.zeros(5, np.int64) for name in tensors}
    if place != "sparse":  # the runtime would need a use for it
        same_outputs(proto, result, arrays)


def test_value_info_left_over_in_a_function_is_avoided(mode: str) -> None:
    _, tensors = wanted_names(mode)
    nodes = [constant("w", values(4, 3, 3, 3)), conv("a", "w", "y", name="conv")]
    body = function("Block", ["a"], ["y"], nodes, value_info=[value(name, INT64, [5]) for name in tensors])
    proto = model([helper.make_node("Block", ["x"], ["y"], domain="local")], functions=[body], ir=10)
    result = exact(proto, mode)
    new = {name for node in made(result.functions[0]) for name in node.output}
    assert not new & set(tensors)


def test_nodes_without_names(mode: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    result = rewrite(model(nodes, [tensor("w", 3, 3, 3, 3), tensor("bias", 3)]), mode)
    assert [row.name for row in result.report.convs] == ["a", "y"]
    new = names(made(marked(result.proto).graph))
    assert all(name.startswith(("a_", "y_")) for name in new)
    assert len(set(new)) == len(new)


def test_nodes_of_equal_names(mode: str) -> None:
    """The checker takes them, the runtime does not: what onnxsep makes of them is fit for both."""
    nodes = [conv("x", "w", "a", name="same", **SAME), conv("a", "v", "y", name="same")]
    proto = model(nodes, [tensor("w", 3, 3, 3, 3), tensor("v", 3, 3, 3, 3, seed=1)])
    result = rewrite(proto, mode)
    assert result.report.totals.replaced == 2
    new = names(made(marked(result.proto).graph))
    assert len(set(new)) == len(new)
    proto.graph.node[1].name = "other"
    same_outputs(proto, result)


# ---------------------------------------------------------------- what new nodes carry


def carried(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def test_new_nodes_carry_mode_rank_source_and_the_sources_own_metadata(mode: str) -> None:
    node = conv("x", "w", "y", name="stem/conv", doc_string="the stem")
    node.metadata_props.add(key="namespace", value="net.stem")
    proto = model([node], [tensor("w", 4, 3, 3, 3)], ir=10)
    new = list(exact(proto, mode).graph.node)
    rank = {"depthwise": "4", "spatial": "9"}[mode]
    expected = {"namespace": "net.stem", "onnxsep.mode": mode, "onnxsep.rank": rank, "onnxsep.source": "stem/conv"}
    assert [carried(one) for one in new] == [expected] * len(new)
    assert [one.doc_string for one in new] == [""] * (len(new) - 1) + ["the stem"]


def test_new_constant_nodes_carry_it_too(mode: str) -> None:
    stored = constant("w", values(4, 3, 3, 3))
    stored.metadata_props.add(key="namespace", value="net.weights")
    new = [one for one in exact(model([stored, conv("x", "w", "y")]), mode).graph.node if one.op_type == "Constant"]
    rank = {"depthwise": "4", "spatial": "9"}[mode]
    expected = {"namespace": "net.weights", "onnxsep.mode": mode, "onnxsep.rank": rank, "onnxsep.source": "conv_y"}
    assert [carried(one) for one in new] == [expected] * PIECES[mode][0]


def test_rewriting_again_changes_nothing(mode: str) -> None:
    """Neither in the same mode nor in the other one, as long as --recurse is not given."""
    proto = model([conv("x", "w", "y")], [tensor("w", 8, 3, 3, 3)])
    once = rewrite(proto, mode, rank=1)
    assert once.report.totals.replaced == 1
    for other in MODES:
        again = rewrite(once.proto, other)
        assert again.proto == once.proto
        assert all(row.reason for row in again.report.convs)


def test_recurse_splits_what_another_mode_made() -> None:
    proto = model([conv("x", "w", "y")], [tensor("w", 8, 3, 3, 3)])
    once = rewrite(proto, "depthwise", rank=1)
    reasons = [row.reason for row in rewrite(once.proto, "spatial").report.convs]
    assert reasons[0] == "made by onnxsep (mode depthwise); recurse=True splits it again"
    twice = rewrite(once.proto, "spatial", recurse=True)
    assert twice.report.totals.replaced == 1
    same_outputs(once.proto, twice)
    new = [node for node in marked(twice.proto).graph.node if carried(node)["onnxsep.mode"] == "spatial"]
    expected = {"onnxsep.mode": "spatial", "onnxsep.rank": "9", "onnxsep.source": "conv_y_depthwise"}
    assert [carried(node) for node in new] == [expected] * 2
    assert carried(marked(twice.proto).graph.node[-1])["onnxsep.mode"] == "depthwise"


# ---------------------------------------------------------------- unusual Convs


def test_output_used_twice_and_as_a_graph_output(mode: str) -> None:
    relus = [helper.make_node(kind, ["y"], [kind]) for kind in ("Relu", "Neg")]
    outputs = [Y, ("Relu", FLOAT, ANY), ("Neg", FLOAT, ANY)]
    proto = model([conv("x", "w", "y"), *relus], [tensor("w", 4, 3, 3, 3)], outputs=outputs)
    result = exact(proto, mode)
    assert list(result.graph.node)[-2:] == relus


def test_omitted_bias_given_as_an_empty_name(mode: str) -> None:
    result = exact(model([conv("x", "w", "y", "")], [tensor("w", 4, 3, 3, 3)]), mode)
    assert "" not in {name for node in result.graph.node for name in node.input}


def test_bias_computed_at_run_time(mode: str) -> None:
    nodes = [helper.make_node("ReduceMax", ["v"], ["bias"], axes=[0], keepdims=0), conv("x", "w", "y", "bias")]
    proto = model(nodes, [tensor("w", 4, 3, 3, 3)], inputs=[X, ("v", FLOAT, [2, 4])])
    exact(proto, mode)


def test_bias_shared_with_another_node_stays(mode: str) -> None:
    nodes = [conv("x", "w", "y", "bias"), helper.make_node("Exp", ["bias"], ["z"])]
    proto = model(nodes, [tensor("w", 4, 3, 3, 3), tensor("bias", 4)], outputs=[Y, ("z", FLOAT, [4])])
    assert proto.graph.initializer[1] in exact(proto, mode).graph.initializer


def domain_written_out(nodes: Sequence[onnx.NodeProto], initializers: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    """The runtime takes "ai.onnx" for ONNX's own domain; the checker knows only the empty name."""
    for node in nodes:
        node.domain = "ai.onnx"
    imports = [helper.make_opsetid("ai.onnx", 17)]
    return helper.make_model(graph(nodes, [X], initializers=initializers), opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_the_domain_written_out(mode: str, stored: str) -> None:
    nodes, weights = stored_weight(stored)
    proto = domain_written_out([*nodes, conv("x", "w", "y")], weights)
    result = onnxsep.rewrite(proto, mode=mode, rank="full", force=True, include_first=True, verify="none")
    assert result.report.totals.replaced == 1, only_reason(result)
    assert {node.domain for node in result.proto.graph.node} == {"ai.onnx"}
    assert "the source is not valid for onnx.checker" in result.report.notes[0]
    same_outputs(proto, result)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_auto_pad_and_missing_attributes(mode: str, padding: str) -> None:
    """Only auto_pad and strides are given; kernel_shape, pads, dilations and group are missing."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=padding, strides=[2, 3])
    result = exact(model([node], [tensor("w", 4, 3, 3, 5)]), mode)
    for new in made(result.graph):
        attributes = {one.name: helper.get_attribute_value(one) for one in new.attribute}
        assert not {"pads", "auto_pad"} <= attributes.keys()


@pytest.mark.parametrize("sizes", [["n", 3, "h", None], [-1, 3, 0, -1], None], ids=["names", "numbers", "no shape"])
def test_sizes_that_are_not_known(mode: str, sizes: list[int | str | None] | None) -> None:
    """Some exporters write 0 or -1 for any size."""
    proto = helper.make_model(
        graph([conv("x", "w", "y")], [("x", FLOAT, sizes)], initializers=[tensor("w", 4, 3, 3, 3)]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    settings: dict[str, Any] = {"rank": "full", "force": True, "include_first": True, "verify": "none"}
    result = onnxsep.rewrite(proto, mode=mode, **settings)
    (row,) = result.report.convs
    assert row.status == "replaced"
    assert (row.macs_before, row.macs_after) == (None, None)
    assert any(note.startswith("sizes unknown") for note in row.notes)
    if sizes is not None:
        given = onnxsep.rewrite(proto, mode=mode, input_shapes={"x": (2, 3, 6, 7)}, **settings)
        assert given.report.convs[0].macs_before == 2 * (4 * 5) * (4 * 3) * (3 * 3)
        assert given.proto == result.proto  # shapes for the count are no part of the model
    if not sizes or 0 not in sizes:
        same_outputs(proto, result, {"x": values(2, 3, 6, 7)})


def test_types_that_graphsurgeon_does_not_know(mode: str) -> None:
    """Initialisers and values of every type beside the Conv; none of them concerns the rewrite."""
    proto = model([conv("x", "w", "y")], [tensor("w", 4, 3, 3, 3)], ir=int(onnx.IR_VERSION), opset=22)
    for number in sorted(TensorProto.DataType.values()):
        if number == TensorProto.UNDEFINED:
            continue
        odd = proto.graph.initializer.add(name=f"odd{number}", data_type=number, dims=[0])
        if number != TensorProto.STRING:
            odd.raw_data = b""
        proto.graph.input.append(value(f"in{number}", number, [2]))
    kinds_ = {
        "sequence": helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None)),
        "optional": helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None)),
        "map": helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, None)),
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, [3]),
    }
    kinds_["maps"] = helper.make_sequence_type_proto(kinds_["map"])
    proto.graph.input.extend(helper.make_value_info(name, kind) for name, kind in kinds_.items())
    onnx.checker.check_model(proto)
    result = rewrite(proto, mode)
    assert result.report.totals.replaced == 1
    assert list(result.proto.graph.input) == list(proto.graph.input)
    assert len(result.proto.graph.initializer) == len(proto.graph.initializer) - 1 + PIECES[mode][0]


# ---------------------------------------------------------------- results that are not valid


class OneChannelMore(Mode):
    """A mode with a mistake that its own factors do not show: its output has one channel too many."""

    name = "one-more"
    summary = "wrong on purpose"

    def accepts(self, conv: Conv) -> str | None:
        return None

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        return None if chosen else RankAxis("channels", full=8, paper=2)

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        return (ConvLayer("wide", INPUT, replace(conv, out_channels=conv.out_channels + 1)),)

    def spectrum(self, task: Task, chosen: Rank) -> Array:
        return np.ones((1, 8))

    def factorize(self, task: Task, rank: Rank) -> Factors:
        return Factors([np.concatenate([task.weight, task.weight[:1]])])

    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        return factors.weights[0][:-1]


def test_mode_that_makes_an_invalid_graph_is_found_out() -> None:
    proto = model([conv("x", "w", "y")], [tensor("w", 4, 3, 3, 3)], outputs=[("y", FLOAT, [2, 4, 4, 5])])
    settings: dict[str, Any] = {"force": True, "include_first": True, "verify": "none"}
    with pytest.raises(PassError, match="the rewritten graph is not valid, which is a bug of the mode or of onnxsep"):
        onnxsep.rewrite(proto, mode=OneChannelMore(), **settings)
    # Where the source is not valid either, nothing can be asked of the result, and the report says so.
    proto.graph.node.append(helper.make_node("Relu", ["nowhere"], ["z"]))
    (note,) = onnxsep.rewrite(proto, mode=OneChannelMore(), **settings).report.notes
    assert note.startswith("the source is not valid for onnx.checker, so the result was not checked: ")
    assert "nowhere" in note
