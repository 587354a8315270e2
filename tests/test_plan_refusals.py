"""Plans that are refused: for another model, with a layer, a mode or a rank that is not there, with wrong values."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import X, images
from command_line import run
from onnx import helper, numpy_helper
from plan_models import HOSTILE, network, plan_in, rewrite

import onnxsep
from onnxsep import Pipeline, Rewrite
from onnxsep.errors import OptionError
from onnxsep.model.content import content_hashes
from onnxsep.options.tomlfile import read_toml
from onnxsep.planner.plan_file import quoted

HEAD = 'schema = 1\nonnxsep = "0.1.0"\n'
MODEL = network()
LINES = {
    '"twicee" = { mode = "spatial" }': "the model has no layer 'twicee', did you mean 'twice'?",
    '"inner" = { mode = "spatial" }': "the model has no layer 'inner' (there is one in If 'which', else_branch)",
    '"a" = {left=true}\n"b" = {left=true}\n"c" = {left=true}\n"d" = {left=true}': "no layer 'c' (and 1 more)",
    '"twice#2" = { mode = "spatial" }': "the model has no layer 'twice#2', did you mean 'twice'?",
    '"twice" = { mode = "spacial" }': "layer 'twice': unknown mode 'spacial', did you mean 'spatial'?",
    '"twice" = { mode = "spatial", rank = [100] }': "no rank [100] here; the nearest is [48] (of 1 to 48)",
    '"twice" = { mode = "spatial", rank = [4, 4] }': "no rank [4, 4] here; the nearest is [4]",
    '"twice" = { mode = "tucker", rank = [4] }': "mode tucker has no rank [4] here; the nearest is [4, ",
    '"twice" = { mode = "lean", rank = [4] }': "mode lean has no rank to choose; take out [4]",
    '"twice" = { mode = "spatial", rank = [0] }': "a rank is a list of whole numbers above 0, not [0]",
    '"twice" = { mode = "spatial", rank = [true] }': "a rank is a list of whole numbers above 0",
    '"twice" = { mode = "spatial", rank = "half" }': "layer 'twice': cannot read the rank 'half'",
    '"twice" = { mode = "spatial", rank = 1.5 }': "rank out of range: 1.5",
    '"twice" = { mode = "spatial", rank = true }': "cannot read the rank True",
    '"twice" = { mode = "spatial", rank = 2024-01-01 }': "it cannot be datetime.date(2024, 1, 1)",
    '"twice" = { mode = "spatial", rank = [4], round_ranks = 8 }': "round_ranks is for a rank that a rule chooses",
    '"twice" = { mode = "spatial", round_ranks = -8 }': "round_ranks must be 8 or 16 (0: no rounding), not -8",
    '"twice" = { mode = "spatial", init = "joynt" }': "layer 'twice': init 'joynt' is not one of svd",
    '"twice" = { mode = "spatial", init = "joint" }': "init='joint' fits the factors to data; add data",
    '"twice" = { mode = "spatial", init = 1 }': "init must be a text, not 1",
    '"twice" = { mode = 7 }': "mode must be a text, not 7",
    '"twice" = { mod = "spatial" }': "there is no key 'mod', did you mean 'mode'?",
    '"twice" = { rank = [4] }': "layer 'twice' has no mode",
    '"twice" = { mode = "spatial", left = "no" }': "is left alone, so it has no mode",
    '"twice" = { left = false }': "left says why, as a text; or true; not False",
    '"twice" = { left = "" }': "left says why, as a text",
    '"twice" = "spatial"': 'write { mode = "spatial", rank = [8] }',
    '"twice" = [1]': "layer 'twice': write",
    '"dense" = { mode = "spatial" }': "layer 'dense': mode spatial cannot take it: mode spatial takes Convs only",
    '"first" = { mode = "lean" }\n"up" = { mode = "spatial" }': "no layer 'up'",
    '"twice" = { mode = "spatial" }\n"twice" = { left = true }': "is not a TOML file",
    '"twice" = { mode = "spatial" }\n[inside."If \'which\', else"]\n"inner" = {left=true}': (
        "no layer 'inner' in If 'which', else (there is one in If 'which', else_branch)"
    ),
    '[inside]\n"inner" = 5': "inside: 'inner' must be a table of layers",
    '[inside.""]\n"twice" = {left=true}': "inside: '' must be a table of layers",
    '[model]\nlayers = "8"': "model: layers must be a whole number",
    "[model]\ngraph = 5": "model: graph must be a text, not 5",
    '[model]\ngraf = ""': "there is no key 'graf', did you mean 'graph'?",
    '[layer]\n"twice" = { left = true }': "there is no key 'layer', did you mean 'layers'?",
}


@pytest.mark.parametrize("lines", LINES)
def test_lines_that_cannot_be_carried_out(lines: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(HEAD + "[layers]\n" + lines + "\n", encoding="utf-8")
    with pytest.raises(onnxsep.OnnxsepError, match=re.escape(LINES[lines])) as refused:
        rewrite(MODEL, plan=file)
    assert "plan.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no plan: it has no line `schema = 1`"),
        (b"[[steps]]\ncommand = 'rewrite'\n", "is no plan"),
        (b"schema = 2\n", "is a plan of schema 2, and this version reads 1"),
        (b"schema = true\n", "is a plan of schema True"),
        (b'schema = "1"\n', "is a plan of schema '1'"),
        (b"schema = 1\nlayers = 5\n", "layers must be a table, [layers], not 5"),
        (b"schema = 1\ninside = []\n", "inside must be a table"),
        (b"schema = 1\nmodel = 'x'\n", "model must be a table"),
        (b"schema = 1\n[layers\n", "is not a TOML file"),
        (b"\xff\xfe", "is not a TOML file"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_plans(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OptionError, match=re.escape(words)):
        onnxsep.read_plan(file)
    with pytest.raises(OptionError, match=re.escape(words)):
        rewrite("missing.onnx", plan=file)  # before the model is opened


def test_a_convolution_that_no_mode_takes(tmp_path: Path) -> None:
    model = network(second="up")
    model.graph.node[4].op_type = "DeformConv"
    plan = plan_in(tmp_path, model, mode="spatial", rank=4)
    assert [layer.left for layer in plan.layers if layer.key == "up"] != [""]
    text = re.sub(r'"up" = .*', '"up" = { mode = "spatial" }', plan.text())
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=r"p\.toml, layer 'up': it cannot be replaced: "):
        rewrite(model, plan=tmp_path / "p.toml")


# ---------------------------------------------------------------- other models


def other_models() -> dict[str, tuple[onnx.ModelProto, str]]:
    """Models that differ from MODEL, and what of it a refusal says."""
    weights = network(seed=1)
    attribute, name, extra, missing, function, renamed = (network() for _ in range(6))
    attribute.graph.node[4].attribute.append(helper.make_attribute("strides", [2, 2]))
    name.graph.node[1].name = "relu"
    extra.graph.node.append(helper.make_node("Conv", ["shared", "w2"], ["z"], "more", pads=[1] * 4))
    del missing.graph.node[2:4]
    missing.graph.node[2].input[0] = "b"
    function.functions[0].node[1].attribute[0].ints[0] = 0
    renamed.graph.node[2].name = "three times"
    return {
        "weights": (weights, "'', of the same graph with other weights"),
        "attribute": (attribute, "of the same layers, but with other nodes, attributes or names between them"),
        "name of a Relu": (name, "of the same layers, but with other nodes"),
        "more": (extra, "of 8 layers, and this one has 9; the plan knows no 'more'"),
        "fewer": (missing, "of 8 layers, and this one has 7; the model has no layer 'twice'"),
        "function": (function, "of the same layers"),
        "renamed": (renamed, "the model has no layer 'twice'; the plan knows no 'three times'"),
    }


@pytest.mark.parametrize("kind", other_models())
def test_another_model_is_refused_with_what_differs(kind: str, tmp_path: Path) -> None:
    other, words = other_models()[kind]
    plan_in(tmp_path, MODEL, mode="spatial", rank=4)
    with pytest.raises(OptionError, match="was made for another model") as refused:
        rewrite(other, plan=tmp_path / "plan.toml")
    assert words.removeprefix("'', ") in str(refused.value)
    assert "dry_run=True plan_out" in str(refused.value)


def test_the_plan_of_another_model_is_carried_out_where_its_hashes_are_taken_out(tmp_path: Path) -> None:
    other, _ = other_models()["weights"]
    plan = plan_in(tmp_path, MODEL, mode="spatial", rank=4)
    (tmp_path / "p.toml").write_text(re.sub(r"weights = .*\n", "", plan.text()), encoding="utf-8")
    assert rewrite(other, plan=tmp_path / "p.toml").proto == rewrite(other, mode="spatial", rank=4).proto
    strided, _ = other_models()["attribute"]
    with pytest.raises(OptionError, match="take the lines graph and weights out"):
        rewrite(strided, plan=tmp_path / "p.toml")
    (tmp_path / "p.toml").write_text(re.sub(r"(weights|graph) = .*\n", "", plan.text()), encoding="utf-8")
    assert rewrite(strided, plan=tmp_path / "p.toml").report.totals.replaced == 7


def test_the_same_content_saved_otherwise_is_the_same_model(tmp_path: Path) -> None:
    """External data, another place of it, doc strings, metadata, a producer, intermediate shapes; a sorted graph."""
    hashes = content_hashes(onnxsep.load(MODEL))
    external, described = network(), onnx.shape_inference.infer_shapes(network())
    onnx.save(external, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "e.onnx", tmp_path / "moved" / "e.onnx")
    shutil.copy(tmp_path / "e.data", tmp_path / "moved" / "e.data")
    onnxsep.load(tmp_path / "e.onnx")
    described.producer_name, described.doc_string = "another tool", "told"
    described.metadata_props.add(key="k", value="v")
    described.graph.node[0].doc_string = described.graph.initializer[0].doc_string = "told"
    described.graph.doc_string = described.functions[0].doc_string = "told"
    for tensor in described.graph.initializer[1:3]:
        values = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(values.ravel().tolist())
    for same in (tmp_path / "e.onnx", tmp_path / "moved" / "e.onnx", described):
        assert content_hashes(onnxsep.load(same)) == hashes
    plan = rewrite(tmp_path / "e.onnx", mode="spatial", rank=4, dry_run=True).plan
    assert rewrite(described, plan=plan).report.totals.replaced == 7


@pytest.mark.parametrize("place", ["initializer", "branch", "function"])
def test_every_weight_is_part_of_the_hash(place: str) -> None:
    hashes, other = content_hashes(onnxsep.load(MODEL)), network()
    branch = next(node for node in other.graph.node if node.op_type == "If").attribute[0].g
    tensor = {
        "initializer": other.graph.initializer[-1],
        "branch": branch.initializer[0],
        "function": other.functions[0].node[0].attribute[0].t,
    }[place]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] = np.nextafter(values.flat[-1], np.float32(np.inf))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = content_hashes(onnxsep.load(other))
    assert found.graph == hashes.graph
    assert found.weights != hashes.weights


# ---------------------------------------------------------------- with other options, and files


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, its plan and data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(MODEL, "m.onnx")
    np.savez("x.npz", x=X)
    done = run("rewrite", "m.onnx", "--mode", "spatial", "--rank", 4, "--dry-run", "--plan-out", "plan.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["dry run: nothing was written", "wrote the plan plan.toml"]
    return tmp_path


def test_from_the_command_line(place: Path) -> None:
    for options, out in ((["--mode", "spatial", "--rank", "4"], "a.onnx"), (["--plan", "plan.toml"], "b.onnx")):
        done = run("rewrite", "m.onnx", out, *options, "--report", f"{out}.json")
        assert done.returncode == 0, done.stderr
    assert (place / "a.onnx").read_bytes() == (place / "b.onnx").read_bytes()
    assert "plan plan.toml" in done.stdout.splitlines()[0]
    again = run("rewrite", "m.onnx", "c.onnx", "--plan", "plan.toml", "--plan-out", "again.toml", "--quiet")
    assert (again.returncode, again.stdout) == (0, "")
    assert (place / "again.toml").read_bytes() == (place / "plan.toml").read_bytes()


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["--mode", "spatial"], "--mode"),
        (["--rank", "4"], "--rank"),
        (["--mode", "spatial", "--rank", "4", "--only", "t*"], "--mode, --rank, --only"),
        (["--skip", "t*", "--force", "--recurse"], "--force, --recurse, --skip"),
        (["--include-first", "--round-ranks", "8"], "--include-first, --round-ranks"),
    ],
)
def test_what_the_plan_says_cannot_be_said_beside_it(options: list[str], flags: str, place: Path) -> None:
    done = run("rewrite", "missing.onnx", "o.onnx", "--plan", "plan.toml", *options)
    assert done.returncode == 1
    assert f"--plan says what becomes of each layer, so {flags} cannot be given with it" in done.stderr


def test_neither_a_mode_nor_a_plan(place: Path) -> None:
    done = run("rewrite", "m.onnx", "o.onnx")
    assert done.returncode == 2
    assert "--mode NAME" in done.stderr
    with pytest.raises(OptionError, match=r"^mode is missing.*or give plan"):
        onnxsep.rewrite("m.onnx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plan", "plan.toml", "--plan-out", "plan.toml"], "plan.toml, which is read as the plan"),
        (["--plan", "plan.toml", "--report", "plan.toml"], "plan.toml, which is read as the plan"),
        (["--mode", "spatial", "--plan-out", "m.onnx"], "m.onnx, which is read as the model"),
        (["--mode", "spatial", "--plan-out", "x.npz"], "a file that holds no plan of onnxsep"),
        (["--mode", "spatial", "--plan-out", "other.toml"], "a file that holds no plan of onnxsep"),
        (["--mode", "spatial", "--plan-out", "o.onnx"], "would overwrite the result o.onnx"),
        (["--mode", "spatial", "--plan-out", "none/p.toml"], "none"),
        (["--mode", "spatial", "--report", "plan.toml"], "a file that holds no report of onnxsep"),
    ],
)
def test_files_that_a_plan_must_not_take_the_place_of(options: list[str], words: str, place: Path) -> None:
    (place / "other.toml").write_text('[[steps]]\ncommand = "rewrite"\n')
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    done = run("rewrite", "m.onnx", "o.onnx", *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_result_does_not_take_the_place_of_its_plan(place: Path) -> None:
    done = run("rewrite", "m.onnx", "plan.toml", "--plan", "plan.toml")
    assert done.returncode == 1
    assert "plan.toml, which is read as the plan" in done.stderr
    with pytest.raises(OptionError, match="which is read as the plan"):
        rewrite("m.onnx", plan="plan.toml").save("plan.toml")


def test_a_new_plan_takes_the_place_of_an_old_one(place: Path) -> None:
    assert run("rewrite", "m.onnx", "--mode", "channel", "--dry-run", "--plan-out", "plan.toml").returncode == 0
    assert 'mode = "channel"' in (place / "plan.toml").read_text()
    (place / "plan.toml").write_text('schema = 7\n[layers]\n"a" = 5\n')  # of another version
    assert run("rewrite", "m.onnx", "--mode", "spatial", "--dry-run", "--plan-out", "plan.toml").returncode == 0


def test_refinement_needs_a_layer_that_is_fitted_so(place: Path) -> None:
    plan = (place / "plan.toml").read_text()
    options: dict[str, Any] = {"data": images(6), "refine": 1, "positions": 4}
    none = re.sub(r"rank = \[4\]", 'rank = [4], init = "svd"', plan)
    (place / "none.toml").write_text(none)
    with pytest.raises(OptionError, match="refine goes with data and init='joint'"):
        rewrite("m.onnx", plan="none.toml", **options)
    (place / "one.toml").write_text(none.replace(', init = "svd"', "", 1))
    assert rewrite("m.onnx", plan="one.toml", **options).report.calibration is not None
    with pytest.raises(OptionError, match="refine goes with data"):
        rewrite("m.onnx", plan="one.toml", refine=1)


def test_texts_are_read_as_they_were_written(tmp_path: Path) -> None:
    for text in ("", HOSTILE, "\x7f\x00\x85\u2028\u202e", "a\tb", "'", "\U0001f600\U000e0001", "é"):
        (tmp_path / "t.toml").write_text(f"a = {quoted(text)}", encoding="utf-8")
        assert read_toml(tmp_path / "t.toml") == {"a": text}
        assert quoted(text).isprintable()


# ---------------------------------------------------------------- recipes


def test_a_step_of_a_recipe_carries_out_a_plan_beside_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "recipes").mkdir()
    (place / "recipes" / "r.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nplan = "../plan.toml"\nverify = "none"\n'
    )
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    options = ("--test", "../x.npz", "--runs", "0", "--quiet")
    done = run("compress", "../m.onnx", "o.onnx", "--recipe", "../recipes/r.toml", *options)
    assert done.returncode == 0, done.stderr
    assert onnx.load("o.onnx") == rewrite(MODEL, mode="spatial", rank=4).proto
    done = run("compress", "../m.onnx", "p.onnx", "--recipe", "o.onnx.manifest.json", *options)
    assert done.returncode == 0, done.stderr
    plan = (place / "plan.toml").read_text()
    (place / "plan.toml").write_text(plan.replace("rank = [4]", "rank = [5]"))
    done = run("compress", "../m.onnx", "p.onnx", "--recipe", "o.onnx.manifest.json", *options)
    assert done.returncode == 1
    assert "cannot be repeated: a plan of that run was" in done.stderr


def test_a_run_that_goes_on_sees_that_its_plan_was_changed(place: Path) -> None:
    steps = Pipeline([Rewrite(plan="plan.toml", verify="none")])
    options: dict[str, Any] = {"work": "work", "runs": 0, "keep_steps": True}
    steps("m.onnx", **options)
    assert steps("m.onnx", **options).report.resumed_after == 1
    plan = (place / "plan.toml").read_text()
    (place / "plan.toml").write_text(plan.replace("rank = [4]", "rank = [5]"))
    with pytest.raises(OptionError, match="a plan"):
        steps("m.onnx", **options)


def test_steps_take_plans_in_memory_too(place: Path) -> None:
    plan = onnxsep.read_plan("plan.toml")
    result = Pipeline([Rewrite(plan=plan, verify="none")])("m.onnx", runs=0)
    assert result.proto == rewrite(MODEL, plan=plan).proto
    with pytest.raises(OptionError, match=r"the option 'mode' is missing, or 'plan'"):
        Rewrite()
    with pytest.raises(OptionError, match="'plan' must be"):
        Rewrite(plan=5)
    with pytest.raises(OptionError, match="so mode cannot be given with it"):
        Pipeline([Rewrite(plan=plan, mode="spatial")])("m.onnx", runs=0)
