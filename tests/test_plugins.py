"""A mode of another package: built as a real package, installed into a folder, found through its entry point."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from marked import marked

import onnxsep
from onnxsep.errors import ModeNotFoundError

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"

PYPROJECT = """
    [build-system]
    requires = ["setuptools"]
    build-backend = "setuptools.build_meta"

    [project]
    name = "tiny-modes"
    version = "1.0"

    [project.entry-points."onnxsep.modes"]
    tiny = "tiny_modes:Tiny"
    broken = "tiny_modes:Absent"

    [tool.setuptools]
    py-modules = ["tiny_modes"]
"""

# A k x k Conv with fewer outputs, then 1 x 1 back to all: a complete mode in one file.
MODULE = """
    from dataclasses import replace

    import numpy as np
    from onnxsep.modes import INPUT, ConvLayer, Factors, Mode, RankAxis, squared_singular_values, truncated_svd


    class Tiny(Mode):
        name = "tiny"
        summary = "k x k with fewer outputs, then 1 x 1"

        def accepts(self, conv):
            return "grouped Conv" if conv.group > 1 else None

        def rank_axis(self, conv, chosen):
            full = min(conv.out_channels, conv.weight_size // conv.out_channels)
            return None if chosen else RankAxis("channels", full=full, paper=max(1, full // 4))

        def layers(self, conv, rank):
            narrow = replace(conv, out_channels=rank[0], bias=False)
            wide = conv.pointwise(rank[0], conv.out_channels, bias=conv.bias)
            return ConvLayer("narrow", INPUT, narrow), ConvLayer("wide", "narrow", wide)

        def spectrum(self, task, chosen):
            return squared_singular_values(task.weight.reshape(1, task.conv.out_channels, -1))

        def factorize(self, task, rank):
            u, s, vt = truncated_svd(task.weight.reshape(task.conv.out_channels, -1), rank[0])
            root = np.sqrt(s)
            narrow = (root[:, None] * vt).reshape(rank[0], *task.weight.shape[1:])
            return Factors([narrow, (u * root).reshape(*u.shape, *(1,) * task.conv.dims)])

        def reconstruct(self, conv, factors):
            narrow, wide = factors.weights
            return (wide.reshape(wide.shape[:2]) @ narrow.reshape(narrow.shape[0], -1)).reshape(conv.weight_shape)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package was installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(textwrap.dedent(PYPROJECT))
    (source / "tiny_modes.py").write_text(textwrap.dedent(MODULE))
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True, capture_output=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run onnxsep with the package's folder on the path."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = (
        [sys.executable, "-P", "-m", "onnxsep"] if sys.version_info >= (3, 11) else [sys.executable, "-m", "onnxsep"]
    )
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_mode_of_another_package_is_listed_and_rewrites(installed: Path, tmp_path: Path) -> None:
    assert "tiny: k x k with fewer outputs, then 1 x 1" in run(installed, "modes").stdout
    report = tmp_path / "report.json"
    done = run(installed, "rewrite", str(DIGITS), str(tmp_path / "out.onnx"), "--mode", "tiny", "--report", str(report))
    assert done.returncode == 0, done.stderr
    data = json.loads(report.read_text())
    assert data["totals"]["replaced"] == 6  # all 3 x 3 Convs but the first
    assert data["verification"]["ran"]
    made = [node for node in marked(onnxsep.load(tmp_path / "out.onnx").proto).graph.node if node.metadata_props]
    assert made
    assert {entry.value for node in made for entry in node.metadata_props if entry.key == "onnxsep.mode"} == {"tiny"}


def test_mode_of_another_package_is_exact_at_full_rank(installed: Path, tmp_path: Path) -> None:
    done = run(
        installed,
        *("rewrite", str(DIGITS), str(tmp_path / "out.onnx"), "--mode", "tiny"),
        *("--rank", "full", "--force", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["relative"] < 1e-4


def test_package_that_cannot_be_loaded_is_named_and_does_not_harm_the_others(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "rewrite", str(DIGITS), str(tmp_path / "out.onnx"), "--mode", "broken")
    assert done.returncode == 1
    assert "'broken' is installed but cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert "\ndepthwise: " in run(installed, "modes").stdout


def test_unknown_mode_names_the_known_ones() -> None:
    known = ", ".join(onnxsep.available_modes())
    with pytest.raises(
        ModeNotFoundError, match=f"unknown mode 'depthwize', did you mean 'depthwise'. The installed modes are: {known}"
    ):
        onnxsep.rewrite(DIGITS, mode="depthwize")
