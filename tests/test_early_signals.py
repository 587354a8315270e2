"""A signal while the command line is imported: the right status, no traceback; `import onnxsep` takes no signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxsep

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_packages_are_imported(stop: signal.Signals, status: int) -> None:
    # onnx is the first heavy import: it is replaced by one that says it has begun, and takes long.
    code = (
        "import sys, time, runpy\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnx':\n"
        "            print('importing', flush=True)\n"
        "            time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "runpy.run_module('onnxsep', run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "modes"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    start = time.monotonic()
    process.send_signal(stop)
    _, said = process.communicate(timeout=20)
    assert process.returncode == status
    assert b"Traceback" not in said
    assert time.monotonic() - start < 2


def test_importing_the_package_sets_no_handler() -> None:
    code = "import signal; before = signal.getsignal(2), signal.getsignal(15); import onnxsep; onnxsep.rewrite\n"
    code += "assert (signal.getsignal(2), signal.getsignal(15)) == before"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_public_name_is_there() -> None:
    assert all(getattr(onnxsep, name) is not None for name in onnxsep.__all__)
    assert set(onnxsep.__all__) <= set(dir(onnxsep))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxsep.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("sound", [True, False])
def test_quantize_leaves_no_files(tmp_path: Path, sound: bool) -> None:
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    weight = onnx.numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
    operator = "Relu" if sound else "Unheard"
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(operator, ["c"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), work / "m.onnx")
    np.savez(work / "d.npz", x=np.ones((4, 4, 8, 8), np.float32))
    (work / "out").mkdir()
    command = [sys.executable, "-m", "onnxsep", "quantize", "m.onnx", "out/q.onnx", "--data", "d.npz", "--threads", "1"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if sound else 1), done.stderr
    assert sorted(path.name for path in work.iterdir()) == ["d.npz", "m.onnx", "out"]
    assert [path.name for path in (work / "out").iterdir()] == (["q.onnx"] if sound else [])
    assert list(temporary.iterdir()) == []
