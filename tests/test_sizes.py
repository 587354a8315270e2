"""Sizes that no inference finds are read off one run: MACs and peak activation memory are never unknown then."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from versions import needs_new_runtime

import onnxsep
from onnxsep.graph.counting import Operations
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import Model, load
from onnxsep.running.sizes import find_sizes, peak_activation_bytes

pytestmark = needs_new_runtime  # with an old one sizes are not read off runs

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "meshnet3d_t1_ts": {"input": (1, 1, 8, 8, 8)},
    "silero_vad_spox": {"input": (1, 576), "state": (2, 1, 128)},
}
node = helper.make_node


def integers(name: str, values: Sequence[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32) / 8, name)


def value(name: str, dims: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def network(
    middle: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto], channels: int = 4
) -> onnx.ModelProto:
    """A Conv of x to a (4 channels of 8 x 8), what stands between, and a Conv of b to y (2 channels)."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first", pads=[1] * 4),
        *middle,
        node("Conv", ["b", "v"], ["y"], name="last", pads=[1] * 4),
    ]
    weights = [weight("w", 4, 3, 3, 3), weight("v", 2, channels, 3, 3), *tensors]
    graph = helper.make_graph(nodes, "g", [value("x", ["n", 3, 8, 8])], [value("y")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pad_as_torch_exports_it() -> onnx.ModelProto:
    """F.pad by (1, 1, 1, 1): the pads are turned round by Reshape, Slice with a step of -1 and Transpose."""
    middle = [
        node("ConstantOfShape", ["four"], ["rest"], value=helper.make_tensor("", TensorProto.INT64, [1], [0])),
        node("Concat", ["given", "rest"], ["eight"], axis=0),
        node("Reshape", ["eight", "pairs"], ["table"]),
        node("Slice", ["table", "minus", "least", "zero", "minus"], ["turned"]),
        node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
        node("Reshape", ["columns", "flat"], ["long"]),
        node("Cast", ["long"], ["pads"], to=TensorProto.INT64),
        node("Pad", ["a", "pads"], ["b"]),
    ]
    names = {"four": [4], "given": [1, 1, 1, 1], "pairs": [-1, 2], "minus": [-1], "least": [-(2**62)], "zero": [0]}
    tensors = [integers(name, values) for name, values in {**names, "flat": [-1]}.items()]
    return network(middle, tensors)


def reshape_of_a_shape() -> onnx.ModelProto:
    """[n, 4, 8, 8] as [n, 16, 4, 4], from sizes that are computed in floats."""
    middle = [
        node("Shape", ["a"], ["s"]),
        node("Cast", ["s"], ["sf"], to=TensorProto.FLOAT),
        node("Mul", ["sf", "by"], ["tf"]),
        node("Cast", ["tf"], ["t"], to=TensorProto.INT64),
        node("Reshape", ["a", "t"], ["b"]),
    ]
    by = numpy_helper.from_array(np.array([1, 4, 0.5, 0.5], np.float32), "by")
    return network(middle, [by], channels=16)


def resize_by_computed_sizes() -> onnx.ModelProto:
    middle = [
        node("Shape", ["a"], ["s"]),
        node("Cast", ["s"], ["sf"], to=TensorProto.FLOAT),
        node("Mul", ["sf", "by"], ["tf"]),
        node("Floor", ["tf"], ["td"]),
        node("Cast", ["td"], ["t"], to=TensorProto.INT64),
        node("Resize", ["a", "", "", "t"], ["b"], mode="nearest"),
    ]
    return network(middle, [numpy_helper.from_array(np.array([1, 1, 2, 2.2], np.float32), "by")])


FIRST = 64 * 4 * 3 * 9  # MACs of the first Conv


@pytest.mark.parametrize(
    ("made", "last", "floats"),
    [
        (pad_as_torch_exports_it, 100 * 2 * 4 * 9, 4 * 64 + 4 * 100),  # Pad: a, and b of 10 x 10
        (reshape_of_a_shape, 16 * 2 * 16 * 9, 3 * 64 + 4 * 64),  # the first Conv; b is a view of a
        (resize_by_computed_sizes, 16 * 17 * 2 * 4 * 9, 4 * 16 * 17 + 2 * 16 * 17),  # the last Conv, on 16 x 17
    ],
)
def test_what_exporters_leave(made: Callable[[], onnx.ModelProto], last: int, floats: int) -> None:
    model = made()
    report = onnxsep.inspect(model, modes=["depthwise"])
    assert report.totals.macs_unknown == 0
    assert report.totals.macs == FIRST + last
    assert report.totals.activations is not None
    assert report.totals.activations.best_order == 4 * floats
    rewritten = onnxsep.rewrite(model, mode="depthwise", include_first=True, verify="none").report.totals
    assert (rewritten.macs_before, rewritten.macs_unknown) == (FIRST + last, 0)
    assert rewritten.activations_before == report.totals.activations
    assert rewritten.activations_after is not None
    assert rewritten.activations_after.unknown == 0


def in_a_branch(*, other: bool) -> onnx.ModelProto:
    """The Resize within an If whose condition is computed, so that a run must tell; the other branch has its own."""
    source = resize_by_computed_sizes().graph
    branches = []
    for name in ("then", "else"):
        inner = [onnx.NodeProto.FromString(each.SerializeToString()) for each in source.node[1:]]
        made = {entry for each in inner for entry in each.output}
        for each in inner:
            each.input[:] = [f"{name}.{entry}" if entry in made else entry for entry in each.input]
            each.output[:] = [f"{name}.{entry}" for entry in each.output]
        branches.append(helper.make_graph(inner, name, [], [value(f"{name}.y")]))
    nodes = [
        source.node[0],
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Greater", ["top", "limit"], ["go"]),
        node("If", ["go"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    limit = numpy_helper.from_array(np.float32(1e9 if other else -1e9), "limit")
    graph = helper.make_graph(nodes, "g", list(source.input), [value("y")], [*source.initializer, limit])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("other", [False, True])
def test_within_a_branch_and_without_the_one_that_does_not_run(other: bool) -> None:
    model = in_a_branch(other=other)
    report = onnxsep.inspect(model, modes=["depthwise"])
    assert report.totals.macs_unknown == 0
    assert report.totals.macs == FIRST + 16 * 17 * 2 * 4 * 9
    assert any("then" in note if other else "else" in note for note in report.notes if "did not run" in note)
    # Within the If a lives on (4 x 64), beside b and y; so does the condition, which is one byte.
    assert peak_activation_bytes(model) == 4 * (4 * 64 + 16 * 17 * 6) + 1


def in_a_loop() -> onnx.ModelProto:
    """Three times a Conv on what a computed Resize makes half as large, and pads again to the full size."""
    body = helper.make_graph(
        [
            node("Identity", ["go"], ["on"]),
            node("Shape", ["state"], ["s"]),
            node("Cast", ["s"], ["sf"], to=TensorProto.FLOAT),
            node("Mul", ["sf", "by"], ["tf"]),
            node("Cast", ["tf"], ["t"], to=TensorProto.INT64),
            node("Resize", ["state", "", "", "t"], ["half"], mode="nearest"),
            node("Conv", ["half", "v"], ["c"], pads=[1] * 4),
            node("Pad", ["c", "pads"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", 9, []),
            value("state"),
        ],
        [helper.make_tensor_value_info("on", 9, []), value("next")],
    )
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Loop", ["times", "", "a"], ["y"], body=body),
    ]
    tensors = [weight("w", 4, 3, 3, 3), weight("v", 4, 4, 3, 3), integers("pads", [0, 0, 2, 2, 0, 0, 2, 2])]
    tensors.append(numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "by"))
    tensors.append(numpy_helper.from_array(np.array(3, np.int64), "times"))
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3, 8, 8])], [value("y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_within_a_loop() -> None:
    source = load(in_a_loop())
    light = skeleton(source)
    sizes = find_sizes(source)
    assert sizes.macs(light) == Operations(FIRST + 16 * 4 * 4 * 9, 0)  # a body counts once
    assert sizes.activation_memory(light).unknown == 0


def called_twice() -> onnx.ModelProto:
    """A function of one Conv that is called on 8 x 8 and, behind a pool, on 4 x 4."""
    function = helper.make_function(
        "own",
        "Block",
        ["t", "k"],
        ["r"],
        [node("Conv", ["t", "k"], ["r"], pads=[1] * 4)],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        node("Block", ["x", "w"], ["a"], domain="own"),
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Block", ["p", "v"], ["y"], domain="own"),
    ]
    tensors = [weight("w", 4, 3, 3, 3), weight("v", 2, 4, 3, 3)]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3, 8, 8])], [value("y")], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


def test_every_call_of_a_function_counts() -> None:
    totals = onnxsep.inspect(called_twice(), modes=["depthwise"]).totals
    assert (totals.macs, totals.macs_unknown) == (FIRST + 16 * 2 * 4 * 9, 0)
    assert peak_activation_bytes(called_twice()) == 4 * 64 * (3 + 4)


def test_sizes_of_the_data_are_used_where_the_model_leaves_them_free() -> None:
    model = pad_as_torch_exports_it()
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    unknown = onnxsep.inspect(model, modes=["depthwise"]).totals
    assert unknown.activations is not None
    assert unknown.activations.best_order is None
    data = {"x": np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)}
    totals = onnxsep.rewrite(model, mode="depthwise", data=data, include_first=True, samples=8).report.totals
    assert (totals.macs_before, totals.macs_unknown) == (FIRST + 100 * 2 * 4 * 9, 0)
    assert totals.activations_before is not None
    assert totals.activations_before.best_order == 4 * (4 * 64 + 4 * 100)
    row = onnxsep.evaluate([model, model], data=data, runs=0, memory=False).models[0]
    assert (row.macs, row.macs_unknown, row.activations) == (totals.macs_before, 0, totals.activations_before)


@pytest.mark.parametrize("path", sorted(SHARED.glob("*.onnx")), ids=lambda path: path.stem)
def test_trained_models_have_all_figures(path: Path) -> None:
    model: Model = load(path)
    sizes = find_sizes(model, SHAPES.get(path.stem))
    light = skeleton(model)
    macs, memory = sizes.macs(light), sizes.activation_memory(light)
    assert (macs.unknown, memory.unknown) == (0, 0)
    assert macs.total > 0
    assert memory.best_order is not None
    assert memory.file_order is not None
    assert 0 < memory.best_order <= memory.file_order


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared with trained models is not there")
def test_a_residual_network_holds_three_tensors() -> None:
    # The second Conv of a block of the first stage: what enters the block, what the first Conv gave, its own result.
    assert peak_activation_bytes(SHARED / "cifar10_resnet20_ts.onnx") == 3 * 16 * 32 * 32 * 4


def test_a_sequence_has_no_sizes() -> None:
    """What the tensors of a sequence take is not known; the rest is counted."""
    middle = [
        node("SequenceConstruct", ["a", "x"], ["both"]),
        node("SequenceAt", ["both", "zero"], ["b"]),
    ]
    model = network(middle, [numpy_helper.from_array(np.array(0, np.int64), "zero")])
    totals = onnxsep.inspect(model, modes=["depthwise"]).totals
    assert (totals.macs, totals.macs_unknown) == (FIRST + 64 * 2 * 4 * 9, 0)
    assert totals.activations is not None
    assert (totals.activations.best_order, totals.activations.unknown) == (None, 1)
