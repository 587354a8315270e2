"""Kits that time a model's layers on another device: what is in them, their script, and the file that comes back."""

import ast
import contextlib
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import command_line
import latency_models
import onnx
import pytest
from latency_models import residual, rows_of

import onnxsep
from onnxsep.errors import OnnxsepError, OptionError
from onnxsep.planner.latency import FormLatency
from onnxsep.planner.latency_file import latencies_from, read_latencies
from onnxsep.profiling.kit import script
from onnxsep.reporting.saved import read_report

MODES = ("spatial", "depthwise")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its kit, and the latencies that the kit's script has measured here."""
    folder = tmp_path_factory.mktemp("profile")
    onnx.save(residual(), folder / "net.onnx")
    done = command_line.run("profile", "net.onnx", "kit", "-m", "spatial", "--only", "[ot]*", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert run(folder / "kit", "--threads", "1", "--out", folder / "latency.json")[0] == 0
    return folder


def loaded(kit: Path) -> ModuleType:
    """The script of a kit as Python reads it on the device, but in a hurry."""
    spec = importlib.util.spec_from_file_location("measure_on_device", kit / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    module.PIECES = module.SHARES = latency_models.QUICK  # type: ignore[attr-defined]
    return module


def run(kit: Path, *arguments: object) -> tuple[int, str, str]:
    """Exit status of the script, and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = loaded(kit).main([str(one) for one in arguments])
    return status, out.getvalue(), err.getvalue()


def manifest(kit: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((kit / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_the_script_needs_numpy_and_onnxruntime_only() -> None:
    tree = ast.parse(script(), feature_version=(3, 9))
    used = {one.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    used |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert used - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_a_kit_holds_pieces_and_forms_that_load(made: Path) -> None:
    content = manifest(made / "kit")
    assert content["complete"]
    assert len(content["pieces"]) == 2  # "one" and "two" are alike
    for piece in content["pieces"].values():
        assert piece["forms"]
        for one in (piece, *piece["forms"].values()):
            onnx.checker.check_model(onnx.load(made / "kit" / one["file"]))
    found = (path for path in (made / "kit").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    listed = {str(path.relative_to(made / "kit")) for path in found}
    assert set(content["files"]) | {"manifest.json"} == {name.replace("\\", "/") for name in listed}
    assert (made / "kit" / "model.onnx").read_bytes() == (made / "net.onnx").read_bytes()


def test_what_the_device_measured_is_what_forms_cost(made: Path) -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    content = json.loads((made / "latency.json").read_text(encoding="utf-8"))
    found = latencies_from(made / "latency.json", model, sites, rows)
    assert found.whole_ms == content["times"]["whole_ms"]
    assert found.machine.threads == 1
    known = [one for row in rows if isinstance(one := found.of(row), FormLatency)]
    assert known
    ratios = {one["ratio"] for several in content["times"]["forms"].values() for one in several.values()}
    assert {one.ratio for one in known} <= ratios


def test_layers_and_forms_that_the_kit_lacks_are_unknown(made: Path) -> None:
    model, sites, rows = rows_of(residual(), "spatial", "cp")
    found = latencies_from(made / "latency.json", model, sites, rows)
    assert {found.of(row) for row in rows if row.mode.name == "cp"} == {"it was not measured"}
    with pytest.raises(OptionError, match="none of the forms that are asked for"):
        latencies_from(made / "latency.json", *rows_of(residual(), "cp"))


def test_other_weights_are_the_same_model(made: Path) -> None:
    proto = residual()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w_"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    assert latencies_from(made / "latency.json", *rows_of(proto, "spatial")).rows


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (residual(names="net/"), "'net.onnx': this one has no layer 'one', 'two', 'three'"),
        (residual(channels=8), "'net.onnx', with layers of the same names but another graph"),
        (residual(dilations=[2, 2]), "another graph around them"),
    ],
    ids=["names", "channels", "attributes"],
)
def test_latencies_of_another_model_are_refused(proto: onnx.ModelProto, said: str, made: Path) -> None:
    with pytest.raises(OptionError, match=said):
        latencies_from(made / "latency.json", *rows_of(proto, "spatial"))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    return json.dumps(content)


DAMAGES: dict[str, tuple[Callable[[Path], str], str]] = {
    "cut off": (lambda path: path.read_text(encoding="utf-8")[:-40], "damaged, or no file of latencies"),
    "empty": (lambda _: "", "damaged, or no file of latencies"),
    "another kind": (lambda _: '{"kind": "mine"}', "is no file of latencies"),
    "another schema": (lambda path: changed(path, lambda one: one.update(schema=2)), "of schema 2, and this version"),
    "no times": (lambda path: changed(path, lambda one: one.pop("times")), "is damaged: times: Field required"),
    "a word for a time": (
        lambda path: changed(path, lambda one: one["times"].update(whole_ms="fast")),
        "is damaged: times.whole_ms",
    ),
    "no time at all": (lambda path: changed(path, lambda one: one["times"].update(whole_ms=0)), "whole_ms is 0"),
    "a negative share": (
        lambda path: changed(path, lambda one: next(iter(one["times"]["pieces"].values())).update(share=-1)),
        "is -1",
    ),
    "not a number": (
        lambda path: changed(path, lambda one: next(iter(one["times"]["pieces"].values())).update(ms=float("nan"))),
        "is nan",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, made: Path, tmp_path: Path) -> None:
    write, said = DAMAGES[damage]
    path = tmp_path / "latency.json"
    path.write_text(write(made / "latency.json"), encoding="utf-8")
    with pytest.raises(OptionError, match=said):
        read_latencies(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is not there"):
        read_latencies(tmp_path / "none.json")
    with pytest.raises(OptionError, match=r"is a folder; name the latency\.json in it"):
        read_latencies(tmp_path)


def test_the_script_goes_on_where_it_was(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    content = json.loads((made / "latency.json").read_text(encoding="utf-8"))
    times = content["times"]
    piece = next(iter(times["forms"]))
    kept = dict(times["forms"][piece])
    gone = times["forms"][piece].popitem()[0]
    out.write_text(json.dumps({**content, "finished": False}), encoding="utf-8")
    assert run(made / "kit", "--threads", "1", "--out", out)[0] == 0
    again = json.loads(out.read_text(encoding="utf-8"))
    assert again["finished"]
    assert again["times"]["pieces"] == times["pieces"]  # not measured again
    assert gone in again["times"]["forms"][piece]
    assert {key: one for key, one in again["times"]["forms"][piece].items() if key != gone} == {
        key: one for key, one in kept.items() if key != gone
    }


def test_the_script_refuses_what_it_cannot_do(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    status, _, said = run(made / "kit", "--provider", "NoneExecutionProvider", "--out", out)
    assert status == 1
    assert "'NoneExecutionProvider' is not there; this onnxruntime has: " in said
    assert not out.exists()
    out.write_text("my notes", encoding="utf-8")
    status, _, said = run(made / "kit", "--threads", "1", "--out", out)
    assert (status, out.read_text(encoding="utf-8")) == (1, "my notes")
    assert "holds something else; name another file with --out" in said
    shutil.copy(made / "latency.json", out)
    status, _, said = run(made / "kit", "--threads", "2", "--out", out)
    assert status == 1
    assert "times of another kit, provider or device" in said
    assert out.read_bytes() == (made / "latency.json").read_bytes()


def test_a_piece_that_does_not_run_is_left_out(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "kit", tmp_path / "kit")
    pieces = manifest(tmp_path / "kit")["pieces"]
    key, piece = next(iter(pieces.items()))
    bad = next(iter(piece["forms"]))
    (tmp_path / "kit" / piece["forms"][bad]["file"]).write_bytes(b"damaged")
    status, printed, _ = run(tmp_path / "kit", "--threads", "1", "--out", tmp_path / "latency.json")
    assert status == 0
    assert f"{piece['forms'][bad]['file']} does not run here, and is left out" in printed
    found = read_latencies(tmp_path / "latency.json")
    assert set(found.times.forms[key]) == set(piece["forms"]) - {bad}


def test_an_incomplete_kit_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "kit", tmp_path / "kit")
    (tmp_path / "kit" / "manifest.json").write_text('{"kind": "onnxsep kit", "complete": false}', encoding="utf-8")
    status, _, said = run(tmp_path / "kit", "--out", tmp_path / "latency.json")
    assert (status, "no complete kit: run onnxsep profile again" in said) == (1, True)


# ---------------------------------------------------------------- the command


def test_a_folder_that_is_no_kit_stays_as_it_was(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "net.onnx", tmp_path)
    for name, text in (("notes.txt", "mine"), ("manifest.json", '{"kind": "mine"}')):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / name).write_text(text, encoding="utf-8")
        done = command_line.run("profile", "net.onnx", "other", cwd=tmp_path)
        assert done.returncode == 1
        assert "would overwrite a folder that is no kit of onnxsep" in done.stderr
        assert [path.read_text(encoding="utf-8") for path in (tmp_path / "other").iterdir()] == [text]
        shutil.rmtree(tmp_path / "other")


def test_a_kit_is_replaced_and_other_files_in_it_stay(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "work")
    kit = tmp_path / "work" / "kit"
    (kit / "latency.json").write_text("measured", encoding="utf-8")
    before = set(manifest(kit)["files"])
    done = command_line.run("profile", "net.onnx", "kit", "-m", "cp", "--only", "one", cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    after = set(manifest(kit)["files"])
    assert (kit / "latency.json").read_text(encoding="utf-8") == "measured"
    assert not any((kit / name).exists() for name in before - after)


def test_the_model_is_not_in_the_folder_that_is_written(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "kit", tmp_path / "kit")
    done = command_line.run("profile", "kit/model.onnx", "kit", cwd=tmp_path)
    assert done.returncode == 1
    assert "holds kit/model.onnx, which is read as the model" in done.stderr
    assert (tmp_path / "kit" / "model.onnx").read_bytes() == (made / "net.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-m", "ghost"), "ghost: it takes blocks of several nodes"),
        (("-m", "nothing"), "unknown mode 'nothing'"),
        (("--only", "nobody"), "nobody"),
        (("--round-ranks", "5"), "is not 8 or 16"),
        (("--only", "stem"), "there is no layer to time: "),
        (("--input-shape", "z:1,3,8,8"), "no input 'z'"),
    ],
)
def test_bad_options(options: tuple[str, ...], said: str, made: Path, tmp_path: Path) -> None:
    done = command_line.run("profile", made / "net.onnx", "kit", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "kit").exists()


def test_sizes_that_the_model_leaves_open_are_given(tmp_path: Path) -> None:
    onnx.save(residual(size="n"), tmp_path / "net.onnx")
    without = command_line.run("profile", "net.onnx", "kit", "-m", "spatial", cwd=tmp_path)
    assert without.returncode == 1
    assert "the size of its input is not known" in without.stderr
    shape = ("--input-shape", "x:1,3,12,12")
    done = command_line.run("profile", "net.onnx", "kit", "-m", "spatial", *shape, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_report_is_read_again_and_repeated(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "net.onnx", tmp_path)
    words = ("profile", "net.onnx", "kit", "-m", "spatial", "--only", "one")
    done = command_line.run(*words, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_report(tmp_path / "r.json")
    assert isinstance(report, onnxsep.ProfileReport)
    assert (report.pieces, report.output) == (1, "kit")
    assert [layer.name for layer in report.layers if layer.forms] == ["one"]
    printed = command_line.run("rerun", "r.json", "--print", cwd=tmp_path)
    assert printed.stdout.split() == ["onnxsep", "profile", "net.onnx", "kit", "--only", "one", "--mode", "spatial"]
    first = (tmp_path / "kit" / "manifest.json").read_bytes()
    assert command_line.run("rerun", "r.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "kit" / "manifest.json").read_bytes() == first
    shown = command_line.run("report", "r.json", cwd=tmp_path).stdout
    assert "1 of 4 layers in 1 pieces" in shown


def test_in_python(made: Path, tmp_path: Path) -> None:
    result = onnxsep.profile(made / "net.onnx", modes=MODES)
    rows = {row["name"]: bool(row["forms"]) for row in result.report.to_records()}
    assert rows == {"stem": False, "one": True, "two": True, "three": True}
    report = result.save(tmp_path / "kit")
    assert report.output == str(tmp_path / "kit")
    with pytest.raises(OnnxsepError, match="is not a folder"):
        result.save(made / "net.onnx")
