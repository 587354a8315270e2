"""Saved reports: those of older versions are read, what cannot be read is refused, and all look as they did."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.cli import load_commands
from onnxsep.errors import ReportError, on_the_command_line
from onnxsep.model.paths import is_report
from onnxsep.reporting.commands import HOMES, document_of, record_of
from onnxsep.reporting.records import Report
from onnxsep.reporting.saved import read_report
from onnxsep.reporting.text import plain_text
from onnxsep.reporting.upgrades import _STEPS

# Reports of onnxsep 0.1.0 before schema 1, and what it printed of them where there is no terminal.
SAVED = Path(__file__).parent / "saved_reports"
OLD = [command for command in HOMES if command not in ("plan", "profile")]  # that came with schema 2


def without_schema(content: Any) -> Any:
    """JSON without what schema 0 lacks: ``schema`` in every report, and with it ``command``."""
    if isinstance(content, list):
        return [without_schema(item) for item in content]
    if not isinstance(content, dict):
        return content
    added: tuple[str, ...] = ("schema", "command") if "schema" in content else ()
    added += tuple(key for key in ("options", "used") if content.get(key) == {})  # which they do not say
    return {key: without_schema(value) for key, value in content.items() if key not in added}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model m.onnx and data d.npz."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8, 3, 3)).astype(np.float32), name) for name in ("v", "w")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["t"], name="first", pads=[1] * 4),
        helper.make_node("Conv", ["t", "w"], ["y"], name="second", pads=[1] * 4),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 6, 6]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((8, 8, 6, 6)).astype(np.float32))
    (tmp_path / "recipe.toml").write_text('[[steps]]\ncommand = "rewrite"\nmode = "spatial"\nforce = true\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- reading old ones


def without_new(now: Any, old: Any) -> Any:
    """What the new reading says, without fields that the old one does not know and that say nothing."""
    if isinstance(now, dict) and isinstance(old, dict):
        kept = {key: value for key, value in now.items() if key in old or value not in (None, [])}
        return {key: without_new(value, old.get(key)) for key, value in kept.items()}
    if isinstance(now, list) and isinstance(old, list) and len(now) == len(old):
        return [without_new(*pair) for pair in zip(now, old, strict=True)]
    return now


@pytest.mark.parametrize("command", OLD)
def test_a_report_of_an_older_version_is_read_and_looks_as_it_did(command: str) -> None:
    old = json.loads((SAVED / f"{command}.json").read_text())
    assert "schema" not in old
    report = read_report(SAVED / f"{command}.json")
    assert type(report) is record_of(command)
    assert report.command == command
    load_commands()  # their options say what they are called there
    with on_the_command_line():
        assert plain_text(document_of(report)) == (SAVED / f"{command}.txt").read_text()
    now = json.loads(report.model_dump_json())
    assert list(now)[:3] == ["onnxsep", "command", "schema"]
    now.pop("onnxsep") if command == "check" else None  # which it did not say
    assert without_new(without_schema(now), old) == old


def test_reports_within_a_report_are_upgraded_too() -> None:
    now = json.loads(read_report(SAVED / "compress.json").model_dump_json())
    assert [(step["report"]["command"], step["report"]["schema"]) for step in now["steps"]] == [
        ("rewrite", 2),
        ("quantize", 2),
    ]
    assert now["evaluation"]["command"] == "evaluate"


@pytest.mark.parametrize("command", OLD)
def test_every_schema_has_a_step_to_the_next(command: str) -> None:
    newest = record_of(command).model_fields["schema_version"].default
    assert newest >= 1
    assert {schema for name, schema in _STEPS if name == command} == set(range(newest))


def test_all_reports_are_listed() -> None:
    for command in HOMES:
        assert record_of(command).model_fields["command"].default == command
    ours = {report for report in Report.__subclasses__() if report.__module__.startswith("onnxsep.")}
    assert ours == {record_of(command) for command in HOMES}


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "command",
    [
        ("rewrite", "m.onnx", "o.onnx", "--mode", "spatial", "--force", "--verify", "local", "--layers"),
        ("rewrite", "m.onnx", "--mode", "depthwise", "--include-first", "--dry-run"),
        ("prune", "m.onnx", "o.onnx", "--step", "0.2", "--steps", "2"),
        ("quantize", "m.onnx", "o.onnx", "--data", "d.npz"),
        ("compress", "m.onnx", "o.onnx", "--recipe", "recipe.toml", "--runs", "0"),
    ],
)
def test_it_shows_what_the_command_printed(command: tuple[str, ...], place: Path) -> None:
    done = run(*command, "--report", "r.json")
    assert done.returncode == 0, done.stderr
    shown = run("report", "r.json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == done.stdout
    again = run("report", "r.json", "--json")
    assert json.loads(again.stdout) == json.loads(Path("r.json").read_text())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("inspect", "m.onnx", "--mode", "spatial"), ("--json",)),
        (("evaluate", "m.onnx", "--data", "d.npz", "--runs", "0", "--no-memory", "--reference", "m.onnx"), ("--json",)),
        (("check", "m.onnx", "m.onnx"), ("--format", "json")),
        (("check", "o.onnx", "m.onnx", "--layers"), ("--format", "json")),
        (("check", "o.onnx", "m.onnx"), ("--format", "json")),
    ],
)
def test_it_shows_printed_json_as_the_command_does(
    command: tuple[str, ...], option: tuple[str, ...], place: Path
) -> None:
    assert run("rewrite", "m.onnx", "o.onnx", "--mode", "spatial", "--rank", "2", "--quiet").returncode == 0
    Path("r.json").write_text(run(*command, *option).stdout)
    shown = run("report", "r.json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == run(*command).stdout


def test_quiet_prints_nothing(place: Path) -> None:
    shown = run("report", SAVED / "prune.json", "--quiet", "--md", "p.md")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    assert Path("p.md").is_file()


def test_a_saved_report_of_any_age_may_be_replaced_by_a_report(place: Path) -> None:
    for command in OLD:
        old = SAVED / f"{command}.json"
        assert is_report(old) == (command != "check")  # no command wrote that one to a file
        new = place / "new.json"
        new.write_text(read_report(old).model_dump_json(indent=1))
        assert is_report(new)
    Path("mine.json").write_text('{"command": "rewrite", "schema": 1}')
    assert not is_report(Path("mine.json"))
    done = run("prune", "m.onnx", "o.onnx", "--sparsity", "0.5", "--report", "mine.json")
    assert done.returncode == 1
    assert "mine.json would overwrite a file that holds no report of onnxsep" in done.stderr


# ---------------------------------------------------------------- Markdown files


def test_a_markdown_report_replaces_only_its_like(place: Path) -> None:
    saved = SAVED / "inspect.json"
    Path("mine.md").write_text("# My notes\n")
    Path("empty.md").touch()
    refused = run("report", saved, "--md", "mine.md")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--md mine.md would overwrite a file that holds no Markdown report of onnxsep" in refused.stderr
    assert Path("mine.md").read_text() == "# My notes\n"
    for name in ("empty.md", "new.md", "new.md"):
        assert run("report", saved, "--md", name).returncode == 0
    assert Path("empty.md").read_text() == Path("new.md").read_text()
    assert "# onnxsep inspect: if.onnx\n" in Path("new.md").read_text()


def test_a_markdown_report_is_not_written_over_the_report_or_into_nothing(place: Path) -> None:
    text = (SAVED / "inspect.json").read_text()
    Path("r.json").write_text(text)
    Path("link.md").symlink_to("r.json")
    for target in ("r.json", "link.md"):
        refused = run("report", "r.json", "--md", target)
        assert refused.returncode == 1
        assert f"--md {target} would overwrite r.json, which is read as the report" in refused.stderr
    assert Path("r.json").read_text() == text
    assert "is not a folder" in run("report", "r.json", "--md", "none/r.md").stderr
    assert run("report", "missing.json", "--md", "r.md").returncode == 1
    assert not Path("r.md").exists()


# ---------------------------------------------------------------- what cannot be read


def changed(command: str, change: Callable[[dict[str, Any]], Any]) -> str:
    """A saved report in which something was changed."""
    content = json.loads(read_report(SAVED / f"{command}.json").model_dump_json())
    change(content)
    return json.dumps(content)


REFUSED = {
    "text": ("no report", "is no report of onnxsep: it is no JSON"),
    "deep": ("[" * 100_000, "is no report of onnxsep: it is no JSON"),
    "list": ("[]", "is no report of onnxsep: give a file that"),
    "other": ('{"name": "x"}', "is no report of onnxsep: give a file that"),
    "no command": (changed("prune", lambda it: it.update(command=3)), "is no report of onnxsep: give a file that"),
    "unknown": (
        changed("prune", lambda it: it.update(command="shrink")),
        "of the command 'shrink', which this onnxsep does not know (it knows rewrite, inspect, ",
    ),
    "newer": (
        changed("prune", lambda it: it.update(schema=7)),
        "holds a report of prune in schema 7, and this onnxsep reads up to 2: update onnxsep",
    ),
    "newer step": (
        changed("compress", lambda it: it["steps"][1]["report"].update(schema=7)),
        "holds a report of quantize in schema 7, and this onnxsep reads up to 2: update onnxsep",
    ),
    "schema": (changed("prune", lambda it: it.update(schema="1")), "is damaged: schema is '1'"),
    "negative": (changed("prune", lambda it: it.update(schema=-1)), "is damaged: schema is -1"),
    "wrong command": (changed("prune", lambda it: it.update(command="rewrite")), "is damaged: mode: Field required"),
    "wrong step": (
        changed("compress", lambda it: it["steps"][0].update(command="prune")),
        "is damaged: it holds no report of 'prune' where there should be one",
    ),
    "type": (
        changed("rewrite", lambda it: it["convs"][1].update(rank="all")),
        "is damaged: convs.1.rank: Input should be a valid tuple",
    ),
    "missing": (changed("rewrite", lambda it: it.pop("totals")), "is damaged: totals: Field required"),
    "more": (changed("rewrite", lambda it: it.update(colour=1)), "is damaged: colour: Extra inputs"),
    "no models": (changed("evaluate", lambda it: it.update(models=[])), "is damaged: its parts do not fit together"),
    "no mode": (
        changed("inspect", lambda it: it["convs"][0].update(modes={})),
        "is damaged: its parts do not fit together",
    ),
    "no option": (changed("prune", lambda it: it.update(options={})), "is damaged: its parts do not fit together"),
    "surrogate": (changed("prune", lambda it: it.update(notes=["\ud800"])), "is damaged: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_one_line(case: str, tmp_path: Path) -> None:
    text, words = REFUSED[case]
    path = tmp_path / "r.json"
    path.write_text(text)
    done = run("report", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"{str(path)!r}" in done.stderr
    assert words in done.stderr


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "missing.json", "No such file"), (tmp_path, "it is a folder; name a file")):
        done = run("report", path)
        assert done.returncode == 1
        assert re.search(rf"^onnxsep: error: cannot read the report .*{words}", done.stderr)
    with pytest.raises(ReportError, match="cannot read the report"):
        onnxsep.read_report(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_other_shells_are_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes((SAVED / "inspect.json").read_text().encode(encoding))
    assert read_report(path) == read_report(SAVED / "inspect.json")


def test_figures_that_json_lacks_are_read_as_nan(tmp_path: Path) -> None:
    """They are null in the file, at any depth and in steps."""
    found = read_report(SAVED / "compress.json")
    content = json.loads(found.model_dump_json())
    content["steps"][1]["report"]["outputs"][0].update(relative=None, max_abs=None)
    content["steps"][0]["report"]["verification"].update(relative=None)  # may be None where it did not run
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    report: Any = read_report(path)
    assert math.isnan(report.steps[1].report.outputs[0].relative)
    assert "max nan" in plain_text(document_of(report.steps[1].report))
    assert "relative nan" in plain_text(document_of(report.steps[0].report))
