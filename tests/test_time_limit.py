"""A model may be a program without end: every run of it has a time limit, and says so."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxsep
from onnxsep import cli
from onnxsep.compression.manifest import Manifest
from onnxsep.errors import OptionError, TimeLimitError
from onnxsep.running.options import RuntimeTexts
from onnxsep.running.runtime import Runner, RuntimeOptions

ENDLESS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)
<float[8, 3, 3, 3] w, float[8, 8, 3, 3] v, bool t = {1}, int64 m = {9223372036854775807}> {
  a = Conv<pads = [1, 1, 1, 1]>(x, w)
  b = Conv<pads = [1, 1, 1, 1]>(a, v)
  y = Loop(m, t, b) <body = body (int64 i, bool c, float[N, 8, 8, 8] u) => (bool d, float[N, 8, 8, 8] s) {
    d = Identity(c)
    s = Mul(u, u)
  }>
}"""


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(ENDLESS)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (8, 8, 3, 3))):
        held = next((tensor for tensor in proto.graph.initializer if tensor.name == name), None)
        if held is not None:
            proto.graph.initializer.remove(held)
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, tmp_path / "endless.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((4, 3, 8, 8)).astype(np.float32), y=np.array([0, 1, 2, 1]))
    return tmp_path / "endless.onnx"


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["onnxsep", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return command


@pytest.mark.parametrize(
    "arguments",
    [
        "rewrite endless.onnx out.onnx --mode depthwise",
        "prune endless.onnx out.onnx --sparsity 0.5",
        "quantize endless.onnx out.onnx --data data.npz",
        "check endless.onnx endless.onnx",
        "evaluate endless.onnx --data data.npz --runs 0 --no-memory",
    ],
)
def test_every_command_ends(arguments: str, run: Command, endless: Path) -> None:
    status, errors = run(*arguments.split(), "--time-limit", "0.2")
    assert status == 3, errors
    assert "longer than 0.2 s" in errors
    assert "--time-limit" in errors
    assert "quantize" in arguments or "endless.onnx" in errors
    assert "internal error" not in errors
    assert not endless.with_name("out.onnx").exists()


def test_no_verify_needs_no_time(run: Command, endless: Path) -> None:
    status, errors = run("rewrite", "endless.onnx", "out.onnx", "--mode", "depthwise", "--no-verify", "--quiet")
    assert status == 0, errors
    assert endless.with_name("out.onnx").exists()


def test_python_names_the_model(endless: Path) -> None:
    runner = Runner(onnxsep.load(endless), RuntimeOptions(threads=1, time_limit=0.1))
    for _ in range(2):  # the session stays usable
        with pytest.raises(TimeLimitError, match=r"endless\.onnx.* longer than 0\.1 s.*; time_limit gives"):
            runner({"x": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0", 0), ("0.25", 0.25)]
)
def test_times(text: str, seconds: float) -> None:
    assert RuntimeTexts(time_limit=text).build().time_limit == seconds


@pytest.mark.parametrize("text", ["", "m", "ten", "-1", "nan", "inf", "1e400", "10 d", "10M"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(OptionError, match="time_limit"):
        RuntimeTexts(time_limit=text).build()


def test_default_is_ten_minutes() -> None:
    assert RuntimeOptions().time_limit == RuntimeTexts().build().time_limit == 600


def test_a_time_limit_is_no_part_of_a_repeated_run() -> None:
    """Threads and provider are those of the manifest, unless others are given now."""
    manifest = Manifest.model_construct(threads=3, provider="P", custom_op_libraries=())
    assert manifest.runtime(None) == RuntimeOptions(3, "P")
    assert manifest.runtime(RuntimeOptions(time_limit=5)) == RuntimeOptions(3, "P", time_limit=5)
    given = replace(RuntimeOptions(time_limit=5), threads=2)
    assert manifest.runtime(given) == given
