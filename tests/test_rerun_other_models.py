"""``rerun`` notices another model of the same size; reports of schema 1, whose options repeated the command."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxsep
from onnxsep.errors import on_the_command_line
from onnxsep.reporting.commands import HOMES
from onnxsep.reporting.model_info import sha256

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
SCHEMA_1 = Path(__file__).parent / "saved_reports" / "schema_1"


def run(folder: Path, *arguments: object) -> str:
    """What is said on standard error."""
    done = command_line.run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(params=[False, True], ids=["one file", "external data"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    onnx.save(onnx.load(DIGITS), tmp_path / "m.onnx", save_as_external_data=request.param, location="m.data")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((24, 1, 8, 8), np.float32), y=np.arange(24) % 10)
    return tmp_path


def change_a_weight(folder: Path) -> None:
    """One number, so that no file gets another size."""
    model = onnx.load(folder / "m.onnx")
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    external = (folder / "m.data").exists()
    sizes = {path: path.stat().st_size for path in folder.glob("m.*")}
    for path in sizes:
        path.unlink()
    onnx.save(model, folder / "m.onnx", save_as_external_data=external, location="m.data")
    assert {path: path.stat().st_size for path in folder.glob("m.*")} == sizes


RUNS: list[tuple[Any, ...]] = [
    ("rewrite", "m.onnx", "-m", "spatial", "--dry-run", "--quiet", "--report", "r.json"),
    ("prune", "m.onnx", "-s", 0.5, "--dry-run", "--quiet", "--report", "r.json"),
]


@pytest.mark.parametrize("arguments", RUNS, ids=lambda words: words[0])
def test_another_model_of_the_same_size(folder: Path, arguments: tuple[Any, ...]) -> None:
    run(folder, *arguments)
    assert run(folder, "rerun", "r.json", "--quiet") == ""
    change_a_weight(folder)
    said = run(folder, "rerun", "r.json", "--quiet")
    assert said.startswith("onnxsep: warning: m.onnx has the SHA-256 ")
    assert said.endswith(": it is another model\n")


def test_models_that_were_measured(folder: Path) -> None:
    asked = ("m.onnx", "--data", "d.npz", "--runs", 0, "--no-memory", "--samples", 5, "--json")
    (folder / "e.json").write_text(command_line.run("evaluate", *asked, cwd=folder).stdout)
    assert run(folder, "rerun", "e.json") == ""
    change_a_weight(folder)
    assert "it is another model" in run(folder, "rerun", "e.json")


def test_a_report_without_hashes_says_the_size_alone(folder: Path) -> None:
    run(folder, *RUNS[0])
    content = json.loads((folder / "r.json").read_text())
    del content["source"]["sha256"]
    (folder / "r.json").write_text(json.dumps(content))
    change_a_weight(folder)
    assert run(folder, "rerun", "r.json", "--quiet") == ""
    content["source"]["size_bytes"] += 1
    (folder / "r.json").write_text(json.dumps(content))
    assert "it is another model" in run(folder, "rerun", "r.json", "--quiet")


def test_the_hash_is_that_of_the_file() -> None:
    expected = hashlib.sha256(DIGITS.read_bytes()).hexdigest()
    assert onnxsep.inspect(DIGITS).source.sha256 == sha256(onnxsep.load(DIGITS)) == expected


@pytest.mark.parametrize("command", ["rewrite", "prune", "evaluate", "compress"])
def test_reports_of_schema_1(command: str) -> None:
    old = json.loads((SCHEMA_1 / f"{command}.json").read_text())
    assert old["schema"] == 1
    assert old["options"].pop("command") == command
    report: Any = onnxsep.read_report(SCHEMA_1 / f"{command}.json")
    assert report.options == old["options"]
    assert (report.command, report.schema_version) == (command, 2)
    if command == "compress":
        for inner in (*(step.report for step in report.steps), report.evaluation):
            assert inner.schema_version == 2
            assert "command" not in inner.options
    with on_the_command_line():
        assert command in HOMES
        assert str(report)


def test_runs_of_schema_1_are_repeated(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "m.onnx")
    said = run(tmp_path, "rerun", SCHEMA_1 / "prune.json", "a.onnx", "--quiet", "--report", "new.json")
    assert said == f"onnxsep: warning: the report was made by onnxsep 0.1.0, and this is {onnxsep.__version__}\n"
    run(tmp_path, "prune", "m.onnx", "b.onnx", "-s", 0.5, "--no-verify", "--quiet")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    new = json.loads((tmp_path / "new.json").read_text())
    assert (new["command"], new["schema"]) == ("prune", 2)
    assert "command" not in new["options"]
