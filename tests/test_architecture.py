"""The layers of ARCHITECTURE.md hold: a module imports from its own layer or lower ones, never from higher ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
ENTRIES = {"__init__", "__main__", "_version"}  # what users import and start; they stand above or below all layers


def layers() -> dict[str, int]:
    """The number of each module's layer, as the document lists them."""
    block = re.search(r"## Layers.*?\n\n((?:    .*\n)+)", TEXT)
    assert block
    return {
        name: number
        for number, line in enumerate(block[1].splitlines())
        for name in (word.strip().removesuffix("/*") for word in line.split(","))
    }


def modules() -> Iterator[tuple[str, Path]]:
    """(name, file) of every module; those of a package within the package share the package's layer."""
    for path in sorted((ROOT / "onnxsep").rglob("*.py")):
        parts = path.relative_to(ROOT / "onnxsep").with_suffix("").parts
        yield parts[0], path
    for path in sorted((ROOT / "passes").glob("*.py")):
        yield "passes", path


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "onnxsep")
    return found


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(*item, id=str(item[1].relative_to(ROOT))) for item in modules()]
)
def test_no_module_imports_from_a_higher_layer(name: str, path: Path) -> None:
    if name in ENTRIES:
        return
    order = layers()
    assert name in order, f"{name} has no layer in ARCHITECTURE.md"
    for target in imported(path):
        top, _, rest = target.partition(".")
        if top != "onnxsep" or not rest or rest == "_version":
            continue
        other = rest.split(".")[0]
        if other in order:
            assert order[other] <= order[name], f"{name} imports {other}, which is in a higher layer"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("onnx_graphsurgeon", {"graph"}),
        ("onnxruntime", {"runtime", "quantization"}),
        ("torch", {"training"}),
    ],
)
def test_only_one_module_imports(library: str, allowed: set[str]) -> None:
    users = {name for name, path in modules() if any(target.split(".")[0] == library for target in imported(path))}
    assert users == allowed


def test_the_quantisation_tools_of_the_runtime_are_behind_one_module() -> None:
    users = {
        path.stem
        for name, path in modules()
        if name == "quantization" and any(target.split(".")[0] == "onnxruntime" for target in imported(path))
    }
    assert users == {"toolkit"}


def test_linear_algebra_knows_no_onnx() -> None:
    assert {target.split(".")[0] for target in imported(ROOT / "onnxsep" / "linalg.py")} <= {
        *("numpy", "scipy", "typing", "collections", "math")
    }


def test_every_layer_names_modules_that_exist() -> None:
    assert set(layers()) == {name for name, _ in modules()} - ENTRIES


def test_document_names_files_that_exist() -> None:
    for name in re.findall(r"`((?:tests|passes|benchmarks|models|onnxsep)/[\w/.]+)`", TEXT):
        assert (ROOT / name).exists(), name
