"""Outputs that join parts of unlike ranges: an error of each part, and limits that judge the worst one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.algebra.output_parts import PartTally, channel_axes, show_indices
from onnxsep.data import open_data
from onnxsep.errors import VerificationError
from onnxsep.model.io import Model
from onnxsep.quantization.measuring import measure
from onnxsep.running.comparison import Comparison, compare_outputs
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import RuntimeOptions

ONE_THREAD = RuntimeOptions(threads=1)
Floats = NDArray[np.float32]


def detections(*shape: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Boxes [n, 4, a] in 0 .. 640 and scores [n, 8, a] in 0 .. 1."""
    rng = np.random.default_rng(seed)
    n, a = shape
    return (
        rng.uniform(0, 640, (n, 4, a)).astype(np.float32),
        rng.uniform(0, 1, (n, 8, a)).astype(np.float32),
    )


def tally(original: Floats, result: Floats, samples: int | None = None) -> PartTally:
    found = PartTally()
    found.add(original, result, samples)
    return found


def relative(original: Floats, result: Floats) -> float:
    wide = original.astype(np.float64)
    return float(np.linalg.norm(wide - result) / np.linalg.norm(wide))


# ---------------------------------------------------------------- finding parts


@pytest.mark.parametrize("axis", [1, 2])
def test_boxes_and_scores_on_either_axis(axis: int) -> None:
    boxes, scores = detections(3, 50)
    original = np.concatenate([boxes, scores], 1)
    result = np.concatenate([boxes * np.float32(1.01), scores * 0], 1)
    first, second = tally(np.moveaxis(original, 1, axis), np.moveaxis(result, 1, axis)).parts()
    assert (first.axis, first.indices) == (axis, (0, 1, 2, 3))
    assert (second.axis, second.indices) == (axis, tuple(range(4, 12)))
    assert first.relative == pytest.approx(0.01, rel=1e-3)
    assert second.relative == 1
    assert not first.lost
    assert second.lost
    assert (second.low, second.high) == (scores.min(), scores.max())
    assert second.max_abs == scores.max()
    # Standard deviation of what is uniform in 0 .. 1: 1 / sqrt(12), here within the noise of 150 values an index.
    assert second.deviation_before == pytest.approx(1 / np.sqrt(12), rel=0.05)
    assert second.deviation_after == 0


def test_batches_give_what_all_samples_together_give() -> None:
    boxes, scores = detections(7, 20)
    original = np.concatenate([boxes, scores], 1)
    result = original + np.random.default_rng(1).normal(0, 0.02, original.shape).astype(np.float32)
    together, apart = tally(original, result, 7), PartTally()
    for start in range(0, 7, 3):
        apart.add(original[start : start + 3], result[start : start + 3], min(3, 7 - start))
    for one, two in zip(together.parts(), apart.parts(), strict=True):
        assert (one.indices, one.low, one.high, one.max_abs) == (two.indices, two.low, two.high, two.max_abs)
        assert one.relative == pytest.approx(two.relative, rel=1e-9)
    assert together.relative == pytest.approx(relative(original[:, 4:], result[:, 4:]), rel=1e-9)


def test_parts_that_alternate() -> None:
    """Keypoints: x and y in pixels, then a visibility, again and again."""
    rng = np.random.default_rng(0)
    original = rng.uniform(0, 1, (4, 9, 30)).astype(np.float32)
    original[:, [0, 1, 3, 4, 6, 7]] *= 256
    pixels, visible = tally(original, original).parts()
    assert show_indices(pixels.indices) == "0-1, 3-4, 6-7"
    assert visible.indices == (2, 5, 8)


def test_an_output_without_an_axis_for_samples() -> None:
    boxes, scores = detections(1, 40)
    original = np.concatenate([boxes, scores], 1)[0]
    assert [part.axis for part in tally(original, original, 1).parts()] == [0, 0]
    # The same array as 12 samples of 40 numbers: then samples differ, and nothing is joined.
    assert tally(original, original, 12).parts() == ()


def test_three_kinds_of_values() -> None:
    rng = np.random.default_rng(0)
    kinds = [rng.normal(0, scale, (5, 2, 64)) for scale in (1e4, 50, 0.2)]
    original = np.concatenate(kinds, 1).astype(np.float32)
    assert [part.indices for part in tally(original, original).parts()] == [(0, 1), (2, 3), (4, 5)]


def logits() -> Floats:
    return np.random.default_rng(0).normal(0, 4, (64, 10)).astype(np.float32)


def softmax_map() -> Floats:
    """Probabilities [2, 5, 16, 16] of classes of which the last two appear in no image."""
    values = np.random.default_rng(0).normal(0, 3, (2, 5, 16, 16)) - np.array([0, 0, 0, 12, 25])[:, None, None]
    powers = np.exp(values)
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def features() -> Floats:
    """Features of which one hardly ever responds."""
    values = np.maximum(np.random.default_rng(0).normal(0, 1, (100, 256)), 0)
    values[:, 7] *= 0.03
    return values.astype(np.float32)


def dead_channel() -> Floats:
    values = np.random.default_rng(0).normal(0, 1, (4, 6, 8, 8)).astype(np.float32)
    values[:, 2] = 0
    values[:, 4] *= 1e-7
    return values


@pytest.mark.parametrize("make", [logits, softmax_map, features, dead_channel])
def test_ordinary_outputs_are_one_part(make: Callable[[], Floats]) -> None:
    original = make()
    result = original + np.random.default_rng(1).normal(0, 0.01, original.shape).astype(np.float32)
    found = tally(original, result)
    assert found.parts() == ()
    assert found.relative == pytest.approx(relative(original, result), rel=1e-9)
    assert found.losses("output") == []


def test_too_few_values_tell_nothing() -> None:
    original = np.array([[100, 100, 100, 0.5]] * 15, np.float32)
    assert tally(original, original).parts() == ()
    assert len(tally(np.concatenate([original, original]), np.concatenate([original, original])).parts()) == 2


def test_nan_is_left_out() -> None:
    boxes, scores = detections(3, 50)
    original = np.concatenate([boxes, scores], 1)
    result = original.copy()
    result[:, 5] = 0
    original[0, :, :25] = result[0, :, :25] = np.nan
    found = tally(original, result)
    known = np.concatenate([original[0, 4:, 25:].ravel(), original[1:, 4:].ravel()])
    other = np.concatenate([result[0, 4:, 25:].ravel(), result[1:, 4:].ravel()])
    assert found.relative == pytest.approx(relative(known, other), rel=1e-9)


def test_a_part_that_becomes_constant_is_lost_even_at_its_mean() -> None:
    """Scores near .9 that all become .9: their relative error is small, what they tell is gone."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 640, (4, 4, 32)).astype(np.float32)
    scores = rng.normal(0.9, 0.02, (4, 3, 32)).astype(np.float32)
    original = np.concatenate([boxes, scores], 1)
    result = np.concatenate([boxes, np.full_like(scores, 0.9)], 1)
    assert relative(scores, np.full_like(scores, 0.9)) < 0.05
    found = tally(original, result)
    assert found.relative == 1
    (note,) = found.losses("output 'y'")
    assert note.startswith("output 'y', axis 1, indices 4-6 (")
    assert "has lost its variation: standard deviation 0.0" in note


def test_a_whole_output_that_becomes_constant_is_told_and_its_figure_stays() -> None:
    original = np.random.default_rng(0).normal(5, 0.1, (40, 3)).astype(np.float32)
    result = np.full_like(original, 5)
    found = tally(original, result)
    assert found.relative == pytest.approx(relative(original, result), rel=1e-9)
    assert [note.split(" (")[0] for note in found.losses("output 'y'")] == ["output 'y'"]


@pytest.mark.parametrize(
    ("shape", "samples", "axes"),
    [
        ((2, 12, 64), 2, [1, 2]),
        ((12, 64), 1, [0, 1]),
        ((12, 64), None, [1]),
        ((1, 85, 20, 20), 1, [1]),
        ((1, 20, 20, 85), 1, [3]),
        ((1, 3, 20, 20, 85), 1, [1, 2, 4]),
        ((7,), 7, []),
        ((), 1, []),
    ],
)
def test_axes_that_may_join_parts(shape: tuple[int, ...], samples: int | None, axes: list[int]) -> None:
    assert channel_axes(shape, samples) == axes


# ---------------------------------------------------------------- commands


def detector(factor: float = 1.0, *, last: bool = False) -> onnx.ModelProto:
    """Boxes [N, 4, 64] of 640 sigmoid(x w) and scores [N, 8, 64] of factor * sigmoid(x v), joined."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(0, 1, (4, 3, 1)), "v": rng.normal(0, 1, (8, 3, 1))}
    scales = {"pixels": np.float32(640), "factor": np.float32(factor)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="boxes"),
        helper.make_node("Conv", ["x", "v"], ["b"], name="scores"),
        helper.make_node("Sigmoid", ["a"], ["sa"]),
        helper.make_node("Sigmoid", ["b"], ["sb"]),
        helper.make_node("Mul", ["sa", "pixels"], ["box"]),
        helper.make_node("Mul", ["sb", "factor"], ["score"]),
        helper.make_node("Concat", ["box", "score"], ["joined"], name="join", axis=1),
        helper.make_node("Transpose", ["joined"], ["y"], perm=[0, 2, 1] if last else [0, 1, 2]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.asarray(value), name) for name, value in scales.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count: int = 20) -> Floats:
    return np.random.default_rng(5).standard_normal((count, 3, 64)).astype(np.float32)


def compare(original: onnx.ModelProto, result: onnx.ModelProto) -> Comparison:
    return compare_outputs(Model(original), Model(result), Feeds({"x": images()}), ONE_THREAD)


@pytest.mark.parametrize("last", [False, True])
def test_scores_that_are_zeroed_are_an_error_of_one(last: bool) -> None:
    found = compare(detector(last=last), detector(0, last=last))
    assert found.relative == 1
    assert found.outputs[0].parts[0].relative == 0
    assert any("has lost its variation" in note for note in found.notes)
    # A tenth of the scores' size off: that is the error, not the .0002 that one norm would give.
    assert compare(detector(last=last), detector(0.9, last=last)).relative == pytest.approx(0.1, rel=1e-3)


def test_a_limit_judges_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that takes the scores off by half fails --max-error .05, whatever the boxes are."""
    from onnxsep.rewriting import verification

    def broken(original: Model, result: Model, *rest: Any, **options: Any) -> Comparison:
        for tensor in result.proto.graph.initializer:
            if tensor.name == "factor":
                tensor.CopyFrom(numpy_helper.from_array(np.float32(0.5), "factor"))
        return compare_outputs(original, result, *rest, **options)

    options: dict[str, Any] = {"mode": "channel", "rank": "full", "force": True, "include_first": True}
    wide = detector()
    for node in wide.graph.node[:2]:  # kernels of one are left alone by the mode
        node.attribute.append(helper.make_attribute("pads", [1, 1]))
    for tensor in wide.graph.initializer[:2]:
        values = np.repeat(numpy_helper.to_array(tensor), 3, axis=2)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    exact = onnxsep.rewrite(wide, max_error=0.05, **options).report.verification.relative
    assert exact is not None
    assert exact < 1e-4
    monkeypatch.setattr(verification, "compare_outputs", broken)
    with pytest.raises(VerificationError, match=r"relative error 0\.5 is above max_error=0\.05") as failed:
        onnxsep.rewrite(wide, max_error=0.05, **options)
    (output,) = failed.value.report.verification.outputs
    assert [part.indices for part in output.parts] == ["0-3", "4-11"]


def test_check_holds_scores_to_their_own_size(tmp_path: Path) -> None:
    """Scores that are off by .02 are within 1e-4 of 640, and differ all the same."""
    onnx.save(detector(), tmp_path / "a.onnx")
    onnx.save(detector(0.98), tmp_path / "b.onnx")
    np.save(tmp_path / "x.npy", images())
    options = ["--data", "x.npy", "--no-structure", "--no-weights", "--format", "json"]
    done = run("check", "b.onnx", "a.onnx", *options, cwd=tmp_path)
    assert done.returncode == 3
    (difference,) = json.loads(done.stdout)["parts"][0]["differences"]
    assert "axis 1, indices 4-11: relative error 0.02" in difference["message"]
    assert "axis 1, indices 0-3: relative error 0" in difference["message"]


def test_evaluate_shows_the_worst_part(tmp_path: Path) -> None:
    onnx.save(detector(), tmp_path / "a.onnx")
    onnx.save(detector(0), tmp_path / "b.onnx")
    np.save(tmp_path / "x.npy", images())
    command = ["evaluate", "a.onnx", "b.onnx", "--data", "x.npy", "--runs", 0, "--no-memory"]
    report = json.loads(run(*command, "--json", cwd=tmp_path).stdout)
    (output,) = report["models"][1]["against_reference"]["outputs"]
    assert output["relative"] == 1
    assert [(part["indices"], part["relative"], part["lost"]) for part in output["parts"]] == [
        ("0-3", 0, False),
        ("4-11", 1, True),
    ]
    assert any("has lost its variation" in note for note in report["notes"])
    assert re.search(r"axis 1, indices 4-11 +1 \(variation lost\)", run(*command, cwd=tmp_path).stdout)


def test_quantize_measures_the_scores() -> None:
    source, result = Model(detector()), Model(detector(0))
    data = open_data(images(), source)
    (output,) = measure(source, result, data, list(range(20)), ONE_THREAD)
    assert output.relative == 1
    assert [(part.indices, part.relative) for part in output.parts] == [("0-3", 0), ("4-11", 1)]
    assert "has lost its variation" in output.lost[0]
