"""``evaluate``: figures that can be worked out by hand or with another library, and every way to go wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from PIL import Image

import onnxsep
from onnxsep.errors import DataError, ModelLoadError, OnnxsepError, OptionError
from onnxsep.evaluation import EvaluationError, EvaluationReport, evaluate
from onnxsep.evaluation.latency import measure_latency
from onnxsep.evaluation.memory import measure_memory, memory_of
from onnxsep.evaluation.metrics import OutputDistance, share
from onnxsep.graph.counting import count_macs
from onnxsep.graph.parameters import count_nonzero_parameters, count_parameters
from onnxsep.graph.shapes import infer_shapes
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.scores import choices, paired, ranks

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
ONE = RuntimeOptions(threads=1)
SCALARS = [numpy_helper.from_array(np.array(1, np.float32), "s"), numpy_helper.from_array(np.array(0, np.uint8), "u")]


def linear(
    weight: np.ndarray,
    *,
    batch: int | str = "n",
    names: Sequence[str] = ("scores",),
    output_shape: Sequence[int] | None = None,
    source: str = "x",
) -> onnx.ModelProto:
    """A model whose outputs are all ``x @ weight``; the weight is [features, classes]."""
    features, classes = weight.shape
    nodes = [helper.make_node("MatMul", [source, "w"], ["product"])]
    constants = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    if output_shape is None:
        nodes += [helper.make_node("Identity", ["product"], [name]) for name in names]
    else:
        constants.append(numpy_helper.from_array(np.array(output_shape, np.int64), "shape"))
        nodes += [helper.make_node("Reshape", ["product", "shape"], [name]) for name in names]
    dims = None if output_shape is not None else [batch, classes]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, [batch, features])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in names],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scores_model(scores: Sequence[Sequence[float]]) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model that gives sample i the scores ``scores[i]``, and its samples: one-hot vectors."""
    values = np.array(scores, np.float32)
    return linear(values), np.eye(len(values), dtype=np.float32)


def quick(models: Any, **options: Any) -> EvaluationReport:
    """``evaluate`` without what takes time."""
    return evaluate(models, **{"runs": 0, "memory": False, "runtime": ONE, **options})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the digits model with their classes, as .npz."""
    sys.path.insert(0, str(DIGITS.parent))
    try:
        from data import load_split
    finally:
        sys.path.remove(str(DIGITS.parent))
    _, test = load_split()
    path = tmp_path_factory.mktemp("digits") / "test.npz"
    np.savez(path, x=test.images, y=test.labels)
    return path


@pytest.fixture(scope="module")
def spatial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spatial") / "spatial.onnx"
    onnxsep.rewrite(DIGITS, mode="spatial", verify="none").save(path)
    return path


def logits(model: Path, images: np.ndarray) -> np.ndarray:
    """What the runtime gives for all images at once, without onnxsep."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


# Accuracy


def test_digits_side_by_side(digits: Path, spatial: Path) -> None:
    """449 of 450, as models/README.md says; the paired figures from outcomes found without onnxsep."""
    report = evaluate([DIGITS, spatial], data=digits, runs=2, runtime=ONE)
    first, second = report.models
    arrays = np.load(digits)
    right = [logits(model, arrays["x"]).argmax(1) == arrays["y"] for model in (DIGITS, spatial)]
    assert first.top1 is not None
    assert second.top1 is not None
    assert (first.top1.share.count, first.top1.share.total, report.samples) == (449, 450, 450)
    assert second.top1.share.count == right[1].sum()
    difference = right[1].astype(float) - right[0]
    against = second.top1.against_first
    assert against is not None
    assert first.top1.against_first is None
    assert against.difference == pytest.approx(difference.mean())
    assert against.standard_error == pytest.approx(difference.std() / np.sqrt(450))
    assert against.won == (right[1] & ~right[0]).sum()
    assert against.lost == (right[0] & ~right[1]).sum()
    assert (report.classes, report.output) == (10, "logits")
    assert first.top5 is not None
    top5 = np.argsort(-logits(DIGITS, arrays["x"]), axis=1)[:, :5]
    assert first.top5.share.count == (top5 == arrays["y"][:, None]).any(1).sum()


def test_sizes_and_work_are_those_of_the_other_commands(digits: Path, spatial: Path) -> None:
    report = quick([DIGITS, spatial], data=digits)
    for path, row in zip((DIGITS, spatial), report.models, strict=True):
        totals = onnxsep.inspect(path).totals
        assert row.file_bytes == path.stat().st_size
        assert (row.parameters, row.macs, row.macs_unknown) == (totals.parameters, totals.macs, 0)
        stored = (numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
        assert row.nonzero_parameters == sum(int((array != 0).sum()) for array in stored)
    first, second = report.models
    assert first.ratios is None
    assert second.ratios is not None
    assert second.ratios.file_bytes == spatial.stat().st_size / DIGITS.stat().st_size
    assert second.ratios.parameters == pytest.approx(155_594 / 186_314)
    assert second.ratios.macs == pytest.approx(3_067_136 / 3_853_568)
    assert second.ratios.latency is second.ratios.peak_memory is None


def test_top_k_and_errors_by_hand() -> None:
    """Ten classes, five samples; the right class is at the places 0, 1, 4, 5 and 9."""
    places, labels = [0, 1, 4, 5, 9], [3, 0, 9, 1, 7]
    scores = np.zeros((5, 10), np.float32)
    for sample, (place, label) in enumerate(zip(places, labels, strict=True)):
        others = [name for name in range(10) if name != label]
        order = [*others[:place], label, *others[place:]]
        scores[sample, order] = np.arange(10, 0, -1)
    model, x = scores_model(scores.tolist())
    (row,) = quick(model, data={"x": x, "y": np.array(labels)}).models
    assert row.top1 is not None
    assert row.top5 is not None
    assert (row.top1.share.count, row.top5.share.count) == (1, 3)
    assert row.top1.share.standard_error == pytest.approx(np.sqrt(0.2 * 0.8 / 5))
    assert row.top5.share.standard_error == pytest.approx(np.sqrt(0.6 * 0.4 / 5))


def test_top_5_needs_more_than_5_classes() -> None:
    model, x = scores_model(np.eye(5).tolist())
    (row,) = quick(model, data={"x": x, "y": np.arange(5)}).models
    assert row.top1 is not None
    assert row.top1.share.count == 5
    assert row.top5 is None


def test_standard_errors_are_those_of_the_mean() -> None:
    """The definitions, as the standard deviation of the outcomes over the root of their number."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(300) < 0.8, rng.random(300) < 0.7
    assert share(ours).standard_error == pytest.approx(ours.std() / np.sqrt(300))
    difference = ours.astype(float) - theirs
    found = paired(ours, theirs)
    assert found.difference == pytest.approx(difference.mean())
    assert found.standard_error == pytest.approx(difference.std() / np.sqrt(300))
    assert found.won - found.lost == ours.sum() - theirs.sum()


def test_equal_scores_rank_as_argmax_does() -> None:
    scores = np.array([[1.0, 2, 2, 0]] * 4)
    assert ranks(scores, np.arange(4)).tolist() == [2, 0, 1, 3]
    assert choices(scores).tolist() == [1] * 4


def test_nan_scores_count_as_wrong_and_are_noted() -> None:
    model, x = scores_model([[1, 0], [float("inf"), 0], [0, 1]])
    # Sample 1 gives inf * 1 and the others inf * 0 = NaN in the first class.
    report = quick(model, data={"x": x, "y": np.array([0, 0, 1])})
    assert report.models[0].top1 is not None
    assert report.models[0].top1.share.count == 1
    assert any("2 samples have NaN" in note for note in report.notes)


def test_labels_of_a_csv_file_and_class_folders(tmp_path: Path) -> None:
    """Two classes of plain images, dark and bright, told apart by their mean; once by folder, once by a CSV file."""
    weight = np.array([[-1.0, 1.0]] * 4, np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([4.0, 0], np.float32), "b")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    for kind, grey in (("bright", 250), ("dark", 5)):
        for number in range(3):
            for folder in (tmp_path / "classes" / kind, tmp_path / "flat"):
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2), grey).save(folder / f"{kind}{number}.png")
    lines = [f"{kind}{number}.png,{kind}" for kind in ("bright", "dark") for number in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    # Sorted, bright is class 0 and dark class 1; the model says 1 for bright: all wrong, and right once swapped.
    assert _right(quick(path, data=tmp_path / "classes")) == 0
    assert _right(quick(path, data=tmp_path / "flat", labels=tmp_path / "labels.csv")) == 0
    swapped = [line.replace(",bright", ",1").replace(",dark", ",0") for line in lines]
    (tmp_path / "labels.csv").write_text("\n".join(swapped))
    assert _right(quick(path, data=tmp_path / "flat", labels=tmp_path / "labels.csv")) == 6
    assert quick(path, data=tmp_path / "flat", labels=[1, 1, 1, 0, 0, 0]).models[0].top1 is not None


def _right(report: Any) -> int:
    return int(report.models[0].top1.share.count)


def test_a_fixed_batch_and_a_part_of_the_data(digits: Path) -> None:
    """Images that a fixed batch leaves over count neither as right nor as samples."""
    arrays = np.load(digits)
    model = onnx.load(DIGITS)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 50
    right = logits(DIGITS, arrays["x"]).argmax(1) == arrays["y"]
    report = quick(model, data=digits, runs=1)
    assert report.latency_batch == 50
    assert (_right(report), report.samples) == (449, 450)
    part = quick(model, data={"x": arrays["x"][:120], "y": arrays["y"][:120]})
    assert (_right(part), part.samples) == (right[:100].sum(), 100)
    assert any("the last 20 of 120 are left" in note for note in part.notes)
    drawn = quick(DIGITS, data=digits, samples=60, seed=3)
    assert drawn.samples == 60
    assert quick(DIGITS, data=digits, samples=60, seed=3).models == drawn.models


def test_scores_of_a_convolution_and_of_a_quantised_model() -> None:
    """[n, classes, 1, 1] will do, and so will uint8."""
    wide = linear(np.eye(3), output_shape=(-1, 3, 1, 1))
    assert _right(quick(wide, data={"x": np.eye(3, dtype=np.float32), "y": np.arange(3)})) == 3
    cast = linear(np.eye(3) * 200)
    cast.graph.node[-1].CopyFrom(helper.make_node("Cast", ["product"], ["scores"], to=TensorProto.UINT8))
    cast.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert _right(quick(cast, data={"x": np.eye(3, dtype=np.float32), "y": np.arange(3)})) == 3


def test_output_chosen_by_name() -> None:
    """Two outputs look like scores, so that one must be named; they disagree."""
    model = linear(np.eye(3), names=("main", "other"))
    model.graph.node[-1].CopyFrom(helper.make_node("Neg", ["product"], ["other"]))
    data = {"x": np.eye(3, dtype=np.float32), "y": np.arange(3)}
    with pytest.raises(EvaluationError, match=r"'main', 'other' \(output"):
        quick(model, data=data)
    assert _right(quick(model, data=data, output="main")) == 3
    assert _right(quick(model, data=data, output="other")) == 0
    with pytest.raises(OptionError, match="no output 'third'; they have: 'main', 'other'"):
        quick(model, data=data, output="third")


# A reference model instead of labels


def test_agreement_and_output_error(digits: Path, spatial: Path) -> None:
    images = np.load(digits)["x"]
    expected, ours = logits(DIGITS, images).astype(np.float64), logits(spatial, images).astype(np.float64)
    report = quick(spatial, data=images, reference=DIGITS)
    found = report.models[0].against_reference
    assert found is not None
    assert found.agreement is not None
    assert found.agreement.count == (expected.argmax(1) == ours.argmax(1)).sum()
    (output,) = found.outputs
    assert output.name == "logits"
    assert output.relative == pytest.approx(np.linalg.norm(expected - ours) / np.linalg.norm(expected), rel=1e-4)
    assert report.models[0].top1 is None
    assert report.reference == DIGITS.name


def test_without_labels_the_first_of_several_is_the_reference(digits: Path, spatial: Path) -> None:
    images = np.load(digits)["x"][:50]
    report = quick([DIGITS, spatial], data=images)
    assert report.models[0].against_reference is None
    named = quick(spatial, data=images, reference=DIGITS)
    assert report.models[1].against_reference == named.models[0].against_reference
    assert "the data has no labels: the first model is the reference" in report.notes


def test_labels_and_reference_together(digits: Path, spatial: Path) -> None:
    (row,) = quick(spatial, data=digits, reference=DIGITS).models
    assert row.top1 is not None
    assert row.against_reference is not None


def test_nan_scores_agree_with_nothing() -> None:
    """One sample of two: inf * 0 is NaN in the other, in both models."""
    model, x = scores_model([[float("inf"), 0], [0, 1]])
    found = quick(model, data=x, reference=model).models[0].against_reference
    assert found is not None
    assert found.agreement is not None
    assert (found.agreement.count, found.agreement.total) == (1, 2)


def test_models_without_class_scores_are_compared_by_error_alone() -> None:
    """As super-resolution or a detector: [n, 2, 3] is no score."""
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    models = [linear(weight * factor, output_shape=(-1, 2, 3)) for factor in (1, 1.5)]
    report = quick(models[1], data=np.ones((7, 4), np.float32), reference=models[0])
    found = report.models[0].against_reference
    assert found is not None
    assert found.agreement is None
    assert found.outputs[0].relative == pytest.approx(0.5)
    assert any("agreement is not measured" in note for note in report.notes)


def test_distance_of_outputs_with_nan_and_other_shapes() -> None:
    distance = OutputDistance("y")
    distance.add(np.array([3.0, np.nan]), np.array([0.0, 1]))
    distance.add(np.array([4.0]), np.array([4.0]))
    assert distance.result().relative == pytest.approx(3 / 5)
    distance.add(np.array([1.0]), np.array([np.inf]))
    assert distance.result().relative == np.inf
    assert len(distance.notes) == 2
    distance.add(np.zeros(3), np.zeros(4))
    assert distance.result().relative is None
    zeros = OutputDistance("y")
    zeros.add(np.zeros(2), np.zeros(2))
    assert zeros.result().relative == 0


# The user's own metric


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; modules that are imported from it are forgotten again."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_own_metric_from_the_current_folder(here: Path, digits: Path, spatial: Path) -> None:
    (here / "own_metric_a.py").write_text(
        "def correct(outputs, labels):\n"
        "    from own_helper_a import count\n"
        "    return count(outputs['logits'], labels)\n"
    )
    (here / "own_helper_a.py").write_text("def count(a, labels):\n    return (a.argmax(1) == labels).sum()\n")
    report = quick([DIGITS, spatial], data=digits, metric="own_metric_a:correct")
    first, second = report.models
    assert first.metric is not None
    assert second.metric is not None
    assert (first.metric.value, first.metric.difference) == (449, None)
    assert second.metric.difference == second.metric.value - 449
    assert first.top1 is None
    assert report.metric == "own_metric_a:correct"


def test_metric_without_labels_gets_all_outputs_in_order() -> None:
    """Outputs with a row for each sample are joined; others come as a list with one for each run."""
    seen: dict[str, Any] = {}

    def metric(outputs: Any, labels: Any) -> Any:
        seen.update(outputs, labels=labels)
        return np.float32(0.25)

    model = linear(np.eye(2), names=("rows", "flat"))
    model.graph.node[-1].CopyFrom(helper.make_node("Reshape", ["product", "shape"], ["flat"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "shape"))
    del model.graph.output[1].type.tensor_type.shape.dim[1]
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "m"
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    report = quick(model, data=x, metric=metric, batch=2)
    assert report.models[0].metric is not None
    assert report.models[0].metric.value == 0.25
    np.testing.assert_array_equal(seen["rows"], x)
    assert [part.tolist() for part in seen["flat"]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert seen["labels"] is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("own_metric_b", OptionError, "write module:function"),
        (":f", OptionError, "write module:function"),
        ("no_such_module_b:f", OptionError, "there is no module 'no_such_module_b', neither in the current folder"),
        ("own_metric_b.deeper:f", OptionError, "there is no module 'own_metric_b.deeper'|not a package"),
        ("own_metric_b:missing", OptionError, "'missing' is no function in own_metric_b"),
        ("own_metric_b:number", OptionError, "'number' is a int and no function"),
        ("imports_nothing_b:f", OptionError, "imports_nothing_b cannot be imported: No module named 'nowhere_b'"),
        ("broken_b:f", OptionError, "broken_b cannot be imported: SyntaxError"),
        ("own_metric_b:raises", EvaluationError, "failed on model 1: KeyError: 'probabilities'"),
        ("own_metric_b:text", EvaluationError, "gave a str for model 1; it must return one finite number"),
        ("own_metric_b:nan", EvaluationError, "gave nan for model 1"),
        ("own_metric_b:nothing", EvaluationError, "gave a NoneType for model 1"),
        ("own_metric_b:array", EvaluationError, "gave a ndarray for model 1"),
    ],
)
def test_metrics_that_cannot_be_used(here: Path, text: str, error: type[OnnxsepError], message: str) -> None:
    (here / "own_metric_b.py").write_text(
        "import numpy as np\nnumber = 3\n"
        "def raises(outputs, labels): return outputs['probabilities']\n"
        "def text(outputs, labels): return 'good'\n"
        "def nan(outputs, labels): return float('nan')\n"
        "def nothing(outputs, labels): pass\n"
        "def array(outputs, labels): return np.zeros(2)\n"
    )
    (here / "imports_nothing_b.py").write_text("import nowhere_b\n")
    (here / "broken_b.py").write_text("def f(:\n")
    with pytest.raises(error, match=message):
        quick(linear(np.eye(2)), data=np.eye(2, dtype=np.float32), metric=text)


# Data and models that do not go together


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ({"y": np.array([0, 1, 3])}, {}, DataError, "the label of sample 2 is 3, but the model has 3 classes"),
        ({"y": np.array([1, 2, 3])}, {}, DataError, "counted from 1"),
        ({"y": np.array([0, 1])}, {}, DataError, "there are 2 labels for 3 samples"),
        ({}, {"labels": [0, 1, 2, 0]}, DataError, "there are 4 labels for 3 samples"),
        ({}, {}, DataError, r"has no labels.*\(labels\).*\(reference\).*\(metric\)"),
        ({"y": np.arange(3)}, {"runs": -1}, OptionError, "0 or more, not -1"),
        ({"y": np.arange(3)}, {"batch": 0}, OptionError, "1 or more, not 0"),
        ({"y": np.arange(3)}, {"batch": 4}, OptionError, "a batch of 4 was asked for, and only 3 samples"),
        ({"y": np.arange(3)}, {"samples": 0}, OptionError, "1 or more, not 0"),
        ({"y": np.arange(3)}, {"output": "x"}, OptionError, "no output 'x'"),
    ],
)
def test_data_that_does_not_fit(
    data: dict[str, Any], options: dict[str, Any], error: type[OnnxsepError], message: str
) -> None:
    with pytest.raises(error, match=message):
        quick(linear(np.eye(3)), data={"x": np.eye(3, dtype=np.float32), **data}, **options)


def test_a_label_out_of_range_is_found_in_the_samples_that_are_used() -> None:
    """Sample 9 is left over by a batch of 3; its label does no harm."""
    model = linear(np.eye(3), batch=3)
    x = np.tile(np.eye(3, dtype=np.float32), (4, 1))[:10]
    labels = np.array([0, 1, 2] * 3 + [7])
    assert _right(quick(model, data={"x": x, "y": labels})) == 9
    labels[4] = 7
    with pytest.raises(DataError, match="among the 9 samples that are used, the label of sample 4 is 7"):
        quick(model, data={"x": x, "y": labels})


def test_no_class_scores_for_labels() -> None:
    model = linear(np.ones((4, 6)), output_shape=(-1, 2, 3))
    with pytest.raises(
        EvaluationError, match=r"no output holds class scores: for 2 samples 'scores' is float32 \[2, 2, 3"
    ):
        quick(model, data={"x": np.ones((2, 4), np.float32), "y": np.zeros(2, np.int64)})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (linear(np.eye(3), source="z"), r"inputs of the first are 'x' \(float32 \[n, 3\]\), those of the other 'z'"),
        (linear(np.ones((4, 3))), r"the inputs of the first are .* those of the other 'x' \(float32 \[n, 4\]\)"),
        (linear(np.eye(3), names=("logits",)), "the outputs of the first are 'scores'"),
        (linear(np.eye(3)[:, :2]), r"has shape \[3, 2\] for 3 samples, and the first model's has scores for 3 classes"),
    ],
    ids=["name", "size", "output", "classes"],
)
def test_models_that_do_not_go_together(other: onnx.ModelProto, message: str) -> None:
    data = {"x": np.eye(3, dtype=np.float32), "y": np.arange(3)}
    with pytest.raises(EvaluationError, match=message):
        quick([linear(np.eye(3)), other], data=data)
    if "classes" not in message:
        with pytest.raises(EvaluationError, match="side by side"):
            quick(linear(np.eye(3)), data=data, reference=other)
    else:
        with pytest.raises(EvaluationError, match="reference model's output 'scores' has shape"):
            quick(linear(np.eye(3)), data=data, reference=other)


def test_a_free_and_a_fixed_batch_go_together() -> None:
    """All are fed as the stricter one wants it, whichever comes first."""
    data = {"x": np.eye(4, dtype=np.float32), "y": np.arange(4)}
    free, fixed = linear(np.eye(4)), linear(np.eye(4), batch=2)
    for models in ([free, fixed], [fixed, free]):
        assert [row.top1.share.count for row in quick(models, data=data, runs=1).models if row.top1] == [4, 4]


def test_a_model_that_the_runtime_cannot_run() -> None:
    model = linear(np.eye(3))
    model.graph.node[0].domain = "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(EvaluationError, match="model 2: the runtime cannot load the model"):
        quick([linear(np.eye(3)), model], data={"x": np.eye(3, dtype=np.float32), "y": np.arange(3)})
    fails = linear(np.eye(3), output_shape=(7, 7))
    with pytest.raises(EvaluationError, match="model 1: the runtime cannot run the model: Reshape node"):
        quick(fails, data={"x": np.eye(3, dtype=np.float32), "y": np.arange(3)})


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        quick(tmp_path / "none.onnx", data=np.eye(3, dtype=np.float32))
    with pytest.raises(OptionError, match="no model"):
        quick([], data=np.eye(3, dtype=np.float32))


# Counting what is not zero


def quantised(op: str, weight: np.ndarray, zero: np.ndarray, axis: int | None = None) -> onnx.ModelProto:
    """A model with one quantised weight, which only has to be well formed."""
    inputs = {
        "DequantizeLinear": ["w", "s", "z"],
        "QLinearConv": ["x", "s", "u", "w", "s", "z", "s", "u"],
        "MatMulInteger": ["x", "w", "u", "z"],
    }[op]
    settings: dict[str, Any] = {} if axis is None else {"axis": axis}
    node = helper.make_node(op, inputs, ["y"], **settings)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(zero, "z"), *SCALARS],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_pruned_weights_are_not_counted(tmp_path: Path) -> None:
    """Also where the weights lie in another file, in a Constant node, or are float16 and bfloat16."""
    weight = np.arange(200, dtype=np.float32).reshape(20, 10)  # one zero
    weight[3:7] = 0
    weight[0, 1] = -0.0
    expected = 200 - 1 - 40 - 1
    model = linear(weight)
    assert count_nonzero_parameters(Model(model)) == expected
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert count_nonzero_parameters(load(tmp_path / "m.onnx")) == expected
    constant = linear(weight)
    tensor = constant.graph.initializer.pop()
    constant.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    assert count_nonzero_parameters(Model(constant)) == expected
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        cast = linear(weight)
        tensor = helper.make_tensor("w", kind, weight.shape, weight.ravel().tolist())
        cast.graph.initializer[0].CopyFrom(tensor)
        assert count_nonzero_parameters(Model(cast)) == expected
        assert count_parameters(cast) == 200


@pytest.mark.parametrize(
    ("op", "axis", "along"), [("DequantizeLinear", 0, 0), ("DequantizeLinear", None, 1), ("MatMulInteger", None, 1)]
)
def test_quantised_weights_are_zero_at_their_zero_point(op: str, axis: int | None, along: int) -> None:
    """Real values 0 in three places of a [3, 4] weight; the zero points themselves are weights of the file too."""
    real = np.ones((3, 4), np.int64)
    real[0, 0] = real[1, 3] = real[2, 1] = 0
    points = np.array([128, 130, 0, 7], np.uint8)[: real.shape[along]]
    shaped = points[:, None] if along == 0 else points[None, :]
    model = quantised(op, (real + shaped).astype(np.uint8), points, axis)
    assert count_nonzero_parameters(Model(model)) == 9 + np.count_nonzero(points)
    one = quantised(op, (real + 128).astype(np.uint8), np.array(128, np.uint8), axis)
    assert count_nonzero_parameters(Model(one)) == 9


def test_zero_points_of_a_quantised_conv() -> None:
    real = np.ones((2, 3, 1, 1), np.int64)
    real[1, 2] = 0
    weight = (real + np.array([5, 9]).reshape(2, 1, 1, 1)).astype(np.uint8)
    assert count_nonzero_parameters(Model(quantised("QLinearConv", weight, np.array([5, 9], np.uint8)))) == 5 + 2


def test_a_zero_point_on_a_bias_is_one_number() -> None:
    """DequantizeLinear's axis is 1 by default, and a vector has no such axis."""
    model = quantised("DequantizeLinear", np.array([4, 5, 4], np.uint8), np.array([4], np.uint8))
    assert count_nonzero_parameters(Model(model)) == 1 + 1


@pytest.mark.parametrize(
    ("op", "domain", "inputs", "weight", "x", "macs"),
    [
        ("QLinearConv", "", "x s u w s u s u", (4, 3, 3, 3), (1, 3, 6, 6), 4 * 4 * 4 * 3 * 9),
        ("ConvInteger", "", "x w", (4, 3, 3, 3), (1, 3, 6, 6), 4 * 4 * 4 * 3 * 9),
        ("QLinearMatMul", "", "x s u w s u s u", (5, 7), (2, 5), 2 * 5 * 7),
        ("MatMulInteger", "", "x w", (5, 7), (2, 5), 2 * 5 * 7),
        ("QGemm", "com.microsoft", "x s u w s u", (5, 7), (2, 5), 2 * 5 * 7),
    ],
)
def test_quantised_operators_multiply_too(
    op: str, domain: str, inputs: str, weight: tuple[int, ...], x: tuple[int, ...], macs: int
) -> None:
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(weight, np.uint8), "w"), *SCALARS],
    )
    assert count_macs(infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))).total == macs


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """Feeds for the runtime's quantiser."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._feeds = iter([{"image": array} for array in arrays])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_quantised_model_beside_the_original(tmp_path: Path, digits: Path, form: QuantFormat) -> None:
    """What ONNX Runtime's own quantiser makes: the same MACs, a quarter of the file, and nearly the same answers."""
    images = np.load(digits)["x"]
    path = tmp_path / "quantised.onnx"
    quantize_static(DIGITS, path, Batches(np.split(images[:200], 4)), quant_format=form, per_channel=True)
    first, second = quick([DIGITS, path], data=digits).models
    assert (second.macs, second.macs_unknown) == (first.macs, 0) == (3_853_568, 0)
    assert second.ratios is not None
    assert second.ratios.file_bytes is not None
    assert second.ratios.file_bytes < 0.3
    arrays = np.load(digits)
    right = logits(path, arrays["x"]).argmax(1) == arrays["y"]
    assert second.top1 is not None
    assert abs(second.top1.share.count - right.sum()) <= 2  # the runtime may round otherwise in another batch
    # Weights that became 0 are counted as 0, and those alone: the symmetric zero points are 0 too.
    held = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    small = [array for array in held if array.ndim and array.dtype in (np.int8, np.uint8, np.float32)]
    assert second.nonzero_parameters == sum(np.count_nonzero(array) for array in small)


def test_shapes_are_known_behind_quantised_operators_of_the_runtime() -> None:
    """Convs behind a sum and behind a concatenation of 2 and 3 channels: 2 * 2 and 5 products per pixel."""
    two, five = (2, 2, 1, 1), (1, 5, 1, 1)
    one = ("s", "u")  # scale and zero point of everything
    nodes = [
        helper.make_node("QLinearAdd", ["x", *one, "x", *one, *one], ["sum"], domain="com.microsoft"),
        helper.make_node("QLinearConv", ["sum", *one, "w2", *one, *one], ["c"]),
        helper.make_node("QLinearConcat", [*one, "c", *one, "z", *one], ["cat"], domain="com.microsoft", axis=1),
        helper.make_node("QLinearConv", ["cat", *one, "w5", *one, *one], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 2, "h", "w"]),
            helper.make_tensor_value_info("z", TensorProto.UINT8, ["n", 3, "h", "w"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.ones(shape, np.uint8), f"w{shape[1]}") for shape in (two, five)] + SCALARS,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    before = model.SerializeToString()
    x = np.ones((1, 2, 4, 6), np.uint8)
    found = quick(model, data={"x": x, "z": x[:, [0, 0, 1]]}, metric=lambda outputs, labels: 1.0).models[0]
    assert (found.macs, found.macs_unknown) == (4 * 6 * (2 * 2 + 5), 0)
    assert model.SerializeToString() == before


# Latency and memory


def test_models_take_turns_and_each_run_is_counted() -> None:
    calls: list[str] = []

    def call(name: str) -> Callable[[Any], None]:
        return lambda feed: calls.append(f"{name}{feed['x']}")

    feeds = [{"x": 0}, {"x": 1}]
    done: list[tuple[str, int, int]] = []
    found = measure_latency([call("a"), call("b")], feeds, 12, lambda *state: done.append(state))
    assert [latency.runs for latency in found] == [12, 12]
    for latency in found:
        assert 0 <= latency.lower_quartile_ms <= latency.median_ms <= latency.upper_quartile_ms
    assert calls[:4] == ["a0", "a1", "b0", "b1"]  # warm, on every feed
    order = [name[0] for name in calls[4:]]
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["a", "b", "a", "b"]  # three rounds, ab ba ab: neighbours fall together
    assert done == [("latency", 5, 12), ("latency", 10, 12), ("latency", 12, 12)]


def test_peak_memory_sees_the_weights_and_nothing_of_this_process(tmp_path: Path) -> None:
    """A weight of 64 MB is in the peak, wherever it is kept; the memory of the process that asks is not."""
    ballast = np.ones(300_000_000, np.uint8)  # a child would inherit this in ru_maxrss
    weight = np.random.default_rng(0).standard_normal((4000, 4000)).astype(np.float32)
    onnx.save(linear(weight), tmp_path / "inside.onnx")
    onnx.save(
        linear(weight), tmp_path / "outside.onnx", save_as_external_data=True, location="o.data", size_threshold=0
    )
    feed = {"x": np.ones((1, 4000), np.float32)}
    small = measure_memory(load(DIGITS), {"image": np.zeros((1, 1, 8, 8), np.float32)}, ONE)
    if small.reason:
        pytest.skip(small.reason)
    assert small.peak_bytes is not None
    assert small.before_bytes is not None
    assert small.before_bytes <= small.peak_bytes < ballast.nbytes
    for source in (tmp_path / "inside.onnx", tmp_path / "outside.onnx", linear(weight)):
        found = measure_memory(load(source), feed, ONE)
        assert found.reason == ""
        assert found.peak_bytes is not None
        assert found.before_bytes is not None
        assert found.peak_bytes - found.before_bytes > weight.nbytes
        assert found.peak_bytes < ballast.nbytes + weight.nbytes


def test_memory_that_cannot_be_measured_says_why() -> None:
    found = measure_memory(Model(linear(np.eye(3))), {"x": np.ones((1, 2), np.float32)}, ONE)
    assert found.peak_bytes is None
    assert "the model does not run" in found.reason
    assert "dimension" in found.reason


def test_a_process_that_is_killed_is_reported() -> None:
    """As where the memory does not suffice; the rest of the evaluation still counts."""
    killed = subprocess.run(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], capture_output=True, check=False
    )
    assert memory_of(killed).reason.endswith("was ended by signal 9")
    failed = subprocess.run([sys.executable, "-c", "import nowhere_c"], capture_output=True, check=False)
    assert "No module named 'nowhere_c'" in memory_of(failed).reason


def test_progress_reaches_the_end_of_each_part() -> None:
    states: list[tuple[str, int, int]] = []
    data = {"x": np.eye(20, dtype=np.float32), "y": np.arange(20)}
    evaluate(linear(np.eye(20)), data=data, runs=3, runtime=ONE, progress=lambda *state: states.append(state))
    assert {name: (done, total) for name, done, total in states} == {
        "running the models": (2, 2),
        "latency": (3, 3),
        "memory": (1, 1),
    }


# The command line


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return command_line.run("evaluate", *arguments, cwd=cwd)


def test_command_prints_the_table(digits: Path, spatial: Path) -> None:
    done = run(DIGITS, spatial, "--data", digits, "--threads", "1", "--runs", "3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "digits_cnn.onnx spatial.onnx" in lines
    assert any(line.startswith("top-1 accuracy 99.78% +- 0.22% 99.") for line in lines)
    assert any(line.startswith("right 449 of 450 44") for line in lines)
    against = next(line for line in lines if line.startswith("against the first"))
    top1 = quick([DIGITS, spatial], data=digits).models[1].top1
    assert top1 is not None
    points = 100 * (top1.share.count - 449) / 450
    assert float(against.split()[-3]) == pytest.approx(points, abs=0.005)
    assert "parameters 186,314 155,594 (0.835)" in lines
    assert "MACs 3,853,568 3,067,136 (0.796)" in lines
    assert "latency: median of 3 warm runs, batch 1, 1 thread, CPUExecutionProvider, the models in turn" in lines
    for label in ("latency, ms", "peak memory, MB"):
        assert any(line.startswith(label) for line in lines)


def test_command_prints_json(digits: Path, spatial: Path) -> None:
    done = run(spatial, "--data", digits, "--reference", DIGITS, "--runs", "2", "--no-memory", "--json", "--batch", "4")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["samples"], report["latency_batch"], report["reference"]) == (450, 4, DIGITS.name)
    (row,) = report["models"]
    assert row["path"] == str(spatial)
    assert row["top1"]["share"]["total"] == 450
    assert row["latency"]["runs"] == 2
    assert row["memory"] is None


def test_command_with_a_metric_of_the_current_folder(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "mine.py").write_text("def half(outputs, labels):\n    return len(labels) / 2\n")
    options = ("--data", digits, "--runs", "0", "--no-memory", "--metric")
    done = run(DIGITS, *options, "mine:half", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("metric mine:half +225", done.stdout)
    assert "latency" not in done.stdout
    failed = run(DIGITS, *options, "mine:third", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("onnxsep: error: the metric 'mine:third': 'third' is no function in mine")
    assert "Traceback" not in failed.stderr


def test_a_module_of_the_current_folder_does_not_get_into_the_measured_process(tmp_path: Path, digits: Path) -> None:
    """A file that has the name of a library must not be run because it lies there."""
    for name in ("numpy", "pickle", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current folder')\n")
    done = run(DIGITS, "--data", digits, "--runs", "0", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["models"]
    assert "current folder" not in row["memory"]["reason"]
    assert row["memory"]["peak_bytes"] or "on this system" in row["memory"]["reason"]


def test_exit_statuses(tmp_path: Path, digits: Path) -> None:
    assert run(DIGITS).returncode == 2  # --data is missing
    assert run("--data", digits).returncode == 2
    assert run(DIGITS, "--data", digits, "--runs", "-1").returncode == 2
    for arguments in ((DIGITS, "--data", tmp_path / "none"), (tmp_path / "none.onnx", "--data", digits)):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("onnxsep: error: ")
        assert done.stderr.count("\n") == 1


def test_names_from_files_are_printed_as_text(tmp_path: Path, digits: Path) -> None:
    """Markup and control characters in a file's name reach the terminal as they are, escaped."""
    path = tmp_path / "[red]\x1b[31mm.onnx"
    path.write_bytes(DIGITS.read_bytes())
    done = run(path, DIGITS, "--data", digits, "--runs", "0", "--no-memory")
    assert done.returncode == 0, done.stderr
    assert "[red]\\x1b[31mm.onnx" in done.stdout
    assert "\x1b" not in done.stdout


def test_two_files_of_one_name_are_told_apart(tmp_path: Path, digits: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.onnx").write_bytes(DIGITS.read_bytes())
    report = quick([tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx"], data=digits, samples=20)
    assert [row.name for row in report.models] == [str(tmp_path / "a" / "m.onnx"), str(tmp_path / "b" / "m.onnx")]
