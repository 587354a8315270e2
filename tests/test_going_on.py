"""A plan that was interrupted goes on: what was measured is kept, for this model on these data alone."""

import linecache
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import MODEL, ONE_THREAD, X, load_script
from command_line import run
from worker_tasks import Counting

import onnxsep
from onnxsep import PlanResult
from onnxsep.errors import OptionError
from onnxsep.planner.cache import MARKER

QUICK: dict[str, Any] = {"target": "params=0.7", "data": X, "positions": 8, "rounds": 1, "only": "conv_[ce]"}
QUICK["runtime"] = ONE_THREAD


def plan(model: Any = MODEL, **options: Any) -> PlanResult:
    return onnxsep.plan(model, **{**QUICK, "modes": ["spatial"], **options})


def fits(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The plan of a run that nothing disturbs, and how many fits it takes."""
    folder = tmp_path_factory.mktemp("whole")
    made = plan(modes=[Counting(folder / "fits")], cache=folder / "c")
    return made.plan.text(), fits(folder / "fits")


@pytest.mark.parametrize("share", [0.55, 0.95])
def test_an_interrupted_run_goes_on_and_comes_to_the_same_plan(
    share: float, whole: tuple[str, int], tmp_path: Path
) -> None:
    text, count = whole
    stop = round(share * count)
    with pytest.raises(KeyboardInterrupt):
        plan(modes=[Counting(tmp_path / "first", stop)], cache=tmp_path / "c")
    assert fits(tmp_path / "first") == stop
    again = plan(modes=[Counting(tmp_path / "second")], cache=tmp_path / "c")
    assert again.plan.text() == text
    # What is lost is at most the layer that was in work, and what carries a plan out.
    assert fits(tmp_path / "second") < count - stop + 0.3 * count
    assert any("are used" in note for note in again.report.measuring)
    third = plan(modes=[Counting(tmp_path / "third")], cache=tmp_path / "c")
    assert third.plan.text() == text
    assert fits(tmp_path / "third") == 0


def test_another_budget_uses_what_was_measured(tmp_path: Path) -> None:
    plan(modes=[Counting(tmp_path / "first")], cache=tmp_path / "c", rounds=0)
    other = plan(modes=[Counting(tmp_path / "second")], cache=tmp_path / "c", rounds=0, target="params=0.8")
    assert other.plan.text() == plan(modes=[Counting(tmp_path / "third")], rounds=0, target="params=0.8").plan.text()
    assert fits(tmp_path / "second") < fits(tmp_path / "third") / 2  # only what carries the plan out


def test_a_mode_that_its_author_has_changed_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from onnxsep.passes.spatial import Spatial\n\n\nclass Mine(Spatial):\n    name = 'mine'\n"
    notes = []
    for more in ("", "", "    summary = 'another'\n"):
        linecache.clearcache()
        (tmp_path / "mine.py").write_text(text + more)
        module = load_script(tmp_path / "mine.py")
        monkeypatch.setitem(sys.modules, "mine", module)  # as an import does
        mode = module.Mine()
        notes.append(plan(modes=[mode], cache=tmp_path / "c", rounds=0, only="conv_c").report.measuring)
    assert notes[0] == ()
    assert "are used" in notes[1][0]
    assert "was measured with other options" in notes[2][0]


def changed() -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(MODEL)
    weight = other.graph.initializer[1]
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return other


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (changed(), {}, "another model"),
        (MODEL, {"data": X + np.float32(0.01)}, "other data"),
        (MODEL, {"seed": 1}, "other data .*and other options"),
        (changed(), {"data": X[::-1].copy()}, "another model .* and other data"),
    ],
)
def test_what_was_measured_of_something_else_is_not_used_and_that_is_said(
    model: onnx.ModelProto, options: dict[str, Any], words: str, tmp_path: Path, made: Path
) -> None:
    fresh, kept = plan(model, rounds=0, **options), plan(model, rounds=0, cache=made, **options)
    assert kept.plan.text() == fresh.plan.text()
    notes = " ".join(kept.report.measuring)
    assert "so that it is not used here" in notes
    assert re.search(f"measured with {words}", notes)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "made"
    plan(cache=folder, rounds=0)
    return folder


@pytest.fixture
def made(kept: Path, tmp_path: Path) -> Path:
    """A cache of its own for each test."""
    return Path(shutil.copytree(kept, tmp_path / "made"))


def test_damaged_items_are_measured_again(made: Path) -> None:
    text = plan(rounds=0).plan.text()
    items = sorted(path for path in made.rglob("*.json") if path.name != MARKER)
    for number, path in enumerate(items):
        content = path.read_bytes()
        damaged = (b"", content[: len(content) // 2], b"[1]", content.replace(b'"float32"', b'"object"'))
        path.write_bytes(damaged[number % 4])
    assert plan(rounds=0, cache=made).plan.text() == text


def test_a_folder_of_the_users_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OptionError, match="no cache of onnxsep"):
        plan(cache=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_the_command_line_keeps_it_beside_the_result(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    words = ("--data", "x.npy", "--target", "params=0.7", "--positions", 8, "--mode", "spatial", "--threads", 1)
    done = run("rewrite", "m.onnx", "o.onnx", *words, "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.cache" / MARKER).exists()
    first = (tmp_path / "o.onnx").read_bytes()
    done = run("rewrite", "m.onnx", "o.onnx", *words, "--no-verify", cwd=tmp_path)
    assert "o.cache holds" in done.stdout
    assert (tmp_path / "o.onnx").read_bytes() == first
    done = run("rewrite", "m.onnx", "q.onnx", "--mode", "spatial", "--cache", "c", cwd=tmp_path)
    assert done.returncode == 1
    assert "--cache is for --target" in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_in_a_terminal_ends_all_workers_and_keeps_what_they_measured(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    words = ["--data", "x.npy", "--target", "params=0.6", "--mode", "spatial", "--workers", "2", "--threads", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "onnxsep", "plan", "m.onnx", "p.toml", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(onnxsep.__path__[0]).parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 120
        while not (items := kept_in(tmp_path)) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        assert items
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode() == "onnxsep: interrupted; the same command goes on with what is in p.cache\n"
    assert kept_in(tmp_path) >= items
    assert not is_there(process.pid)


def is_there(group: int) -> bool:
    """Whether a process of a group is left after some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def kept_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("p.cache/measured-*/*.json") if path.name != "about.json"}
