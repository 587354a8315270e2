"""compress --target: ways are tried until one reaches the goals, and the recipe of that one is written."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibration_models import images
from command_line import run
from onnx import TensorProto, helper
from plan_models import conv, tensor

import onnxsep
from onnxsep.compression.goals import Goals
from onnxsep.compression.ways import ways
from onnxsep.errors import DataError, OptionError
from onnxsep.planner.targets import budgets_of, parse_targets
from onnxsep.reporting.records import MissedLimit
from onnxsep.running.runtime import Runner, RuntimeOptions


def network() -> onnx.ModelProto:
    """A classifier: two 3 x 3 Convs, global pooling, Gemm."""
    nodes = [
        conv("x", "w1", "a", "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "w2", "c", "second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "w4"], ["y"], "dense"),
    ]
    shapes = {"w1": (16, 3, 3, 3), "w2": (40, 16, 3, 3), "w4": (40, 4)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [tensor(name, *shape) for name, shape in shapes.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(autouse=True)
def _few_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans choose among two forms: it is quicker."""
    monkeypatch.setattr("onnxsep.planner.forms.USUAL", ("spatial", "channel"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and data with the classes that it gives."""
    path = tmp_path_factory.mktemp("goals")
    onnx.save(network(), path / "in.onnx")
    x = images(120, (3, 8, 8))
    (scores,) = Runner(onnxsep.load(path / "in.onnx"), RuntimeOptions())({"x": x}).values()
    classes = scores.argmax(axis=1)
    assert len(set(classes.tolist())) > 1
    np.savez(path / "train.npz", x=x[:60], y=classes[:60])
    np.savez(path / "test.npz", x=x[60:], y=classes[60:])
    np.savez(path / "bare.npz", x=x[:60])
    return path


def compress(folder: Path, *arguments: str, out: str = "out.onnx") -> subprocess.CompletedProcess[str]:
    given = ("--data", "train.npz", "--test", "test.npz", "--threads", "1", "--runs", "0")
    return run("compress", "in.onnx", out, *arguments, *given, cwd=folder)


def test_the_quickest_way_that_reaches_the_goals_is_taken(folder: Path) -> None:
    done = compress(folder, "--target", "size=0.6", "--max-drop", "50", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    whole, found = (folder / "in.onnx").stat().st_size, (folder / "out.onnx").stat().st_size
    assert found <= 0.6 * whole
    report = json.loads((folder / "report.json").read_text())
    assert [(way["name"], way["reached"]) for way in report["ways"]] == [("int8", True)]
    assert "int8 (about" in done.stderr  # what will be tried is said
    assert not list(folder.glob("out.onnx.steps*"))
    again = compress(folder, "--recipe", "out.recipe.toml", out="again.onnx")
    assert again.returncode == 0, again.stderr
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxsep.compression.searching.importlib.util.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_torch")
def test_a_plan_where_int8_alone_is_too_large(folder: Path) -> None:
    done = compress(folder, "--target", "size=0.22", "--max-drop", "99", "--report", "r.json", out="planned.onnx")
    assert done.returncode == 0, done.stderr
    assert (folder / "planned.onnx").stat().st_size <= 0.22 * (folder / "in.onnx").stat().st_size
    first, short, third = json.loads((folder / "r.json").read_text())["ways"]
    assert not first["reached"]
    assert not short["reached"]
    (missed,) = first["missed"]
    (closer,) = short["missed"]
    assert missed["limit"] == closer["limit"] == "size=0.22"
    assert missed["measured"] > closer["measured"] > 0.22
    assert (third["name"], third["reached"]) == ("plan, int8", True)
    again = compress(folder, "--recipe", "planned.recipe.toml", out="again.onnx")
    assert again.returncode == 0, again.stderr
    assert "plan: target" not in again.stdout  # it is there already
    assert (folder / "again.onnx").read_bytes() == (folder / "planned.onnx").read_bytes()


@pytest.mark.usefixtures("without_torch")
def test_goals_that_cannot_be_reached(folder: Path) -> None:
    done = compress(folder, "--target", "size=0.01", "--max-drop", "1", "--report", "f.json", out="never.onnx")
    assert done.returncode == 3
    assert not (folder / "never.onnx").exists()
    assert not (folder / "never.recipe.toml").exists()
    assert "no way reaches size=0.01 and --max-drop 1" in done.stderr
    assert "The nearest is 'int8'" in done.stderr
    assert "not tried without torch" in done.stderr.lower()
    (nearest,) = folder.glob("never.onnx.steps-1-*/01-quantize.onnx")
    assert str(nearest.relative_to(folder)) in done.stderr
    assert onnxsep.load(nearest)
    tried = json.loads((folder / "f.json").read_text())["ways"]
    assert [way["name"] for way in tried] == ["int8", "plan, int8"]
    assert "least" in tried[1]["why"]
    assert "the least that can be had is" in done.stderr
    # The same again goes on with what is finished.
    again = compress(folder, "--target", "size=0.01", "--max-drop", "1", out="never.onnx")
    assert "step 1 quantize: was done before" in again.stderr
    # Other goals are another search: it uses what is the same, and what is not does not disturb it.
    other = compress(folder, "--target", "size=0.6", "--max-drop", "50", out="never.onnx")
    assert other.returncode == 0, other.stderr
    assert "step 1 quantize: was done before" in other.stderr
    assert list(folder.glob("never.onnx.steps-4-*"))
    for name in ("never.onnx", "never.recipe.toml", "never.onnx.manifest.json"):
        (folder / name).unlink()
    for path in folder.glob("never.onnx.steps*"):
        shutil.rmtree(path)


@pytest.mark.usefixtures("without_torch")
def test_a_dry_run_says_what_would_be_tried(folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = compress(folder, "--target", "size=0.2", "--dry-run", out="dry.onnx")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "(about" in line]
    assert lines[0].startswith("int8 (about")
    assert lines[1].startswith("int8, short names (about")
    assert lines[2].startswith("plan, int8 (about")
    assert "target size=0.198" in lines[2]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --recipe NAME"),
        (("--target", "size=0.2", "--recipe", "int8"), "give --recipe NAME"),
        (("--recipe", "int8", "--max-drop", "1"), "--max-drop goes with --target"),
        (("--target", "size=2.5"), "a share is above 0"),
        (("--recipe", "int8", "--dry-run"), "--dry-run goes with --target"),
    ],
)
def test_what_contradicts_is_refused(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = compress(folder, *arguments, out="refused.onnx")
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert not list(folder.glob("refused*"))


def test_a_limit_on_accuracy_needs_labels(folder: Path) -> None:
    with pytest.raises(DataError, match="needs labels"):
        onnxsep.compress(
            folder / "in.onnx", None, target="size=0.5", max_drop=1, data=folder / "bare.npz", test=folder / "bare.npz"
        )
    with pytest.raises(DataError, match="needs data"):
        onnxsep.compress(folder / "in.onnx", None, target="size=0.5")
    with pytest.raises(OptionError, match="contradict"):
        onnxsep.compress(folder / "in.onnx", "int8", target="size=0.5", data=folder / "bare.npz")


def test_in_python(folder: Path, tmp_path: Path) -> None:
    result = onnxsep.compress(
        folder / "in.onnx", None, target=["size=0.6"], data=folder / "bare.npz", runs=0, metric=lambda *_: 1.0
    )
    result.save(tmp_path / "small.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small.onnx",
        "small.onnx.manifest.json",
        "small.recipe.toml",
    ]


def test_ways_are_longer_with_fewer_samples_and_keep_layers_with_labels_alone() -> None:
    goals = Goals(budgets_of(parse_targets(["size=0.1"])), 1.0)
    many, few = list(ways(goals, 50_000, labels=True)), list(ways(goals, 500, labels=False))
    assert [way.name for way in many] == [
        "int8",
        "int8, what hurts in float",
        "int8, short names",
        "plan, int8",
        *(f"{form}, {n} epochs of training, int8" for n in (2, 12, 36) for form in ("spatial", "channels", "plan")),
    ]
    assert [way.trainings for way in few] == [0, 0, 0, *(n for n in (1, 2, 3) for _ in range(3))]
    short, shorter = few[3].steps[1], many[4].steps[1]
    assert short.options["epochs"] > shorter.options["epochs"]
    assert short.options["batch"] < shorter.options["batch"]
    assert many[1].steps[0].options["max_drop"] == 1.0
    # Each way of training begins as the one of its form before it does, so that its steps need not be done again.
    for form in ("spatial", "channels", "plan"):
        own = [way for way in many if way.form == form]
        for before, behind in itertools.pairwise(own):
            assert behind.steps[: len(before.steps) - 1] == before.steps[:-1]


def test_forms_for_all_layers_are_for_what_can_be_counted() -> None:
    timed = list(ways(Goals(budgets_of(parse_targets(["latency=0.5"])), None), 500, labels=False))
    assert {way.form for way in timed} == {None, "plan"}


def test_names_are_kept_where_no_size_is_asked_for() -> None:
    goals = Goals(budgets_of(parse_targets(["params=0.1"])), None)
    found = list(ways(goals, 500, labels=True))
    assert not any("names" in step.options for way in found for step in way.steps)


def test_a_way_that_mends_one_thing_is_left_out_where_more_is_missing() -> None:
    def missed(*limits: str) -> list[MissedLimit]:
        return [MissedLimit(limit=one, allowed=0.1, measured=0.2) for one in limits]

    goals = Goals(budgets_of(parse_targets(["size=0.1"])), 1.0)
    by_name = {way.name: way for way in ways(goals, 500, labels=True)}
    careful, short, plan = (by_name[name] for name in ("int8, what hurts in float", "int8, short names", "plan, int8"))
    assert careful.helps(missed("max_drop"))
    assert short.helps(missed("size=0.1"))
    for way in (careful, short):
        assert not way.helps(missed("max_drop", "size=0.1"))
        assert not way.helps(missed())
        assert plan.helps(missed("max_drop", "size=0.1"))
