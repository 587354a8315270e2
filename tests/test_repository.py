"""What other repositories use of this one: the Action, the hook of pre-commit, the image of Docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run

import onnxsep

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
ON_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="needs bash")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its reference, the original, and data: images with the classes that it gives them."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copy(DIGITS, folder / "original.onnx")
    result = onnxsep.rewrite(DIGITS, mode="spatial", verify="none")
    result.save(folder / "small.onnx")
    onnxsep.check(result.model, folder / "small.txt", update=True)
    images = np.random.default_rng(0).random((12, 1, 8, 8)).astype(np.float32)
    from onnxsep.running.runtime import Runner, RuntimeOptions

    (scores,) = Runner(onnxsep.load(DIGITS), RuntimeOptions())({"image": images}).values()
    np.savez(folder / "data.npz", x=images, y=scores.argmax(axis=1))
    return folder


def gate(folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """What the script of the Action prints, as GitHub runs it, and the summary of the job."""
    summary = folder / "summary.md"
    summary.unlink(missing_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    names = ("REFERENCE", "CHECK_OPTIONS", "BASELINE", "DATA", "LIMITS")
    environment = {
        **os.environ,
        "PATH": path,
        "GITHUB_STEP_SUMMARY": str(summary),
        **dict.fromkeys(names, ""),
        **inputs,
    }
    command = ["bash", str(ROOT / "action" / "gate.sh")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return done, summary.read_text(encoding="utf-8") if summary.is_file() else ""


@ON_WINDOWS
def test_the_action_passes_what_is_as_it_should_be(repository: Path) -> None:
    done, summary = gate(
        repository,
        MODEL="small.onnx",
        REFERENCE="small.txt",
        BASELINE="original.onnx",
        DATA="data.npz",
        LIMITS="--max-size-ratio 0.9 --runs 1 --no-memory",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::error" not in done.stdout
    assert "## onnxsep check" in summary
    assert "## onnxsep evaluate" in summary
    assert "top-1 accuracy" in summary


@ON_WINDOWS
def test_the_action_says_what_differs_and_what_was_missed(repository: Path) -> None:
    done, summary = gate(
        repository,
        MODEL="small.onnx",
        REFERENCE="original.onnx",
        CHECK_OPTIONS="--no-outputs",
        BASELINE="original.onnx",
        DATA="data.npz",
        LIMITS="--max-size-ratio 0.5 --runs 1 --no-memory",
    )
    assert done.returncode == 3
    errors = [line for line in done.stdout.splitlines() if line.startswith("::error")]
    assert any("check structure" in line for line in errors)
    assert any(line.startswith("::error title=onnxsep evaluate::") and "size" in line for line in errors)
    assert "structure" in summary


@ON_WINDOWS
@pytest.mark.parametrize(("inputs", "said"), [({}, "a reference"), ({"BASELINE": "original.onnx"}, "needs data")])
def test_the_action_refuses_what_is_missing(repository: Path, inputs: dict[str, str], said: str) -> None:
    done, summary = gate(repository, MODEL="small.onnx", **inputs)
    assert done.returncode == 2
    assert said in done.stdout
    assert not summary


def test_the_action_gives_its_script_every_input() -> None:
    yaml = pytest.importorskip("yaml", reason="needs pyyaml, which pre-commit brings")
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    given = action["runs"]["steps"][-1]["env"]
    read = set(re.findall(r"\$\{?([A-Z_]+)", (ROOT / "action" / "gate.sh").read_text(encoding="utf-8")))
    assert read - {"GITHUB_STEP_SUMMARY"} == set(given) - {"ACTION_PATH"}
    named = {found for value in given.values() for found in re.findall(r"inputs\.([\w-]+)", value)}
    assert named == set(action["inputs"]) - {"python-version"}


def test_the_hook_of_pre_commit(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pre_commit", reason="needs pre-commit")
    yaml = pytest.importorskip("yaml")
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    # The environment of the tests has onnxsep already.
    hook |= {"language": "system", "entry": hook["entry"].replace("python", sys.executable, 1)}
    (tmp_path / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": [hook]}]}))
    for name in ("small.onnx", "small.txt", "original.onnx"):
        shutil.copy(repository / name, tmp_path / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)

    def commit() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
        environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = commit()
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(repository / "original.onnx", tmp_path / "small.onnx")
    subprocess.run([*git, "add", "."], cwd=tmp_path, check=True)
    done = commit()
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_the_image_takes_what_is_there() -> None:
    steps = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [name for line in steps if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("suffix", ["html", "json"])
def test_check_writes_a_report(repository: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"report.{suffix}"
    done = run("check", repository / "small.onnx", repository / "small.txt", "--report", target)
    assert done.returncode == 0, done.stderr
    text = target.read_text(encoding="utf-8")
    assert "structure" in text
    if suffix == "json":
        assert run("report", target).returncode == 0


def test_check_does_not_write_its_report_over_the_reference(repository: Path) -> None:
    before = (repository / "small.txt").read_bytes()
    done = run("check", repository / "small.onnx", repository / "small.txt", "--report", repository / "small.txt")
    assert done.returncode != 0
    assert (repository / "small.txt").read_bytes() == before
