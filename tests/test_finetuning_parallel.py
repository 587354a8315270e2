"""Several processes that train one model, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from digits import digits_in
from finetuning_models import (
    DIGITS,
    chain,
    initializers,
    needs_torch,
    small_data,
    small_model,
    write_data,
)
from onnx import numpy_helper
from PIL import Image
from random_examples import DEEP

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import OptionError
from onnxsep.model.io import Model, load
from onnxsep.training.batches import Batches
from onnxsep.training.devices import check_device, find_device

pytestmark = [
    needs_torch,
    pytest.mark.skipif(sys.platform == "win32", reason="torch for Windows has no libuv, which torchrun wants"),
]
# One thread in each process; and no network: the processes meet on this machine.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "onnxsep"]


def both(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    command = [*TORCHRUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT, timeout=300)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def same(one: Path, other: Path, start: Path) -> None:
    """The weights of two runs agree far better than they differ from those at the start."""
    first, second, before = weights(one), weights(other), weights(start)
    moved = 0.0
    for name, values in first.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, second[name], rtol=1e-4, atol=1e-5)
            moved = max(moved, float(np.abs(values - before[name]).max()))
    assert moved > 1e-2


# ---------------------------------------------------------------- two equal one


Options = list[object]
ONE_THREAD: Options = ["--threads", 1]


def digits(folder: Path) -> Options:
    """The digits model, with crops and flips on its own inputs left out: they are too small to be moved."""
    digits_in(folder)
    onnxsep.rewrite(DIGITS, mode="depthwise", rank=1, verify="none").save(folder / "in.onnx")
    # 285 samples are trained on: nine steps of 31, and batches of 15 and 16 samples.
    options = ["--data", "train.npz", "--samples", 317, "--batch", 31, "--epochs", 2]
    return [*options, "--teacher", DIGITS, "--batch-norm", "frozen", "--json"]


def moved(folder: Path) -> Options:
    write_data(folder / "data.npz", 60)
    onnxsep.save(small_model(norm=False, batch=4), folder / "in.onnx")
    options = ["--data", "data.npz", "--batch", 12, "--epochs", 2, "--validation", 0.2]
    return [*options, "--augment", "crop,flip", "--optimizer", "adam", "--rate", 0.01, "--quiet"]


def beside(folder: Path) -> Options:
    """A second output, of which labels say nothing."""
    model = small_model(norm=False)
    graph = model.proto.graph
    graph.node.append(onnx.helper.make_node("Conv", ["c", "beside"], ["picture"]))
    graph.initializer.append(numpy_helper.from_array(np.ones((2, 6, 1, 1), np.float32), "beside"))
    shape: list[str | int | None] = ["n", 2, 16, 16]
    graph.output.append(onnx.helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, shape))
    onnxsep.save(model, folder / "in.onnx")
    write_data(folder / "data.npz", 60)
    return ["--data", "data.npz", "--batch", 16, "--epochs", 2, "--augment", "none", "--quiet"]


def norms(folder: Path) -> Options:
    write_data(folder / "data.npz", 64)
    onnxsep.save(chain(8), folder / "in.onnx")
    return ["--data", "data.npz", "--epochs", 2, "--quiet", "--report", "report.json", "--batch", 16]


def shares_too_small(folder: Path) -> Options:
    return [*norms(folder)[:-1], 12, "--batch-norm", "insert"]


def diverges(folder: Path) -> Options:
    write_data(folder / "data.npz", 64)
    onnxsep.save(small_model(norm=False), folder / "in.onnx")
    return ["--data", "data.npz", "--batch", 16, "--rate", 1e38, "--schedule", "constant", "--quiet"]


def broken_image(folder: Path) -> Options:
    """An image of which half is missing, in the share of the second process alone."""
    data = small_data(40)
    for place, (pixels, label) in enumerate(zip(data["x"], data["y"], strict=True)):
        images = folder / "images" / str(label)
        images.mkdir(parents=True, exist_ok=True)
        values = np.clip(128 + 30 * pixels.transpose(1, 2, 0), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(images / f"{place:02}.png")
    model = small_model(norm=False)
    onnxsep.save(model, folder / "in.onnx")
    # The first step's second half is that of the second process.
    opened = open_data(folder / "images", model)
    batches = Batches(opened, range(40), 16, 0.1, 0)
    (second,) = batches.shares(batches.steps(np.random.default_rng([0, 1]))[0], 1, 2)
    assert opened.names is not None
    broken = folder / "images" / opened.names[second.samples[0]]
    broken.write_bytes(broken.read_bytes()[:100])
    return ["--data", "images", "--batch", 16, "--epochs", 2, "--quiet", "--augment", "none"]


CASES = (digits, moved, beside, norms, shares_too_small, diverges, broken_image)


@dataclass(frozen=True)
class Case:
    """A command that two processes ran together: its folder, its options, what each process printed."""

    folder: Path
    options: Options
    processes: list[dict[str, Any]]

    def alone(self) -> subprocess.CompletedProcess[str]:
        """The same in one process."""
        return run("finetune", "in.onnx", "one.onnx", *self.options, *ONE_THREAD, cwd=self.folder)

    def agrees(self) -> None:
        """Both processes got through, and gave what one gives."""
        assert [done["status"] for done in self.processes] == [0, 0], self.processes
        same(self.folder / "one.onnx", self.folder / "two.onnx", self.folder / "in.onnx")

    def refused(self, words: str) -> None:
        """Both processes stopped; one of them says why."""
        assert [done["status"] for done in self.processes] == [1, 1], self.processes
        errors = "".join(done["stderr"] for done in self.processes)
        assert errors.count("onnxsep: error:") == 1
        assert words in errors
        assert not (self.folder / "two.onnx").exists()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All cases, run by the same two processes: to start them costs more than what they do."""
    place = tmp_path_factory.mktemp("together")
    folders = {case.__name__: place / case.__name__ for case in CASES}
    for folder in folders.values():
        folder.mkdir()
    options = {case.__name__: case(folders[case.__name__]) for case in CASES}
    commands = [
        {
            "folder": str(folders[name]),
            "arguments": ["finetune", "in.onnx", "two.onnx", *map(str, given), "--threads", "1"],
        }
        for name, given in options.items()
    ]
    (place / "commands.json").write_text(json.dumps(commands))
    script = Path(__file__).with_name("several_commands.py")
    started = [*TORCHRUN[:-2], script, place / "commands.json", place / "out"]
    done = subprocess.run(
        list(map(str, started)), capture_output=True, text=True, check=False, cwd=place, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads((place / f"out.{number}").read_text()) for number in range(2)]
    return {
        name: Case(folders[name], given, [process[place_] for process in printed])
        for place_, (name, given) in enumerate(options.items())
    }


def test_two_processes_give_what_one_gives(together: dict[str, Case]) -> None:
    case = together["digits"]
    one = case.alone()
    assert one.returncode == 0, one.stderr
    case.agrees()
    assert case.processes[1]["stdout"] == ""  # one report, not two
    first, second = json.loads(one.stdout), json.loads(case.processes[0]["stdout"])
    assert (first["used"]["processes"], second["used"]["processes"]) == (1, 2)
    for done, other in zip(first["epochs"], second["epochs"], strict=True):
        assert done["training"]["loss"] == pytest.approx(other["training"]["loss"], rel=1e-3)
        assert done["training"]["accuracy"] == other["training"]["accuracy"]
        assert done["validation"]["loss"] == pytest.approx(other["validation"]["loss"], rel=1e-3)
    assert not list(case.folder.glob("*.checkpoint"))


def test_crops_flips_and_one_batch_size(together: dict[str, Case]) -> None:
    """Each image is moved as it is in one process, and feeds of four samples are shared out whole."""
    case = together["moved"]
    one = case.alone()
    assert one.returncode == 0, one.stderr
    case.agrees()


def test_weights_that_the_loss_does_not_reach(together: dict[str, Case]) -> None:
    """An output that labels say nothing about: its weight stays, in one process and in two."""
    case = together["beside"]
    one = case.alone()
    assert one.returncode == 0, one.stderr
    case.agrees()
    for path in ("one.onnx", "two.onnx"):
        assert (weights(case.folder / path)["beside"] == 1).all()
    assert not any("Warning" in done["stderr"] for done in case.processes)


def test_norms_see_the_share_of_a_process(together: dict[str, Case]) -> None:
    case = together["norms"]
    assert [done["status"] for done in case.processes] == [0, 0], case.processes
    report = json.loads((case.folder / "report.json").read_text())
    assert report["used"]["batch_norm"] == "insert"
    assert any("saw the 8 samples of a process at a time" in note for note in report["notes"])
    together["shares_too_small"].refused("not 6 in each process")


def test_a_loss_that_is_not_finite_ends_all(together: dict[str, Case]) -> None:
    together["diverges"].refused("of epoch 1; lower the learning rate")


def test_an_error_of_one_process_ends_all(together: dict[str, Case]) -> None:
    """Only the process whose share holds the broken image meets it; both stop, and one says so."""
    case = together["broken_image"]
    (broken,) = (path for path in (case.folder / "images").rglob("*.png") if path.stat().st_size == 100)
    case.refused(broken.name)
    assert not any("internal error" in done["stderr"] for done in case.processes)


@pytest.mark.skipif(not DEEP, reason="it takes as long as a hundred others: make deep")
def test_a_resumed_run_of_two(tmp_path: Path) -> None:
    """The first process alone reads the checkpoint, and both go on from it."""
    write_data(tmp_path / "data.npz", 64)
    onnxsep.save(small_model(norm=False), tmp_path / "in.onnx")
    options = ["--data", "data.npz", "--batch", 16, "--epochs", 30, "--threads", 1, "--augment", "crop"]
    with subprocess.Popen(
        [*TORCHRUN, "finetune", "in.onnx", "out.onnx", *map(str, options), "--quiet"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not (tmp_path / "out.onnx.checkpoint").exists():
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert errors.count("holds the best so far") == 1, errors
    assert initializers(load(tmp_path / "out.onnx")) != initializers(small_model(norm=False))
    rest = both("finetune", "in.onnx", "out.onnx", *options, "--resume", "--json", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    report = json.loads(rest.stdout)
    assert 0 < report["resumed_after"] < 30
    assert [done["epoch"] for done in report["epochs"]] == list(range(1, 31))
    whole = run("finetune", "in.onnx", "whole.onnx", *options, "--quiet", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    same(tmp_path / "whole.onnx", tmp_path / "out.onnx", tmp_path / "in.onnx")


# ---------------------------------------------------------------- nobody waits


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    write_data(tmp_path / "data.npz", 64)
    onnxsep.save(small_model(norm=False), tmp_path / "in.onnx")
    code = (
        "import os, signal, sys\n"
        "from onnxsep.training import trainer\n"
        "own = trainer.Trainer._step\n"
        "def step(self, *given):\n"
        "    if os.environ['RANK'] == '1' and len(self._history) == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return own(self, *given)\n"
        "trainer.Trainer._step = step\n"
        "from onnxsep.cli import main\n"
        "main()\n"
    )
    (tmp_path / "dies.py").write_text(code)
    command = [*TORCHRUN[:-2], "dies.py", "finetune", "in.onnx", "out.onnx", "--data", "data.npz", "--batch", "16"]
    options = ["--threads", "1", "--quiet"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 1
    assert "exitcode  : -9" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert (tmp_path / "out.onnx.checkpoint").exists()  # it can be resumed


# ---------------------------------------------------------------- shares and devices


@pytest.mark.parametrize(("fixed", "size"), [(None, 16), (None, 3), (4, 12), (4, 4)])
def test_shares_are_the_step(fixed: int | None, size: int) -> None:
    model: Model = small_model(batch=fixed or "n")
    batches = Batches(open_data(small_data(60), model), range(60), size, 0, 0)
    for step in batches.steps(np.random.default_rng(0)):
        flat = [sample for part in step for sample in part]
        shares = [share for process in range(5) for share in batches.shares(step, process, 5)]
        counted = [share for share in shares if share.weight]
        assert [sample for share in counted for sample in share.samples] == flat
        assert sum(share.weight for share in counted) == pytest.approx(1)
        for share in shares:
            assert flat[share.start : share.start + len(share.samples)] == share.samples
            assert fixed is None or len(share.samples) == fixed
        assert all(batches.shares(step, process, 5) for process in range(5))


def test_devices() -> None:
    import torch

    assert find_device(torch, "cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:", "cuda:x", "CPU", ""):
        with pytest.raises(OptionError, match="is not one of auto, cpu"):
            check_device(name)
    if torch.cuda.is_available():
        assert find_device(torch, "auto").type == "cuda"
        with pytest.raises(OptionError, match="torch sees"):
            find_device(torch, f"cuda:{torch.cuda.device_count()}")
        with pytest.raises(OptionError, match="gives each its own"):
            find_device(torch, "cuda:0", 0, 2)
    else:
        with pytest.raises(OptionError, match="torch sees no NVIDIA GPU"):
            find_device(torch, "cuda")
    with pytest.raises(OptionError, match="cannot be used by several processes"):
        find_device(torch, "mps", 0, 2)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    import torch

    write_data(tmp_path / "data.npz", 64)
    onnxsep.save(small_model(), tmp_path / "in.onnx")
    count: Any = torch.cuda.device_count()
    done = run("finetune", "in.onnx", "out.onnx", "--data", "data.npz", "--device", f"cuda:{count}", cwd=tmp_path)
    assert done.returncode == 1
    assert "--device cpu" in done.stderr
