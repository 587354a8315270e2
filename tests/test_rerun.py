"""``onnxsep rerun``: a run again from its report, with the same result."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest

import onnxsep

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(DIGITS, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((24, 1, 8, 8), np.float32), y=np.arange(24) % 10)
    return tmp_path


def run(folder: Path, *arguments: object) -> str:
    done = command_line.run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


RUNS: list[tuple[Any, ...]] = [
    ("rewrite", "m.onnx", "o.onnx", "-m", "spatial", "-r", "0.5", "--include-first", "--recurse"),
    ("rewrite", "m.onnx", "o.onnx", "-m", "channel", "--data", "d.npz", "--samples", 9, "--positions", 8, "--seed", 3),
    ("rewrite", "m.onnx", "o.onnx", "-m", "spatial", "--input-shape", "image:3,1,8,8", "--no-verify"),
    ("prune", "m.onnx", "o.onnx", "--pattern", "2:4", "--linear"),
    ("prune", "m.onnx", "o.onnx", "--step", 0.2, "--steps", 2, "--only", "block*"),
    ("prune", "m.onnx", "o.onnx", "--channels", "--sparsity", 0.3, "--round", 4, "--norm", "l2", "--verify", "full"),
    ("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--per-tensor", "--no-equalize", "--int8-io"),
]


@pytest.mark.parametrize("arguments", RUNS, ids=lambda words: " ".join(map(str, words[3:])))
def test_the_result_is_the_same_byte_for_byte(folder: Path, arguments: tuple[Any, ...]) -> None:
    run(folder, *arguments, "--threads", 1, "--report", "r.json", "--quiet")
    first = (folder / "o.onnx").read_bytes()
    (folder / "o.onnx").unlink()
    again = run(folder, "rerun", "r.json", "--quiet", "--report", "s.json")
    assert again == ""
    assert (folder / "o.onnx").read_bytes() == first
    reports = [json.loads((folder / name).read_text()) for name in ("r.json", "s.json")]
    assert reports[0]["options"] == reports[1]["options"]
    line = shlex.split(run(folder, "rerun", "r.json", "--print"))
    assert line[:2] == ["onnxsep", arguments[0]]
    run(folder, *line[1:], "--report", "t.json", "--quiet")
    assert (folder / "o.onnx").read_bytes() == first
    assert json.loads((folder / "t.json").read_text())["options"] == reports[0]["options"]


def test_another_target_and_a_dry_run(folder: Path) -> None:
    run(folder, "rewrite", "m.onnx", "-m", "spatial", "--dry-run", "--report", "r.json", "--quiet")
    assert "dry run" in run(folder, "rerun", "r.json")
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx", "r.json"]
    run(folder, "prune", "m.onnx", "o.onnx", "-s", 0.5, "--report", "p.json", "--quiet")
    run(folder, "rerun", "p.json", "other.onnx", "--quiet")
    assert (folder / "other.onnx").read_bytes() == (folder / "o.onnx").read_bytes()


def test_evaluate_inspect_and_check(folder: Path) -> None:
    asked = ("m.onnx", "--data", "d.npz", "--runs", 0, "--no-memory", "--samples", 5, "--threads", 1)
    (folder / "e.json").write_text(run(folder, "evaluate", *asked, "--json"))
    again = json.loads(run(folder, "rerun", "e.json", "--json"))
    assert again["models"] == json.loads((folder / "e.json").read_text())["models"]
    assert "--no-memory" in run(folder, "rerun", "e.json", "--print")
    (folder / "i.json").write_text(run(folder, "inspect", "m.onnx", "--mode", "cp", "--mode", "tucker", "--json"))
    assert "cp" in run(folder, "rerun", "i.json")
    (folder / "c.json").write_text(run(folder, "check", "m.onnx", "m.onnx", "--no-outputs", "--format", "json"))
    assert shlex.split(run(folder, "rerun", "c.json", "--print")) == [
        "onnxsep",
        "check",
        "m.onnx",
        "m.onnx",
        "--no-outputs",
    ]


def refused(folder: Path, *words: str) -> None:
    done = command_line.run("rerun", "r.json", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_what_was_in_memory_is_refused(folder: Path) -> None:
    loaded = onnxsep.load(folder / "m.onnx")
    images = np.zeros((9, 1, 8, 8), np.float32)
    for given, name in (
        ({"model": loaded.proto}, "model was an object of Python (ModelProto)"),
        (
            {"model": folder / "m.onnx", "data": images},
            "data was an object of Python (ndarray)",
        ),
    ):
        options: dict[str, Any] = {"mode": "spatial", "dry_run": True, **given}
        report = onnxsep.rewrite(options.pop("model"), **options).report
        (folder / "r.json").write_text(report.model_dump_json())
        refused(folder, name)
    report = onnxsep.rewrite(loaded, mode="spatial").report  # loaded from a file, which can be loaded again; not saved
    (folder / "r.json").write_text(report.model_dump_json())
    refused(folder, "was not saved", "OUT.onnx")


def test_what_is_no_report_or_an_old_one(folder: Path) -> None:
    for text in ("", "[]", "{}", '{"onnxsep": "0.1"}', '{"options": {"force": true}, "onnxsep": "0.1.0"}', "\0"):
        (folder / "r.json").write_text(text)
        refused(folder, "r.json")
    report = '{"command": "rewrite", "options": {"mode": "spatial"}}'
    (folder / "r.json").write_text(report)
    refused(folder, "does not say the model")


def test_another_version_and_another_model_are_said(folder: Path) -> None:
    run(folder, "rewrite", "m.onnx", "o.onnx", "-m", "spatial", "--report", "r.json", "--quiet")
    content = json.loads((folder / "r.json").read_text())
    (folder / "r.json").write_text(json.dumps({**content, "onnxsep": "0.0.1"}))
    shutil.copy(folder / "o.onnx", folder / "m.onnx")
    done = command_line.run("rerun", "r.json", "--quiet", cwd=folder)
    assert "warning: the report was made by onnxsep 0.0.1" in done.stderr
    assert "it is another model" in done.stderr


def test_runtime_and_preprocessing_that_the_command_line_cannot_say(folder: Path) -> None:
    plain = onnxsep.RuntimeOptions(optimize=False, time_limit=90)
    report = onnxsep.rewrite(folder / "m.onnx", mode="spatial", dry_run=True, runtime=plain).report
    (folder / "r.json").write_text(report.model_dump_json())
    assert "dry run" in run(folder, "rerun", "r.json")
    done = command_line.run("rerun", "r.json", "--print", cwd=folder)
    assert done.returncode == 1
    assert "the command line cannot say the runtime" in done.stderr
