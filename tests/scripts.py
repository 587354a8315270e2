"""The scripts of models/, which are no package: as modules, and as programs."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

from command_line import called


def load_script(path: Path) -> ModuleType:
    """Load a script of models/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"models_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def run_script_here(path: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported what costs a second already; its folder is on the path."""
    try:
        with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
            return called(lambda: runpy.run_path(str(path), run_name="__main__"), path, *arguments, cwd=cwd)
    finally:
        for beside in path.parent.glob("*.py"):
            sys.modules.pop(beside.stem, None)
