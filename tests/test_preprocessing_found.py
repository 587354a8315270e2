"""Which preprocessing is found by trial, which given one is noticed to be wrong, and when nothing is claimed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from PIL import Image
from preprocessing_models import DIGITS, digits_for, parse, saved, write_digits

import onnxsep
from onnxsep.data import Decided, ImageJudge, Preprocessing, open_data
from onnxsep.errors import DataError
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import RuntimeOptions

BYTES = Preprocessing(scale=1.0)
PLAIN = Preprocessing(scale=1 / 255)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("flat"), 60)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("classes"), 60, classes=True)


# ---------------------------------------------------------------- found by trial


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("scale", "name"), [(1 / 255, "0 to 1"), (1.0, "0 to 255")])
def test_the_range_is_found(flat: Path, classes: Path, labelled: bool, scale: float, name: str) -> None:
    data = open_data(classes if labelled else flat, digits_for(scale))
    found = data.preprocessing
    assert found is not None
    assert found.taken_from == "trial"
    assert found.sure
    assert not found.warnings
    assert found.criterion == ("accuracy" if labelled else "consistency")
    assert found.tried[0].name == name
    assert data.feed([0])["image"].max() == pytest.approx(255 * scale)
    assert found.notes[0].startswith(f"preprocessing: {name} (")
    again = open_data(classes if labelled else flat, digits_for(scale)).preprocessing
    assert again == found


def test_the_same_images_with_and_without_saying_so_are_the_same_data(flat: Path) -> None:
    found, said = open_data(flat, digits_for(1.0)), open_data(flat, digits_for(1.0), preprocessing=BYTES)
    assert found.fingerprint() == said.fingerprint()
    assert said.preprocessing is None  # as it was given, and does not look wrong
    assert len(said.notes) == len(found.notes) - 1
    decided = open_data(flat, digits_for(1.0), preprocessing=found.decided)
    assert decided.fingerprint() == found.fingerprint()
    assert decided.notes == said.notes


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("scale", "wrong"), [(1 / 255, BYTES), (1.0, PLAIN), (1.0, Preprocessing(mean=(0.5,), std=(0.5,)))]
)
def test_a_wrong_one_that_is_given_is_noticed(
    flat: Path, classes: Path, labelled: bool, scale: float, wrong: Preprocessing
) -> None:
    data = open_data(classes if labelled else flat, digits_for(scale), preprocessing=wrong)
    found = data.preprocessing
    assert found is not None
    assert found.taken_from == "given"
    (warning,) = found.warnings
    better = "0 to 1" if scale < 1 else "0 to 255"
    assert better in warning
    assert f"preprocessing={{'scale': {scale}}}" in warning
    assert data.notes.count(warning) == 1
    assert data.decided == Decided.on(wrong)  # what was given is used all the same


def test_only_a_size_that_is_given_leaves_the_values_to_be_found(flat: Path) -> None:
    found = open_data(flat, digits_for(1.0), preprocessing={"size": 8, "resize": "stretch"}).preprocessing
    assert found is not None
    assert found.preprocessing == {"scale": 1.0, "size": [8, 8], "resize": "stretch"}


# ---------------------------------------------------------------- nothing is claimed without a reason


def test_an_untrained_network_shows_nothing(flat: Path) -> None:
    rng = np.random.default_rng(0)
    model = parse(
        "g (float[n,1,8,8] x) => (float[n,10] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) f = Flatten(r) y = MatMul(f, v) }",
        w=rng.standard_normal((4, 1, 3, 3)) * 0.3,
        v=rng.standard_normal((256, 10)) * 0.1,
    )
    found = open_data(flat, model).preprocessing
    assert found is not None
    assert (found.taken_from, found.sure, found.preprocessing) == ("default", False, {})
    (warning,) = found.warnings
    assert "none looks right" in warning
    assert all(f"{one.name} (consistency" in warning for one in found.tried[:2])
    assert open_data(flat, model, preprocessing=PLAIN).preprocessing is None  # and so no other one is better


def test_few_images_are_said_to_be_few(tmp_path: Path) -> None:
    found = open_data(write_digits(tmp_path, 7), digits_for(1.0)).preprocessing
    assert found is not None
    assert found.taken_from == "default"
    assert "8 samples or more, and there are 7" in found.warnings[0]


def test_labels_of_other_classes_are_noticed(flat: Path, tmp_path: Path) -> None:
    """The model tells the images apart, and the labels, in another order, agree with no preprocessing."""
    order = {0: 5, 1: 6, 2: 7, 3: 8, 4: 9, 5: 0, 6: 1, 7: 2, 8: 3, 9: 4}
    data = open_data(flat, load(DIGITS))
    assert data.names is not None
    import digits

    truth = digits.split()[1].labels
    rows = [f"{name},{order[int(truth[int(name[:3])])]}" for name in data.names]
    (tmp_path / "labels.csv").write_text("name,class\n" + "\n".join(rows))
    found = open_data(flat, load(DIGITS), labels=tmp_path / "labels.csv").preprocessing
    assert found is not None
    assert found.criterion == "consistency"
    assert found.preprocessing == {}
    assert any("the labels look wrong" in warning for warning in found.warnings)


def test_a_model_with_two_inputs_or_integers_is_left_alone(flat: Path) -> None:
    two = parse("g (float[n,1,8,8] a, float[n,1,8,8] b) => (float[n,1,8,8] y) { y = Add(a, b) }")
    with pytest.raises(DataError, match="images can be given for one input only"):
        open_data(flat, two)
    x = np.zeros((9, 1, 8, 8), np.float32)
    assert open_data({"a": x, "b": x}, two).notes == ()
    integers = parse("g (int8[n,1,8,8] x) => (int8[n,1,8,8] y) { y = Identity(x) }")
    data = open_data(flat, integers)
    assert data.preprocessing is None
    assert len(data.notes) == 1
    assert data.feed([0])["x"].min() == -128


def test_a_model_that_cannot_be_run_is_told(flat: Path) -> None:
    model = parse("g (float[n,1,8,8] x) => (float[n,1,8,8] y) { y = Identity(x) }")
    model.proto.opset_import.add(domain="made.up", version=1)
    model.proto.graph.node[0].domain = "made.up"
    model.proto.graph.node[0].op_type = "Unknown"
    found = open_data(flat, model).preprocessing
    assert found is not None
    assert "the model cannot be run" in found.warnings[0]


# ---------------------------------------------------------------- other networks than classifiers


def test_what_batch_normalization_has_stored_shows_the_range(flat: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 1, 3, 3)).astype(np.float32)
    graph = (
        "g (float[n,1,8,8] x) => (float[n,6,1,1] y, float[n,6,1,1] z) { c = Conv(x, w) "
        "b = BatchNormalization(c, s, o, m, v) r = Relu(b) y = GlobalAveragePool(r) z = GlobalMaxPool(r) }"
    )
    plain = parse("g (float[n,1,8,8] x) => (float[n,6,6,6] y) { y = Conv(x, w) }", w=weight)
    pixels = np.concatenate([open_data(flat, plain, preprocessing=BYTES).feed(range(16))["x"]])
    from onnxsep.running.runtime import Runner

    made = Runner(plain)({"x": pixels})["y"]
    model = parse(graph, w=weight, s=np.ones(6), o=np.zeros(6), m=made.mean(axis=(0, 2, 3)), v=made.var(axis=(0, 2, 3)))
    found = open_data(flat, model).preprocessing
    assert found is not None
    assert (found.criterion, found.taken_from, found.sure) == ("normalization", "trial", True)
    assert found.preprocessing == {"scale": 1.0}
    judged = open_data(flat, model, preprocessing=PLAIN).preprocessing
    assert judged is not None
    assert "0 to 255 (distance" in judged.warnings[0]


def test_a_network_that_makes_images_gives_what_is_like_the_input(flat: Path) -> None:
    """Outputs from 0 to 1: with pixels from 0 to 255 or from -1 to 1 they are unlike what went in."""
    model = parse(
        "g (float[n,1,8,8] x) => (float[n,1,16,16] y) { c = Clip(x, low, high) y = Resize(c, , s) }",
        low=0,
        high=1,
        s=[1, 1, 2, 2],
    )
    found = open_data(flat, model).preprocessing
    assert found is not None
    assert (found.criterion, found.preprocessing, found.sure) == ("likeness", {}, True)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_in_another_range_are_noticed(classes: Path, labelled: bool) -> None:
    right = open_data(classes, load(DIGITS), preprocessing=PLAIN)
    x = right.feed(range(60))["image"]
    labels = {"y": right.labels} if labelled else {}
    assert open_data({"x": x, **labels}, load(DIGITS)).notes == ()
    (note,) = open_data({"x": np.rint(x * 255), **labels}, load(DIGITS)).notes
    assert note.startswith("warning: the arrays look wrong for this model: they hold pixels as 0 to 255")
    assert "pixel / 255" in note
    assert open_data({"x": x * 255}, digits_for(1.0)).notes == ()


def test_arrays_that_are_no_pixels_are_left_alone() -> None:
    noise = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype(np.float32)
    assert open_data({"x": noise}, load(DIGITS)).notes == ()
    assert open_data({"x": noise * 1000}, load(DIGITS)).notes == ()


# ---------------------------------------------------------------- images of every kind


def test_images_of_several_kinds_are_tried_alike(flat: Path, tmp_path: Path) -> None:
    """Grey, with alpha, in colour, with a palette, in 16 bits: the same pixels, and the same choice."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, path in enumerate(sorted(flat.iterdir())):
        image = Image.open(path)
        wide = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        kinds = [image, image.convert("LA"), image.convert("RGBA"), image.convert("P"), wide]
        kinds[number % 5].save(folder / path.name)
    (folder / "broken.png").write_bytes(b"broken")
    plain, mixed = (open_data(one, digits_for(1.0)).preprocessing for one in (flat, folder))
    assert plain is not None
    assert mixed is not None
    assert mixed.preprocessing == plain.preprocessing == {"scale": 1.0}


# ---------------------------------------------------------------- the commands


def test_evaluate_is_right_by_default(classes: Path, tmp_path: Path) -> None:
    model = saved(digits_for(1.0), tmp_path / "m.onnx")
    common = ("evaluate", model, "--data", classes, "--runs", 0, "--no-memory", "--threads", 1)
    done = run(*common, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["models"][0]["top1"]["share"]["value"] >= 0.98
    assert report["preprocessing"]["taken_from"] == "trial"
    assert report["preprocessing"]["preprocessing"] == {"scale": 1.0}
    assert "To fix it: --scale 1, or a file 'm.preprocess.toml' beside the model" in report["notes"][1]
    assert run(*common, "--preprocess", "auto", "--json").stdout.count('"taken_from": "trial"') == 1
    refused = run(*common, "--preprocess", "auto", "--mean", "0.5")
    assert refused.returncode == 1
    assert "--preprocess auto finds the values: leave out --mean, or --preprocess auto" in refused.stderr
    wrong = run(*common, "--scale", "1/255")
    assert wrong.returncode == 0
    assert "the preprocessing looks wrong" in wrong.stdout
    assert "To change it: --scale 1" in wrong.stdout
    (tmp_path / "m.preprocess.toml").write_text("scale = 1\n")
    fixed = json.loads(run(*common, "--json").stdout)
    assert fixed["preprocessing"]["taken_from"] == "sidecar"
    assert fixed["models"] == report["models"]


def test_every_command_reads_images_alike(flat: Path, classes: Path) -> None:
    """The choice of a command is that of ``open_data``, and it is in the report."""
    model, one = digits_for(1.0), RuntimeOptions(threads=1)
    quantized = onnxsep.quantize(model, data=flat, samples=8, bias_correction=False, runtime=one)
    common: dict[str, Any] = {"data": flat, "samples": 8, "runtime": one}
    rewritten = onnxsep.rewrite(model, mode="spatial", rank="0.5", only="*2*", verify="none", **common)
    checked = onnxsep.check(model, model, structure=False, weights=False, **common)
    evaluated = onnxsep.evaluate([model], data=classes, samples=8, runs=0, memory=False, runtime=one)
    assert rewritten.report.calibration is not None
    for found in (quantized.report, rewritten.report.calibration, checked, evaluated):
        assert found.preprocessing is not None
        assert found.preprocessing.preprocessing == {"scale": 1.0}


def test_a_pipeline_decides_once(classes: Path, flat: Path) -> None:
    model, one = digits_for(1.0), RuntimeOptions(threads=1)
    steps = onnxsep.Pipeline([onnxsep.Quantize(samples=8, bias_correction=False)])
    result = steps(model, data=flat, test=classes, runs=0, runtime=one)
    found = result.report.preprocessing
    assert found is not None
    assert found.preprocessing == {"scale": 1.0}
    assert result.manifest.image_preprocessing() == BYTES
    assert result.manifest.data is not None
    assert result.manifest.data.sha256 == open_data(flat, model, preprocessing=BYTES).fingerprint()
    assert sum(note.startswith("preprocessing: ") for note in result.report.notes) == 1
    (step,) = result.report.steps
    own = getattr(step.report, "notes", ())
    assert any("pixel * 1" in note for note in own)
    assert not any("preprocessing" in note for note in (*own, *result.report.evaluation.notes))
    top = result.report.evaluation.models[0].top1
    assert top is not None
    assert top.share.value >= 0.98


def test_the_judge_is_the_reference(classes: Path, tmp_path: Path) -> None:
    """A ruined model is judged by the one that it was made of."""
    ruined = digits_for(1.0)
    last = ruined.proto.graph.initializer[-1]
    last.raw_data = bytes(len(last.raw_data))
    found = onnxsep.evaluate([ruined], reference=digits_for(1.0), data=classes, runs=0, memory=False)
    assert found.preprocessing is not None
    assert found.preprocessing.preprocessing == {"scale": 1.0}


def test_a_model_that_is_too_large_is_not_tried(flat: Path) -> None:
    weight = np.zeros((64, 1, 31, 31), np.float32)  # 35 billion MACs
    model = parse(
        "g (float[n,1,800,800] x) => (float[n,64,800,800] y) { y = Conv<pads=[15,15,15,15]>(x, w) }", w=weight
    )
    found = open_data(flat, model, judge=ImageJudge(model)).preprocessing
    assert found is not None
    assert "too large for a trial" in found.warnings[0]


def test_a_preprocessing_named_auto_is_none(flat: Path) -> None:
    assert Preprocessing.of("auto") is None
    model: Model = digits_for(1.0)
    found = open_data(flat, model, preprocessing="auto").preprocessing
    assert found is not None
    assert found.taken_from == "trial"
