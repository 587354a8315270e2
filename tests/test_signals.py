"""Signals: a command is gone within two seconds, whatever it is in, and leaves nothing half-written."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxsep
from onnxsep.model.files import NewFiles, write_text
from onnxsep.running.workers import any_left, in_threads, within

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
LIMIT = 6.0  # seconds: two, and room for a machine that is busy


def stopped(command: list[str], number: int, folder: Path, ready: Callable[[], bool]) -> tuple[int, str]:
    """Run a command, send it the signal when it is ready; its status and errors, if it ends in time."""
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None and not ready():
                time.sleep(0.02)
            process.send_signal(number)
            errors = process.communicate(timeout=LIMIT)[1]
        finally:
            process.kill()
    return process.returncode, errors


def test_an_interrupt_in_a_finaliser(tmp_path: Path) -> None:
    """Python loses what is raised there, and would print "Exception ignored" with a traceback."""
    program = (
        "import sys, pathlib, time, onnxsep.cli as cli\n"
        "class Late:\n"
        "    def __del__(self):\n"
        "        pathlib.Path(sys.argv[1]).touch()\n"
        "        time.sleep(30)\n"
        "def work():\n"
        "    Late()\n"
        "    time.sleep(30)\n"
        "cli.app = work\n"
        "cli.main()\n"
    )
    ready = tmp_path / "ready"
    found, errors = stopped(["-c", program, str(ready)], signal.SIGINT, tmp_path, ready.exists)
    assert (found, errors) == (130, "onnxsep: interrupted\n")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_main_thread_is_in_c(name: str, status: int, tmp_path: Path) -> None:
    """Python raises nothing before the call ends; files beside the target and temporary folders go all the same."""
    program = (
        "import sys, pathlib, numpy as np, onnxsep.cli as cli\n"
        "from onnxsep.model.files import NewFiles, temporary_folder\n"
        "def work():\n"
        "    target = pathlib.Path(sys.argv[1])\n"
        "    with temporary_folder() as folder, NewFiles(target) as new, new.create(target.with_name('a')) as file:\n"
        "        file.write(b'half')\n"
        "        pathlib.Path(folder, 'ready').touch()\n"
        "        np.linalg.eigh(np.random.default_rng(0).standard_normal((4000, 4000)))\n"
        "cli.app = work\n"
        "cli.main()\n"
    )
    (tmp_path / "temporary").mkdir()
    target = tmp_path / "out.onnx"
    number = getattr(signal, name)
    found, errors = stopped(
        ["-c", program, str(target)],
        number,
        tmp_path / "temporary",
        lambda: any((tmp_path / "temporary").glob("*/ready")),
    )
    assert found == status, errors
    assert errors == "onnxsep: interrupted\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["temporary"]


def test_the_main_thread_waits_for_workers(tmp_path: Path) -> None:
    """A factorisation in C code of seconds; and the words of the command."""
    weight = np.random.default_rng(0).standard_normal((3000, 300, 3, 3)).astype(np.float32)
    shapes = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)
    graph = onnx.helper.make_graph([conv], "g", shapes[:1], shapes[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    program = (
        "import sys, pathlib, onnxsep.cli as cli, onnxsep.engine.factors as factors\n"
        "slow = factors.factorize_one\n"
        "def told(*given):\n"
        "    pathlib.Path(sys.argv[2]).with_name('ready').touch()\n"
        "    return [slow(*given) for _ in range(100)][0]\n"  # long enough on any machine
        "factors.factorize_one = told\n"
        "cli.main()\n"
    )
    options = ["--mode", "channel", "--include-first", "--no-verify"]
    command = ["-c", program, "rewrite", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), *options]
    found, errors = stopped(command, signal.SIGHUP, tmp_path, (tmp_path / "ready").exists)
    assert found == 129, errors
    assert errors == "onnxsep: interrupted; nothing was written\n"
    assert not (tmp_path / "o.onnx").exists()


def test_python_waits_for_no_worker() -> None:
    """In Python KeyboardInterrupt comes at once; what has not begun does not begin, what runs ends in Python."""
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number:
            while True:
                time.sleep(0.01)
        return number

    started = time.monotonic()
    results = in_threads({number: partial(work, number) for number in range(4)}, 2)
    assert next(results) == (0, 0)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt())
    assert time.monotonic() - started < LIMIT
    ended = time.monotonic() + LIMIT
    while any_left() and time.monotonic() < ended:
        time.sleep(0.01)
    assert not any_left()
    assert 3 not in begun


def test_python_is_interrupted_in_a_run() -> None:
    """The main thread waits where a signal reaches it, and the call is told to stop."""
    stop = threading.Event()
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            within(lambda: stop.wait(60), stop=stop.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.is_set()


def test_errors_of_workers_arrive() -> None:
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        list(in_threads({"a": lambda: 1 // 0}, 3))
    assert dict(in_threads({number: partial(pow, number, 2) for number in range(9)}, 3)) == {
        number: number**2 for number in range(9)
    }
    assert list(in_threads({}, 3)) == []


def test_a_file_that_is_complete_is_not_abandoned(tmp_path: Path) -> None:
    """Another process abandons everything just after a file got its name, and while another is being made."""
    program = (
        "import sys, pathlib; from onnxsep.model.files import NewFiles, abandon\n"
        "done, other = (pathlib.Path(sys.argv[1], name) for name in ('done', 'other'))\n"
        "with NewFiles(done) as new:\n"
        "    new.create(done.with_name('data')).close()\n"
        "    new.commit(b'whole')\n"
        "    with NewFiles(other) as second:\n"
        "        second.create(other.with_name('more')).close()\n"
        "        abandon()\n"
        "        import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "done"]
    write_text(tmp_path / "next", "x")
    assert NewFiles(tmp_path / "done").target.read_bytes() == b"whole"
    assert onnxsep.OnnxsepError.exit_status == 1
