"""A data file of the model that is replaced stays as long as another file of its folder contains its name."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper

import onnxsep


def external(path: Path, location: str, value: float = 1.0) -> None:
    """A model whose weights lie in a data file."""
    weight = np.full((8, 8, 3, 3), value, np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "one", pads=[1] * 4)
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]) for name in "xy"]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[:, 0, 0, 0], "b")]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)


@pytest.fixture
def prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``onnxsep prune`` of m.onnx, whose weights are in m.onnx.data, in place; what it prints."""
    monkeypatch.chdir(tmp_path)

    def command(sparsity: float = 0.5) -> str:
        done = run("prune", "m.onnx", "m.onnx", "--sparsity", sparsity, "--no-verify", "--report", "r.json")
        assert done.returncode == 0, done.stderr
        return done.stdout

    external(Path("m.onnx"), "m.onnx.data")
    return command


def copy_of_model(name: str) -> None:
    Path(name).write_bytes(Path("m.onnx").read_bytes())


def large_model(name: str) -> None:
    """A copy of the model with 120 MB of its own behind the place that names the data file."""
    proto = onnx.load("m.onnx", load_external_data=False)
    proto.graph.initializer.add(name="large", data_type=TensorProto.UINT8, dims=[120_000_000], raw_data=b"")
    content = proto.SerializeToString()
    field = 0x7A  # unknown to a ModelProto: readers skip it
    size = 120_000_000
    with Path(name).open("wb") as file:
        file.write(content + bytes([field]) + bytes([(size >> 7 * k) & 127 | (128 if k < 3 else 0) for k in range(4)]))
        file.truncate(file.tell() + size)


NEEDING: dict[str, Callable[[str], object]] = {
    "m.onnx.bak": copy_of_model,
    "m (copy).onnx": copy_of_model,
    "backup": copy_of_model,
    "old.ONNX": copy_of_model,
    ".hidden": copy_of_model,
    "m.onnx~": copy_of_model,
    "m.onnx.data.bak": copy_of_model,
    "large.bak": large_model,
    "load.py": lambda name: Path(name).write_text("numpy.fromfile('m.onnx.data', 'f4')"),
    "SHA256SUMS": lambda name: Path(name).write_text("0123  m.onnx.data\n"),
    "m.tar": lambda name: _archive(name),
    "deep.onnx": lambda name: Path(name).symlink_to(_elsewhere()),
}


def _archive(name: str) -> None:
    with tarfile.open(name, "w") as archive:
        archive.add("m.onnx.data")


def _elsewhere() -> Path:
    Path("elsewhere").mkdir()
    copy_of_model("elsewhere/m.onnx")
    return Path("elsewhere/m.onnx")


@pytest.mark.parametrize("name", NEEDING)
def test_a_data_file_that_another_file_names_stays(name: str, prune: Callable[..., str]) -> None:
    NEEDING[name](name)
    before = Path("m.onnx.data").read_bytes()
    printed = prune()
    assert Path("m.onnx.data").read_bytes() == before
    (note,) = json.loads(Path("r.json").read_text())["notes"][-1:]
    assert note == f"the old data file m.onnx.data stays, for {name} contains its name"
    assert f"note: {note}" in " ".join(printed.split())
    assert np.count_nonzero(onnx.numpy_helper.to_array(onnx.load("m.onnx").graph.initializer[0])) == 8 * 8 * 9 // 2


def test_a_data_file_that_nothing_names_goes(prune: Callable[..., str]) -> None:
    """Neither the report of an earlier run keeps it, nor another model and its data, nor a large file of weights."""
    external(Path("other.onnx"), "other.data")
    Path("notes.txt").write_text("m.onnx is the model")
    Path("folder").mkdir()
    Path("folder", "notes.txt").write_text("m.onnx.data of another folder")
    os.mkfifo("pipe")
    with Path("large.bin").open("wb") as file:
        file.write(b"\x00weights")
        file.truncate(120_000_000)
    prune()
    assert not Path("m.onnx.data").exists()
    (first,) = Path().glob("m.onnx.*.data")
    assert "stays" not in " ".join(json.loads(Path("r.json").read_text())["notes"])
    prune(0.7)
    (second,) = Path().glob("m.onnx.*.data")
    assert second != first
    onnx.load("other.onnx")


def test_the_api_says_what_stays(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx", "m.onnx.data")
    (tmp_path / "copy").write_bytes((tmp_path / "m.onnx").read_bytes())
    saved = onnxsep.prune(tmp_path / "m.onnx", sparsity=0.5, verify="none").save(tmp_path / "m.onnx")
    assert len(saved.notes) == 1
    assert saved.notes[0].endswith("m.onnx.data stays, for copy contains its name")
    (tmp_path / "copy").unlink()
    assert onnxsep.prune(tmp_path / "m.onnx", sparsity=0.7, verify="none").save(tmp_path / "m.onnx").notes == ()
