"""The modes narrow-stem, narrow-stages and narrow-inner: channels go, with all that follows them and nothing else."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import run
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from random_examples import examples
from residual_models import CLASSES, SIDE, Residual

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.modes import Group, WidthMode

STAGES = ((4, 12, 2), (5, 16, 2))


def parameters(stages: Any, stem: int) -> int:
    """Weights of all Convs and the classifier and four numbers of BatchNormalization for each of their outputs."""
    pairs, before = [(3 * 9, stem)], stem
    for inner, width, blocks in stages:
        for block in range(blocks):
            pairs += [(before, inner), (inner * 9, inner), (inner, width)]
            pairs += [(before, width)] if not block else []
            before = width
    return sum(reads * makes + 4 * makes for reads, makes in pairs) + before * CLASSES + CLASSES


def stored(proto: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(one).size for one in proto.graph.initializer)


def outputs(proto: onnx.ModelProto, seed: int = 0) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    feed = np.random.default_rng(seed).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"image": feed})[0]


@settings(max_examples=examples(4, 60), deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=2),
    stem=st.integers(1, 6),
    activation=st.sampled_from(["Relu", "Clip", "SiLU", "HardSwish", ""]),
    head=st.sampled_from(["gemm", "matmul", "reduce"]),
    norm=st.booleans(),
)
def test_what_is_named_changes_and_nothing_else(
    widths: list[int], stem: int, activation: str, head: str, norm: bool
) -> None:
    source = Residual(STAGES, activation=activation, head=head, norm=norm).proto
    text = ",".join(map(str, widths))
    narrow = onnxsep.rewrite(source, mode="narrow-stages", settings={"widths": text}, seed=1)
    result = onnxsep.rewrite(narrow.model, mode="narrow-stem", settings={"channels": stem})
    made = result.model.proto
    if norm:
        stages = [(inner, width, blocks) for (inner, _, blocks), width in zip(STAGES, widths, strict=True)]
        assert stored(made) - stored_elsewhere(made) == parameters(stages, stem)
    assert list(made.graph.node) == list(source.graph.node)
    changed = {
        row.name for report in (narrow.report, result.report) for row in report.convs if row.status == "replaced"
    }
    read = {name for node in source.graph.node if node.name in changed for name in node.input}
    for one, other in zip(source.graph.initializer, made.graph.initializer, strict=True):
        if one != other and len(one.dims) > 1:
            assert one.name in read
    assert outputs(made).shape == (2, CLASSES)
    again = onnxsep.rewrite(made, mode="narrow-stages", settings={"widths": text})
    assert again.report.totals.replaced == 0
    assert again.model.proto.SerializeToString() == made.SerializeToString()


def stored_elsewhere(proto: onnx.ModelProto) -> int:
    """Bounds of Clip."""
    return 2 * sum(node.op_type == "Clip" for node in proto.graph.node)


def test_channels_that_do_nothing_go_first() -> None:
    """Filters that are zero, with a zero beta: the result computes what the source does."""
    net = Residual(STAGES, last="")
    proto = net.proto
    arrays = {one.name: one for one in proto.graph.initializer}
    makers = [node for node in proto.graph.node if node.op_type == "Conv" and node.name in net.convs]
    stream = [net.convs[number] for number in (3, 4, 7)]  # of the first stage, in the order of building
    dead = [1, 4, 9]
    for node in makers:
        if node.name not in stream:
            continue
        norm = next(one for one in proto.graph.node if one.input[0] == node.output[0])
        for name in (node.input[1], *norm.input[1:4]):
            array = numpy_helper.to_array(arrays[name]).copy()
            array[dead] = 0
            arrays[name].CopyFrom(numpy_helper.from_array(array, name))
    result = onnxsep.rewrite(proto, mode="narrow-stages", settings={"widths": "9,16"})
    np.testing.assert_allclose(outputs(result.model.proto), outputs(proto), rtol=1e-4, atol=1e-5)
    assert any("needs training" in note for note in result.report.notes)


def test_inner_layers_by_number() -> None:
    source = Residual(STAGES)
    result = onnxsep.rewrite(source.proto, mode="narrow-inner", settings={"layers": "5,6", "widths": "2"})
    rows = {row.name: row for row in result.report.convs if row.status == "replaced"}
    # The first block of the second stage: 1 x 1 and 3 x 3, and what reads the latter.
    assert [row.notes for row in rows.values()] == [
        ("computes 5 -> 2 channels",),
        ("computes 5 -> 2 and reads 5 -> 2 channels",),
        ("reads 5 -> 2 channels",),
    ]
    assert outputs(result.model.proto).shape == (2, CLASSES)


def test_a_stem_whose_stream_has_no_projection_takes_its_stage_with_it() -> None:
    source = Residual(((4, 6, 2), (5, 16, 1)), stem=6)
    result = onnxsep.rewrite(source.proto, mode="narrow-stem", settings={"channels": 3})
    assert stored(result.model.proto) < stored(source.proto)
    assert any("2 more, to which they are added: 6 -> 3" in note for note in result.report.notes)
    assert outputs(result.model.proto).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("narrow-stages", {"widths": "4"}, ""),
        ("narrow-stages", {"widths": "4,5,6"}, "widths has 3 numbers, and the model has 2 groups"),
        ("narrow-stages", {"widths": "4,x"}, "widths must be a text, whole numbers"),
        ("narrow-stages", {"widths": "0,4"}, "widths must be a text, whole numbers"),
        ("narrow-stages", {"width": "4"}, "did you mean"),
        ("narrow-inner", {"layers": "9"}, "there is no layer 9; the model has 8"),
        ("narrow-inner", {"layers": "1,2", "widths": "1,2,3"}, "2 layers and 3 widths"),
        ("narrow-stem", {"channels": 0}, "channels must be a whole number, 1 or more"),
    ],
)
def test_what_cannot_be(mode: str, given: dict[str, Any], message: str) -> None:
    source = Residual(STAGES).proto
    if not message:
        assert onnxsep.rewrite(source, mode=mode, settings=given, dry_run=True).report.totals.replaced
        return
    with pytest.raises(OptionError, match=message):
        onnxsep.rewrite(source, mode=mode, settings=given)


def test_what_stays_is_told_with_its_reason() -> None:
    source = Residual(STAGES).proto
    result = onnxsep.rewrite(
        source, mode="narrow-stages", settings={"widths": "20,4"}, skip=[Residual(STAGES).convs[-1]]
    )
    reasons = {row.reason for row in result.report.convs}
    assert "it has 12 channels, fewer than the 20 that were asked for" in reasons
    assert any(reason.startswith("its channels stay: ") and "skip" in reason for reason in reasons)
    assert result.model.proto.SerializeToString() == source.SerializeToString()


def test_dry_run_counts_as_the_result() -> None:
    source = Residual(STAGES).proto
    asked: dict[str, Any] = {"mode": "narrow-stages", "settings": {"widths": "3,4"}}
    planned, done = (onnxsep.rewrite(source, dry_run=dry, **asked) for dry in (True, False))
    assert planned.report.totals == done.report.totals
    assert planned.model.proto == source


def test_where_a_plan_or_costs_of_layers_are_asked_for(tmp_path: Any) -> None:
    source = Residual(STAGES).proto
    onnx.save(source, tmp_path / "in.onnx")
    done = run("inspect", "in.onnx", "--mode", "narrow-stem", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("narrow-stem changes how many channels")) == (1, 1)
    with pytest.raises(OptionError, match="mode narrow-stem changes their widths"):
        _ = onnxsep.rewrite(source, mode="narrow-stem", settings={"channels": 2}).plan
    done = run("rewrite", "in.onnx", "out.onnx", "-m", "narrow-stem", "--set", "channels=2", "-r", "2", cwd=tmp_path)
    assert done.returncode == 1
    assert "has no rank to choose" in done.stderr


class Halves(WidthMode):
    """As another package would write it."""

    name = "halves"
    summary = "half of everything"

    def widths(self, groups: Any) -> Any:
        assert all(isinstance(group, Group) for group in groups)
        return {number: max(1, group.channels // 2) for number, group in enumerate(groups)}


def test_a_mode_of_another_package() -> None:
    result = onnxsep.rewrite(Residual(STAGES).proto, mode=Halves())
    assert stored(result.model.proto) == parameters(((2, 6, 2), (2, 8, 2)), 3)


def test_statistics_that_pytorch_stores_once_as_they_are_equal() -> None:
    """Its exporter writes one initialiser, and an Identity of it for each of the others."""
    source = Residual(STAGES).proto
    norms = [node for node in source.graph.node if node.op_type == "BatchNormalization"]
    pair = norms[3], norms[4]  # of the first block's third Conv and its projection
    first = numpy_helper.to_array(next(one for one in source.graph.initializer if one.name == pair[0].input[3]))
    twin = next(one for one in source.graph.initializer if one.name == pair[1].input[3])
    twin.CopyFrom(numpy_helper.from_array(first, twin.name))
    wanted = onnxsep.rewrite(source, mode="narrow-stages", settings={"widths": "3,4"})
    shared = onnx.ModelProto.FromString(source.SerializeToString())
    shared.graph.initializer.remove(next(one for one in shared.graph.initializer if one.name == twin.name))
    shared.graph.node.insert(0, onnx.helper.make_node("Identity", [pair[0].input[3]], [twin.name], name="same"))
    found = onnxsep.rewrite(shared, mode="narrow-stages", settings={"widths": "3,4"})
    np.testing.assert_array_equal(outputs(found.model.proto), outputs(wanted.model.proto))
    assert list(found.model.proto.graph.node) == list(source.graph.node)
    again = onnxsep.rewrite(shared, mode="narrow-stages", settings={"widths": "12,16"})
    assert again.model.proto.SerializeToString() == shared.SerializeToString()
