"""What a run of the whole model does not show: branches, loops and functions that do not run, results nobody reads."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from versions import needs_new_runtime

import onnxsep
from onnxsep.errors import VerificationError
from onnxsep.graph.scopes import scopes
from onnxsep.model.io import load
from onnxsep.rewriting.report import RewriteReport
from onnxsep.running.execution import idle_scopes, unseen_places
from onnxsep.running.feeds import Feeds, make_feeds
from onnxsep.running.runtime import RuntimeOptions

ONE = RuntimeOptions(threads=1)
LIMIT = 0.05
F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value = helper.make_tensor_value_info


def weight(name: str, seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal((8, 8, 3, 3)) / 8
    return numpy_helper.from_array(values.astype(np.float32), name)


def conv(source: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"w_{name}"], [name], name=f"conv_{name}", pads=[1] * 4)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto] | None = None,
    constants: dict[str, object] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
    weights: str = "ab",
) -> onnx.ModelProto:
    initializers = [weight(f"w_{name}", number) for number, name in enumerate(weights)]
    initializers += [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="start"), *nodes]
    graph = helper.make_graph(
        nodes, "g", [value("x", F, [1, 8, 6, 6]), *(inputs or [])], [value("y", F, None)], initializers
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=8)


def branches(mean_above: float = 0.0) -> onnx.ModelProto:
    """y is Conv a of Relu(x) where its mean is above a limit, else Conv b."""
    graphs = [helper.make_graph([conv("r", name)], name, [], [value(name, F, None)]) for name in "ab"]
    nodes = [
        helper.make_node("ReduceMean", ["r"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "limit"], ["above"]),
        helper.make_node("If", ["above"], ["y"], name="choice", then_branch=graphs[0], else_branch=graphs[1]),
    ]
    return model_of(nodes, constants={"limit": np.float32(mean_above)})


def loop(trips: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [conv("s", "a"), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [value("i", I64, []), value("go", B, []), value("s", F, None)],
        [value("go_on", B, []), value("a", F, None)],
    )
    return model_of(
        [helper.make_node("Loop", ["trips", "", "r"], ["y"], name="loop", body=body)],
        constants={"trips": np.int64(trips)},
    )


def function(called_in_branch: bool) -> onnx.ModelProto:
    """A function with a Conv whose weight it holds, called in the main graph or in a branch that does not run."""
    held = helper.make_node("Constant", [], ["w"], value=weight("w", 5))
    body = [held, helper.make_node("Conv", ["u", "w"], ["v"], name="conv_f", pads=[1] * 4)]
    made = helper.make_function("f", "F", ["u"], ["v"], body, [helper.make_opsetid("", 17)])
    call = helper.make_node("F", ["r"], ["called"], domain="f")
    if not called_in_branch:
        return model_of([call, conv("called", "a"), helper.make_node("Neg", ["a"], ["y"])], functions=[made])
    graphs = [
        helper.make_graph([helper.make_node("Neg", ["r"], ["n"])], "t", [], [value("n", F, None)]),
        helper.make_graph([call], "e", [], [value("called", F, None)]),
    ]
    nodes = [helper.make_node("If", ["yes"], ["y"], name="choice", then_branch=graphs[0], else_branch=graphs[1])]
    return model_of(nodes, constants={"yes": np.array(True)}, functions=[made])


def read_by_a_branch() -> onnx.ModelProto:
    """Conv a is in the main graph and runs, but only the branch that does not run reads it."""
    graphs = [
        helper.make_graph([helper.make_node("Neg", ["r"], ["n"])], "t", [], [value("n", F, None)]),
        helper.make_graph([helper.make_node("Abs", ["a"], ["e"])], "e", [], [value("e", F, None)]),
    ]
    choice = helper.make_node("If", ["yes"], ["y"], name="choice", then_branch=graphs[0], else_branch=graphs[1])
    return model_of([conv("r", "a"), choice], constants={"yes": np.array(True)})


def on_no_elements() -> onnx.ModelProto:
    """Conv a runs on the samples whose first value is above 1e9: none."""
    nodes = [
        helper.make_node("ReduceMax", ["r"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["chosen"]),
        helper.make_node("Compress", ["r", "chosen"], ["some"], axis=0),
        conv("some", "a"),
        helper.make_node("Concat", ["a", "r"], ["y"], axis=0),
    ]
    return model_of(nodes, constants={"limit": np.float32(1e9)})


def status(model: onnx.ModelProto, only: str, **options: Any) -> tuple[str, RewriteReport]:
    try:
        report = onnxsep.rewrite(model, mode="depthwise", only=only, include_first=True, runtime=ONE, **options).report
    except VerificationError as error:
        return str(error), error.report
    return "", report


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        (branches(-1e9), "conv_b", "If 'choice', else_branch"),
        (branches(1e9), "conv_a", "If 'choice', then_branch"),
        (loop(0), "conv_a", "Loop 'loop', body"),
        (function(called_in_branch=True), "conv_f", "If 'choice', else_branch; function f::F"),
        (read_by_a_branch(), "conv_a", "If 'choice', else_branch"),
        pytest.param(on_no_elements(), "conv_a", "", marks=needs_new_runtime),
    ],
    ids=["else", "then", "loop", "function", "captured", "empty"],
)
def test_what_did_not_run_is_compared_alone(model: onnx.ModelProto, name: str, words: str) -> None:
    why, report = status(model, name)
    assert why == ""
    verified = report.verification
    (row,) = (one for one in report.convs if one.name == name)
    assert row.status == "replaced"
    assert [one.relative for one in verified.outputs] == [0.0]  # the outputs show nothing of it
    assert verified.relative == row.output_error
    assert row.output_error is not None
    assert 0.2 < row.output_error < 1  # one term of nine of a random weight
    (note,) = (note for note in verified.notes if "alone" in note)
    assert words in note
    assert status(model, name, max_error=LIMIT)[0].startswith(f"the relative error {row.output_error:.3g} is above")
    assert status(model, name, max_error=1)[0] == ""
    # What is exact passes.
    assert status(model, name, max_error=1e-4, rank="full", force=True)[0] == ""


@pytest.mark.parametrize(
    ("model", "name"),
    [(branches(-1e9), "conv_a"), (branches(1e9), "conv_b"), (loop(2), "conv_a"), (function(False), "conv_f")],
)
def test_what_ran_is_judged_by_the_outputs(model: onnx.ModelProto, name: str) -> None:
    _, report = status(model, name)
    verified = report.verification
    assert verified.relative == verified.outputs[0].relative > 0
    assert not any("alone" in note for note in verified.notes)
    assert [one.output_error for one in report.convs if one.name == name] == [None]


def test_scopes_that_run_depend_on_the_inputs() -> None:
    model = load(branches(0.1))
    assert [scope.where for scope in scopes(model.proto)][1:] == [
        "If 'choice', else_branch",
        "If 'choice', then_branch",
    ]
    for filled, idle in ((np.ones, {1}), (np.zeros, {2})):
        feeds = Feeds({"x": filled((1, 8, 6, 6), np.float32)}, ())
        assert idle_scopes(model, feeds, ONE) == idle
    places = {(1, 0), (2, 0), (0, 0)}
    assert unseen_places(model, places, feeds, ONE) == ({(2, 0)}, ["If 'choice', then_branch"])


def test_branches_within_branches() -> None:
    inner = branches(1e9).graph.node[-1]  # takes its else_branch
    outer = helper.make_graph([inner], "outer", [], [value("y", F, None)])
    other = helper.make_graph([helper.make_node("Neg", ["r"], ["n"])], "other", [], [value("n", F, None)])
    proto = branches(1e9)
    proto.graph.node[-1].CopyFrom(
        helper.make_node("If", ["yes"], ["y"], name="top", then_branch=outer, else_branch=other)
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model = load(proto)
    named = [scope.where for scope in scopes(model.proto)]
    idle = {named[index] for index in idle_scopes(model, make_feeds(model), ONE)}
    assert idle == {"If 'top', else_branch", "If 'top', then_branch; If 'choice', then_branch"}


def test_pruning() -> None:
    for name, seen in (("conv_a", True), ("conv_b", False)):
        report = onnxsep.prune(branches(-1e9), sparsity=0.5, only=name, runtime=ONE).report
        assert (
            any(
                "1 of 1 changed weights (not run: If 'choice', else_branch)" in note
                for note in report.verification.notes
            )
            is not seen
        )
    with pytest.raises(VerificationError, match=r"max_error was asked for and could not be measured: .*else_branch"):
        onnxsep.prune(branches(-1e9), sparsity=0.5, only="conv_b", max_error=0.9, runtime=ONE)
    onnxsep.prune(branches(-1e9), sparsity=0.5, only="conv_a", max_error=0.9, runtime=ONE)


def test_check_says_what_it_did_not_compare() -> None:
    part = onnxsep.check(branches(-1e9), branches(-1e9)).parts[-1]
    assert part.name == "outputs"
    assert part.notes[-1] == "not compared, for these inputs do not run it: If 'choice', else_branch"
    assert onnxsep.check(function(False), function(False)).parts[-1].notes[-1:] != part.notes[-1:]
