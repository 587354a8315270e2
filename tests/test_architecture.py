"""The folders of ARCHITECTURE.md hold: a module imports from its own folder or lower ones, never from higher ones."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
ENTRIES = {"__init__", "__main__", "_version"}  # what users import and start; they stand above or below all folders
LONGEST = 320  # lines of a module
MOST_PARAMETERS = 12  # of a function, written by hand


def folders() -> dict[str, int]:
    """The number of each folder, from below, as the document lists them."""
    block = re.search(r"## Folders.*?\n\n((?:    .*\n)+)", TEXT)
    assert block
    return {line.strip(): number for number, line in enumerate(block[1].splitlines())}


def modules() -> Iterator[tuple[str, Path]]:
    """(folder, file) of every module."""
    for path in sorted((ROOT / "onnxsep").rglob("*.py")):
        parts = path.relative_to(ROOT / "onnxsep").with_suffix("").parts
        yield parts[0], path
    for path in sorted((ROOT / "passes").glob("*.py")):
        yield "passes", path


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Imports and functions, anywhere in a file."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    return tuple(node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds))


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "onnxsep")
    return frozenset(found)


def libraries(folder: str) -> dict[str, set[str]]:
    """Top-level names that the modules of a folder import, by module."""
    return {
        path.stem: {target.split(".")[0] for target in imported(path)} for name, path in modules() if name == folder
    }


def test_no_module_imports_from_a_higher_folder() -> None:
    order = folders()
    higher = []
    for name, path in modules():
        if name in ENTRIES:
            continue
        assert name in order, f"{name} is not in ARCHITECTURE.md"
        for target in imported(path):
            top, _, rest = target.partition(".")
            other = rest.split(".")[0]
            if top == "onnxsep" and other in order and order[other] > order[name]:
                higher.append(f"{path.relative_to(ROOT)} imports {other}, which is in a higher folder")
    assert not higher


def test_nothing_but_entries_errors_and_folders_is_directly_in_the_package() -> None:
    files = {path.name for path in (ROOT / "onnxsep").iterdir() if path.is_file()}
    assert files == {*(f"{name}.py" for name in ENTRIES), "errors.py", "py.typed"}


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for _, path in modules()}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST}


def test_functions_have_few_parameters() -> None:
    many = []
    for _, path in modules():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                if count > MOST_PARAMETERS:
                    many.append(f"{path.relative_to(ROOT)}: {node.name} has {count} parameters")
    assert not many


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("onnx_graphsurgeon", {"graph"}),
        ("onnxruntime", {"running", "quantization", "profiling"}),
        ("torch", {"training"}),
        ("rich", {"reporting"}),
    ],
)
def test_only_these_folders_import(library: str, allowed: set[str]) -> None:
    users = {name for name, path in modules() if any(target.split(".")[0] == library for target in imported(path))}
    assert users == allowed


def test_graphsurgeon_is_behind_one_module() -> None:
    assert {name for name, found in libraries("graph").items() if "onnx_graphsurgeon" in found} == {"view"}


def test_the_runtime_is_behind_one_module_its_tools_behind_another_and_a_script_apart() -> None:
    assert {name for name, found in libraries("running").items() if "onnxruntime" in found} == {"runtime"}
    assert {name for name, found in libraries("quantization").items() if "onnxruntime" in found} == {"toolkit"}
    assert {name for name, found in libraries("profiling").items() if "onnxruntime" in found} == {"on_device"}


@pytest.mark.parametrize("folder", ["algebra", "layers", "options"])
def test_folders_that_know_no_onnx(folder: str) -> None:
    assert not {library for found in libraries(folder).values() for library in found if library.startswith("onnx")} - {
        "onnxsep"
    }


def test_layers_import_nothing_of_ours_but_errors() -> None:
    for name, path in modules():
        if name == "layers":
            ours = {target for target in imported(path) if target.startswith("onnxsep.")}
            assert all(target.startswith(("onnxsep.layers", "onnxsep.errors")) for target in ours), path


def test_modes_import_what_they_need_through_one_door() -> None:
    for name, path in modules():
        if name == "passes":
            ours = {target for target in imported(path) if target.startswith("onnxsep")}
            assert all(target == "onnxsep.modes" or target.startswith("onnxsep.passes") for target in ours), path


def test_the_script_for_devices_imports_the_timing_alone() -> None:
    path = ROOT / "onnxsep" / "profiling" / "on_device.py"
    assert {one for one in imported(path) if one.startswith("onnxsep")} == {"onnxsep.running.timing"}
    timing = ROOT / "onnxsep" / "running" / "timing.py"
    assert not {one for one in imported(timing) if one.startswith("onnxsep")}
    users = {str(path) for _, path in modules() if "onnxsep.profiling.on_device" in imported(path)}
    assert not users


def test_nothing_imports_the_command_line() -> None:
    for name, path in modules():
        if name not in {"cli", *ENTRIES}:
            assert not any(target.startswith("onnxsep.cli") for target in imported(path)), path


def test_every_folder_of_the_document_exists() -> None:
    assert set(folders()) == {name for name, _ in modules()} - ENTRIES


def test_document_names_files_that_exist() -> None:
    for name in re.findall(r"`((?:tests|passes|benchmarks|models|onnxsep)/[\w/.]+)`", TEXT):
        assert (ROOT / name).exists(), name
