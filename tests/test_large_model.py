"""A model of 2.3 GB: rewritten without its weights in memory, and every one of them right in the result."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from marked import marked
from onnx import TensorProto, helper, numpy_helper
from random_examples import DEEP

import onnxsep
from onnxsep.graph.shapes import skeleton
from onnxsep.model import datafile

Array = npt.NDArray[np.float32]

TABLES = ("table_a", "table_b", "table_c")
ROWS, COLUMNS = 3_000_000, 64  # 768 MB each
SIZE = ROWS * COLUMNS * 4
CHANNELS = 96
PICKED = np.array([0, 1, 1_234_567, 2_499_999, ROWS - 1])  # the rows that the output depends on
CHUNK = 1 << 24


def rows(table: str) -> Array:
    return np.random.default_rng(TABLES.index(table)).standard_normal((len(PICKED), COLUMNS), dtype=np.float32)


def conv_weight(name: str, *shape: int) -> Array:
    return np.random.default_rng(len(name)).standard_normal(shape, dtype=np.float32)


def external(name: str, shape: list[int], offset: int, length: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "large.bin"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two Convs between three lookup tables, all weights in one sparse file: zeros that nothing reads take no space."""
    folder = tmp_path_factory.mktemp("large")
    path = folder / "large.onnx"
    initializers, end = [], 4096
    with (folder / "large.bin").open("wb") as data:
        weights = {
            "stem": conv_weight("stem", CHANNELS, 3, 3, 3),
            "body": conv_weight("body", CHANNELS, CHANNELS, 3, 3),
        }
        for name, weight in weights.items():
            data.seek(end)
            data.write(weight.tobytes())
            initializers.append(external(name, list(weight.shape), end, weight.nbytes))
            end += weight.nbytes
        for table in TABLES:
            end += 4096 - end % 4096 + 64  # aligned as exporters do, but not to pages
            for index, row in zip(PICKED, rows(table), strict=True):
                data.seek(end + int(index) * COLUMNS * 4)
                data.write(row.tobytes())
            initializers.append(external(table, [ROWS, COLUMNS], end, SIZE))
            end += SIZE
        data.truncate(end)
    assert end > 2.3e9  # more than an .onnx itself can hold
    picked = numpy_helper.from_array(PICKED, "picked")
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="stem_conv", pads=[1] * 4),
        helper.make_node("Conv", ["a", "body"], ["b"], name="body_conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["b"], ["y"], name="pool"),
        *(helper.make_node("Gather", [table, "picked"], [f"{table}_rows"], name=f"gather_{table}") for table in TABLES),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, 1, 1])]
    outputs += [
        helper.make_tensor_value_info(f"{table}_rows", TensorProto.FLOAT, [len(PICKED), COLUMNS]) for table in TABLES
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, [*initializers, picked])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    yield path
    for file in folder.iterdir():
        file.unlink()


# The command line in a process of its own, which says at its end how much memory it had at its peak. Not ru_maxrss:
# it begins with what the parent had.
CHILD = """
import sys
from pathlib import Path
from onnxsep.cli import main
answer = Path(sys.argv.pop(1))
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    answer.write_text(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def run(source: Path, target: Path, *options: str) -> tuple[float, dict[str, Any]]:
    """Rewrite with the command line; the peak memory of the process in GB, and the report."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell the peak memory of a process in /proc")
    report, answer = target.with_suffix(".json"), target.with_suffix(".peak")
    arguments = ["rewrite", source, target, "--mode", "depthwise", "--report", report, *options]
    command = [sys.executable, "-c", CHILD, *map(str, (answer, *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(report.read_text())
    return int(answer.read_text()) * 1024 / 1e9, facts


def slot(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    keys = {entry.key: entry.value for entry in tensor.external_data}
    return keys["location"], int(keys["offset"]), int(keys["length"])


def read(folder: Path, tensor: onnx.TensorProto) -> Array:
    """All values of an external tensor, mapped and not read."""
    location, offset, _ = slot(tensor)
    return np.memmap(folder / location, np.float32, "r", offset, tuple(tensor.dims))


def assert_tables_are_right(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    zeros = bytes(CHUNK)
    for table in TABLES:
        assert np.array_equal(read(path.parent, stored[table])[PICKED], rows(table))
        # And nothing else: between the rows there are only zeros.
        location, offset, length = slot(stored[table])
        nonzero = 0
        with (path.parent / location).open("rb") as data:
            data.seek(offset)
            while length:
                chunk = data.read(min(CHUNK, length))
                length -= len(chunk)
                if chunk != zeros[: len(chunk)]:
                    nonzero += int(np.count_nonzero(np.frombuffer(chunk, np.float32)))
        assert nonzero == np.count_nonzero(rows(table))


def space_used(path: Path) -> int:
    """Bytes that a file takes on the disk: its holes take none."""
    return path.stat().st_blocks * 512


@pytest.mark.skipif(not DEEP, reason="it takes as long as a hundred others: make deep")
@pytest.mark.skipif(sys.platform == "win32", reason="no sparse files by default")
def test_one_conv_of_a_large_model(large: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    peak, report = run(large, target, "--no-verify")
    assert peak < 0.6
    assert report["totals"]["replaced"] == 1
    assert not report["verification"]["ran"]

    loaded = onnxsep.load(target)  # checks where every external tensor lies, reads none
    onnx.checker.check_model(str(target))
    proto = loaded.proto
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert [tensor.name for tensor in proto.graph.initializer][:2] == ["stem", TABLES[0]]
    assert "body" not in stored
    assert_tables_are_right(target)
    assert np.array_equal(read(tmp_path, stored["stem"]), conv_weight("stem", CHANNELS, 3, 3, 3))

    # The new weights: the best rank-1 approximation of each input channel's slice.
    depthwise, pointwise = (node for node in marked(proto).graph.node if node.metadata_props)
    spread, mixed = (read(tmp_path, stored[node.input[1]]).astype(np.float64) for node in (depthwise, pointwise))
    assert all(stored[node.input[1]].data_location == TensorProto.EXTERNAL for node in (depthwise, pointwise))
    weight = conv_weight("body", CHANNELS, CHANNELS, 3, 3).astype(np.float64)
    slices = weight.reshape(CHANNELS, CHANNELS, 9).transpose(1, 0, 2)
    rebuilt = np.einsum("oi,ik->iok", mixed[:, :, 0, 0], spread.reshape(CHANNELS, 9))
    discarded = np.linalg.svd(slices, compute_uv=False)[:, 1:]
    assert np.linalg.norm(slices - rebuilt) == pytest.approx(np.linalg.norm(discarded), rel=1e-5)

    data = next(tmp_path.glob("out.onnx.*.data"))
    assert data.stat().st_size > 2.3e9
    source = large.with_name("large.bin")
    if space_used(source) < source.stat().st_size // 10:
        assert space_used(data) < data.stat().st_size // 10  # it stayed sparse
    data.unlink()


@pytest.mark.skipif(not DEEP, reason="it takes as long as a hundred others: make deep")
@pytest.mark.skipif(sys.platform == "win32", reason="no sparse files by default")
def test_local_verification_of_a_large_model(large: Path, tmp_path: Path) -> None:
    """It is the default above 1 GB, and needs the memory of one Conv more."""
    target = tmp_path / "out.onnx"
    peak, report = run(large, target, "--rank", "full", "--force")
    assert peak < 0.7
    assert report["totals"]["replaced"] == 1
    assert report["verification"]["kind"] == "local"
    assert report["verification"]["ran"]
    assert report["verification"]["relative"] < 1e-5
    next(tmp_path.glob("out.onnx.*.data")).unlink()


def inline_model() -> onnx.ModelProto:
    """Two Convs and a table with their weights inside, 1.2 MB."""
    weights = {"w1": (64, 3, 3, 3), "w2": (96, 64, 3, 3), "table": (4000, 64), "small": (7,)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="two"),
        helper.make_node("Exp", ["table"], ["t"], name="exp"),
        helper.make_node("Exp", ["small"], ["s"], name="exp_small"),
    ]
    outputs = {"y": [1, 96, 4, 4], "t": [4000, 64], "s": [7]}
    graph = helper.make_graph(
        nodes,
        "inline",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(conv_weight(name, *shape), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_result_that_no_onnx_file_can_hold_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """protobuf ends at 2 GB; the limit is lowered here, to below the size of the table and of the factors."""
    result = onnxsep.rewrite(inline_model(), mode="spatial", rank="full", force=True)
    assert result.report.totals.replaced == 1
    expected = outputs(result.proto.SerializeToString())
    monkeypatch.setattr(datafile, "MAX_PROTO_BYTES", 100_000)
    saved = result.save(tmp_path / "out.onnx")
    assert saved.path.stat().st_size <= 100_000
    assert saved.data_path is not None
    written = onnx.load(saved.path, load_external_data=False)
    moved = {one.name for one in written.graph.initializer if one.data_location == TensorProto.EXTERNAL}
    assert "table" in moved
    assert "small" not in moved
    onnx.checker.check_model(str(saved.path), full_check=True)
    for actual, wanted in zip(outputs(str(saved.path)), expected, strict=True):
        assert np.array_equal(actual, wanted)
    assert onnx.load(saved.path).graph.node == result.proto.graph.node


def outputs(model: str | bytes) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": conv_weight("x", 1, 3, 8, 8)}))


def test_copy_for_matching_holds_no_weights() -> None:
    model = inline_model()
    function = helper.make_function("local", "F", [], ["v"], [constant_node("v")], [helper.make_opsetid("", 17)])
    branch = helper.make_graph(
        [constant_node("o")], "b", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])]
    )
    model.functions.append(function)
    model.graph.node.append(helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch))
    model.training_info.add().algorithm.CopyFrom(branch)
    light = skeleton(model)
    assert model.ByteSize() > 20_000 * 4 * 4
    assert light.ByteSize() < 4000
    assert [node.op_type for node in light.graph.node] == [node.op_type for node in model.graph.node]
    assert [list(one.dims) for one in light.graph.initializer] == [list(one.dims) for one in model.graph.initializer]


def constant_node(name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(conv_weight(name, 20_000), name))
