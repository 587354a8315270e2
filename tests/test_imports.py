"""What the package and its command line import, and when; the names that they have without importing them."""

import ast
import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from onnxsep.checking.options import CheckOptions
from onnxsep.compression.given import CompressOptions
from onnxsep.evaluation.options import EvaluateOptions
from onnxsep.finetuning.options import FinetuneOptions
from onnxsep.model.paths import Kind
from onnxsep.options.hints import hints_of
from onnxsep.options.lazy import lazy, loaded
from onnxsep.options.specs import Options, specs_of
from onnxsep.planner.options import PlanOptions
from onnxsep.profiling.options import ProfileOptions
from onnxsep.pruning.options import PruneOptions
from onnxsep.quantization.options import QuantizeOptions
from onnxsep.rewriting.inspect_options import InspectOptions
from onnxsep.rewriting.options import RewriteOptions

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("onnx", "onnxruntime", "numpy", "scipy", "torch", "PIL")
RECORDS = (
    *(CheckOptions, CompressOptions, EvaluateOptions, FinetuneOptions, InspectOptions, PruneOptions, QuantizeOptions),
    *(PlanOptions, ProfileOptions, RewriteOptions),
)
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "onnxsep").rglob("*.py")
    if " = lazy(" in path.read_text(encoding="utf-8")
)


def imported_by(code: str) -> list[str]:
    """Which of the heavy packages a fresh process has imported at the end of some code, in their order."""
    told = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n"
    told += f"print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.rpartition("imported:")[2].split()


def command(*words: str) -> str:
    return f"from onnxsep.__main__ import main; sys.argv = ['onnxsep', *{words!r}]; main()"


@pytest.mark.parametrize(
    "words",
    [("--version",), ("--help",), ("-h",), ("rewrite", "--help"), ("compress", "--help"), ("finetune", "--help"), ()],
    ids=" ".join,
)
def test_help_and_version_import_nothing_that_models_need(words: tuple[str, ...]) -> None:
    assert imported_by(command(*words)) == []


def test_a_wrong_option_is_refused_without_imports() -> None:
    assert imported_by(command("quantize", "a.onnx", "b.onnx", "--dta", "d")) == []


def test_the_test_sees_imports() -> None:
    assert imported_by(command("modes")) == ["onnx", "numpy"]
    assert imported_by("import onnxsep; onnxsep.load") == ["onnx", "numpy"]


def test_the_package_imports_nothing_until_a_name_is_asked_for() -> None:
    assert imported_by("import onnxsep; dir(onnxsep); onnxsep.OnnxsepError") == []
    assert "onnx" in imported_by("from onnxsep import rewrite; assert callable(rewrite)")
    assert "onnx" in imported_by("from onnxsep import *; assert callable(rewrite)")


def names_of(module: str) -> tuple[dict[str, str], dict[str, str]]:
    """The lazy names of a module with their homes: those that type checkers read, and those that there really are."""
    path = Path(str(sys.modules[module].__file__))
    block = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    checked = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    (call,) = (node for node in ast.walk(block) if isinstance(node, ast.Call))
    homes = ast.literal_eval(call.args[1])
    return checked, {name: home for home, names in homes.items() for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_type_checkers_and_the_program_read_the_same_names(module: str) -> None:
    found = import_module(module)
    checked, there = names_of(module)
    assert checked.items() >= there.items()  # what only type checkers read stands in no type that is looked at
    for name, home in there.items():
        assert getattr(found, name) is getattr(import_module(home), name)
        assert name in dir(found)
    if module.count(".") < 2 and hasattr(found, "__all__"):  # a package
        assert checked == there
        assert set(found.__all__) - {"__version__"} == set(there)


def test_a_name_that_is_not_there() -> None:
    get, _ = lazy("onnxsep.options", {"onnxsep.errors": ("OnnxsepError",)})
    with pytest.raises(AttributeError, match=r"module 'onnxsep\.options' has no attribute 'nothing'"):
        get("nothing")


@pytest.mark.parametrize("kind", RECORDS)
def test_types_of_options_are_those_that_typing_finds(kind: type[Options]) -> None:
    """typing needs all names of a module at once, so they are asked for first."""
    record: Any = kind
    for one in kind.__mro__:
        if one.__module__ in MODULES:
            for name in names_of(one.__module__)[1]:
                getattr(sys.modules[one.__module__], name)
    expected = get_type_hints(kind)
    found = hints_of(kind)
    assert found == {one.name: expected[one.name] for one in dataclasses.fields(record)}
    assert not any(isinstance(hint, str) for hint in found.values())


@pytest.mark.parametrize("kind", RECORDS)
def test_kinds_of_files_that_are_named_by_their_place_are_there(kind: type[Options]) -> None:
    for spec in specs_of(kind).values():
        if isinstance(spec.writes, str):
            assert isinstance(loaded(spec.writes), Kind)
