"""Options as records: from one record derive the function, the command line, the steps of recipes and the reports."""

import ast
import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest

import onnxsep
from onnxsep.cli import load_commands
from onnxsep.cli.app import app
from onnxsep.cli.derived import COMMANDS, Given, asked_of, command, flag_of
from onnxsep.compression.options import checked, defaults
from onnxsep.data.options import PreprocessingTexts
from onnxsep.errors import OptionError, on_the_command_line, spelled
from onnxsep.model.paths import Kind
from onnxsep.options.specs import Options, as_json, in_memory, option, record, specs_of
from onnxsep.options.taking import takes
from onnxsep.pruning.options import PruneOptions
from onnxsep.rewriting.options import RewriteOptions
from onnxsep.running.options import Running
from onnxsep.running.runtime import RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(onnxsep, name)
    for name in ("plan", "rewrite", "prune", "quantize", "finetune", "evaluate", "check", "inspect", "compress")
}

load_commands()


@record
class Tuned(PruneOptions):
    """A record with one line more."""

    gentleness: int = option(default=3, minimum=1, group="How", help="How gently; see {sparsity}.")


@pytest.fixture
def tuned_command() -> Any:
    given: list[Given[Tuned]] = []

    def tuned(one: Given[Tuned]) -> None:
        """Prune gently."""
        given.append(one)

    known = list(app.registered_commands)
    command(Tuned)(tuned)
    yield given
    app.registered_commands[:] = known
    del COMMANDS["tuned"]


def test_an_option_more_is_one_line(tuned_command: list[Given[Tuned]]) -> None:
    @takes(Tuned)
    def tuned(model: str, options: Tuned) -> dict[str, Any]:
        """Prune gently.

        Args:
            model: a path.
            options: each by its name.
        """
        return options.as_json(model=model)

    assert tuned("m", sparsity=0.5)["gentleness"] == 3  # a keyword of Python, and an entry of the report
    assert tuned("m", sparsity=0.5, gentleness=np.int64(4))["gentleness"] == 4
    assert inspect.signature(tuned).parameters["gentleness"].default == 3
    assert "    gentleness: How gently; see sparsity." in inspect.getdoc(tuned).splitlines()  # type: ignore[union-attr]
    with pytest.raises(OptionError, match=r"^gentleness must be a whole number, not 'very'"):
        tuned("m", sparsity=0.5, gentleness="very")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^gentleness must be 1 or more, not 0"):
        tuned("m", sparsity=0.5, gentleness=0)
    assert checked(Tuned, {"gentleness": 5}, "step 1") == {"gentleness": 5}  # a key of a step in a recipe
    assert defaults(Tuned)["gentleness"] == 3
    with pytest.raises(OptionError, match="there is no option 'gentlenes', did you mean 'gentleness'"):
        checked(Tuned, {"gentlenes": 5}, "step 1")
    done = command_line.run("tuned", "--gentleness", 7, "--sparsity", 0.5)  # an option of the command line
    assert done.returncode == 0, done.stderr
    assert tuned_command[0].options == Tuned(gentleness=7, sparsity=0.5, runtime=RuntimeOptions())
    shown = command_line.run("tuned", "--help").stdout
    assert re.search(r"\nHow:\n +--gentleness.* How gently; see --sparsity\. +\\?\[default: 3; x>=1\]", shown)
    assert command_line.run("tuned", "--gentleness", 0).returncode == 2


def test_a_wrong_name_is_refused_by_python_and_by_the_type_checker() -> None:
    with pytest.raises(TypeError, match=r"^rewrite\(\): got an unexpected keyword argument 'rnk'"):
        onnxsep.rewrite(DIGITS, mode="spatial", rnk=2)  # type: ignore[call-arg]  # unused, were mypy not to see it
    with pytest.raises(TypeError, match=r"missing a required argument: 'data'"):
        onnxsep.quantize(DIGITS)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match=r"^mode is missing"):
        onnxsep.rewrite(DIGITS)
    with pytest.raises(OptionError, match=r"^force must be true or false"):
        onnxsep.rewrite(DIGITS, mode="spatial", force="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        onnxsep.prune(DIGITS, 0.5)  # type: ignore[call-arg, arg-type]  # nothing is filled by position


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_has_what_the_command_line_has(name: str) -> None:
    """Every option of the record is a keyword, is explained, and is an option of the command but for callbacks."""
    function = FUNCTIONS[name]
    kind: type[Options] = function.options  # type: ignore[attr-defined]
    keywords = {
        one.name: one
        for one in inspect.signature(function).parameters.values()
        if one.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(keywords) == set(specs_of(kind)) == {field.name for field in dataclasses.fields(kind)}
    text = inspect.getdoc(function) or ""
    for option_name in keywords:
        assert re.search(rf"^    {option_name}: \S", text, re.MULTILINE), option_name
    assert "--" not in text
    asked = asked_of(COMMANDS[name].kind)
    shown = command_line.run(name, "--help").stdout
    assert all(flag_of(one.name, one.spec).partition("/")[0] in shown for one in asked)
    left_out = {key for key, spec in specs_of(kind).items() if spec.flag is None}
    assert left_out <= {"progress", "told"}


def test_one_name_has_one_flag_in_all_commands() -> None:
    flags: dict[str, str] = {}
    for one in COMMANDS.values():
        for asked in asked_of(one.kind):
            flag = flag_of(asked.name, asked.spec).partition("/")[0]
            assert flags.setdefault(asked.name, flag) == flag
            with on_the_command_line():
                assert spelled(asked.name) == flag


@pytest.mark.parametrize(
    ("python", "flag"),
    [
        (("max_error",), ("max_error", "--max-error")),
        (("max_error", 0.1), ("max_error=0.1", "--max-error 0.1")),
        (("init", "svd"), ("init='svd'", "--init svd")),
        (("force", True), ("force=True", "--force")),
        (("multiple",), ("multiple", "--round")),
        (("verify", "none"), ("verify='none'", "--no-verify")),
        (("verify", "full"), ("verify='full'", "--verify full")),
        (("per_channel", False), ("per_channel=False", "--per-tensor")),
        (("memory", False), ("memory=False", "--no-memory")),
        (("input_shapes",), ("input_shapes", "--input-shape")),
        (("rate", np.float32(0.5)), ("rate=0.5", "--rate 0.5")),
    ],
)
def test_messages_spell_options(python: tuple[Any, ...], flag: tuple[str, str]) -> None:
    assert spelled(*python) == flag[0]
    with on_the_command_line():
        assert spelled(*python) == flag[1]
    assert spelled(*python) == flag[0]


@pytest.mark.parametrize(
    ("arguments", "call", "words"),
    [
        (
            ("rewrite", DIGITS, "o.onnx", "--mode", "lean", "--init", "response"),
            lambda: onnxsep.rewrite(DIGITS, mode="lean", init="response"),
            ("mode lean does not offer init='response'", "mode lean does not offer --init response"),
        ),
        (
            ("prune", DIGITS, "o.onnx", "--sparsity", 0.5, "--round", 8),
            lambda: onnxsep.prune(DIGITS, sparsity=0.5, multiple=8),
            ("multiple is for channels", "--round is for --channels"),
        ),
        (
            ("prune", DIGITS, "o.onnx", "--sparsity", 0.5, "--no-verify", "--max-error", 1),
            lambda: onnxsep.prune(DIGITS, sparsity=0.5, verify="none", max_error=1),
            ("and verify='none' switches it off", "and --no-verify switches it off"),
        ),
        (
            ("rewrite", DIGITS, "o.onnx", "--mode", "spatial", "--only", "none"),
            lambda: onnxsep.rewrite(DIGITS, mode="spatial", only="none"),
            ("only 'none' matches the name of no", "--only 'none' matches the name of no"),
        ),
        (
            ("quantize", DIGITS, "o.onnx", "--data", "d.npz", "--percentile", 99),
            lambda: onnxsep.quantize(DIGITS, data="d.npz", percentile=99.0),
            ("percentile needs method='percentile'", "--percentile needs --method percentile"),
        ),
    ],
)
def test_the_same_words_but_for_dashes(
    arguments: tuple[Any, ...], call: Callable[[], Any], words: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as raised:
        call()
    assert words[0] in str(raised.value)
    done = command_line.run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words[1] in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_dashes_in_the_text_of_modules_outside_the_command_line() -> None:
    """Where a message names an option, it does so through ``spelled``."""
    for path in sorted((ROOT / "onnxsep").rglob("*.py")):
        # A plan is a file, whose heading is for both; the script for devices is a command line of its own.
        if "cli" not in path.parts and path.stem not in ("plan_file", "on_device"):
            assert with_dashes(path.read_text("utf-8")) == [], path
    assert with_dashes('"""A --flag."""\nraise E(f"no --max-error {x}")') == ["no --max-error "]
    assert with_dashes('raise E(worded("--json x", "y"))') == []
    assert with_dashes('x = option(flag="--a/--no-a", switches={"--b": 1})\nspell("c", "--c")') == []


def with_dashes(source: str) -> list[str]:
    """Texts that hold an option of the command line, but for docstrings and what says what options are called."""
    tree = ast.parse(source)
    apart: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            apart.add(id(node.value))  # documentation
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "spell":
            apart.update(map(id, node.args))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "worded":
            apart.update(map(id, ast.walk(node.args[0])))  # said on the command line alone
        if isinstance(node, ast.keyword) and node.arg in ("flag", "switches"):
            apart.update(map(id, ast.walk(node.value)))
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart
        if re.search(r"(?<![-\w`])--[a-z]", node.value) and node.value != "--no-"
    ]


WRITTEN = Kind("log", "log of onnxsep", lambda path: False, option=True)


@record
class Files(Running):
    data: str | os.PathLike[str] | None = option(default=None, reads="the data", help="")
    log: str | os.PathLike[str] | None = option(default=None, reads="the log", writes=WRITTEN, help="")

    def role(self, name: str) -> Any:
        return "read" if name != "log" or self.data is None else "written"


def test_paths_say_whether_they_are_read_or_written() -> None:
    runtime = RuntimeOptions(custom_op_libraries=(Path("ops.so"),))
    one = Files(data="d.npz", log=Path("l.txt"), runtime=runtime)
    assert [(read.words, str(read.named)) for read in one.reads()] == [
        ("the data", "d.npz"),
        ("a library of operators", "ops.so"),
    ]
    assert one.writes() == {WRITTEN: Path("l.txt")}
    other = Files(log="l.txt")
    assert [read.words for read in other.reads()] == ["the log"]
    assert other.writes() == {}
    statistics = RewriteOptions(mode="spatial", statistics="s.npz")
    assert [read.words for read in statistics.reads()] == ["the statistics"]
    recorded = RewriteOptions(mode="spatial", statistics="s.npz", data="d.npz")
    assert [read.words for read in recorded.reads()] == ["the data"]
    assert [path for path in recorded.writes().values() if path is not None] == ["s.npz"]
    assert not any(dataclasses.replace(recorded, dry_run=True).writes().values())


def test_check_reads_nothing() -> None:
    asked = RewriteOptions(
        mode="spatial", data="no-data.npz", preprocessing="none.toml", inputs="no.npz", statistics="s.npz"
    )
    asked.check()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Path("a") / "b", str(Path("a") / "b")),
        (np.float64(0.5), 0.5),
        (("a", Path("b")), ["a", "b"]),
        ({"x": (1, 3)}, {"x": [1, 3]}),
        (np.zeros(3), {"in memory": "ndarray"}),
        ({"x": np.zeros(3)}, {"in memory": "dict"}),
        ([np.zeros(3)], {"in memory": "list"}),
        (len, {"in memory": "builtin_function_or_method"}),
        ("\udcff", "\\udcff"),
    ],
)
def test_values_in_reports(value: Any, shown: Any) -> None:
    assert as_json(value) == shown
    assert in_memory(as_json(value)) == (isinstance(shown, dict) and "in memory" in shown)
    json.dumps(as_json(value)).encode()


def test_a_report_has_every_option() -> None:
    report = onnxsep.rewrite(DIGITS, mode="spatial", rank=0.5, dry_run=True).report
    kept = {name for name, spec in specs_of(RewriteOptions).items() if spec.kept}
    assert set(report.options) == {"model", *kept}
    assert report.options["model"] == str(DIGITS)
    assert report.options["rank"] == 0.5
    again = json.loads(report.model_dump_json())
    assert again["options"] == report.options


@pytest.mark.parametrize("given", [{"scale": "1/255", "mean": "0.5,0.25,0.125", "size": "32x48"}, {"color": "bgr"}, {}])
def test_preprocessing_goes_through_a_report(given: dict[str, Any]) -> None:
    built = PreprocessingTexts(**given).build()
    kept = json.loads(json.dumps(as_json(built)))
    texts = PreprocessingTexts.texts(kept)
    assert texts is not None
    assert PreprocessingTexts(**texts).build() == built
    revived = PreprocessingTexts.revived(kept)
    assert type(built).of(revived) == built if built is not None else revived is None
