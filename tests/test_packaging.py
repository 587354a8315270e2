"""What a release holds: every package, and in the source distribution all that the repository does."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def test_every_folder_with_modules_is_a_package_that_is_installed() -> None:
    """They are listed, because finding them would miss passes/, which is installed as onnxsep.passes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "onnxsep").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders} | {"onnxsep.passes"}
    assert set(settings["packages"]) == names
    assert len(settings["packages"]) == len(names)
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_the_source_distribution_holds_what_the_repository_does(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("this is no clone of the repository")
    files = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    copy = tmp_path / "copy"
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=copy, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert set(files) - {".gitignore"} <= packed
    assert not any(name.endswith((".pyc", ".whl", ".log", ".checkpoint")) for name in packed)
