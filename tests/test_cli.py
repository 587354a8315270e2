"""The command line as a user runs it, with real files; in a process of its own where the process matters."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import helper, numpy_helper

import onnxsep

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
MODE = ("--mode", "spatial")


def run_process(*arguments: str | Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``onnxsep`` with these arguments in a process of its own."""
    command = [str(Path(sys.executable).with_name("onnxsep")), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=before, check=False)


def run_in_terminal(
    arguments: Sequence[str | Path], stream: str, *, columns: int = 100, interrupt_at: bytes = b""
) -> tuple[int, str, bytes]:
    """Run onnxsep with one standard stream in a terminal, and send Ctrl-C once the terminal shows ``interrupt_at``.

    Returns:
        The exit status, what the terminal showed, and what went to the other stream.
    """
    pty = pytest.importorskip("pty", reason="pseudo-terminals exist on POSIX only")
    main, terminal = pty.openpty()
    command = [str(Path(sys.executable).with_name("onnxsep")), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    shown = b""
    with tempfile.TemporaryFile() as other:
        streams = {"stdout": other, "stderr": other, stream: terminal}
        with subprocess.Popen(command, env=environment, **streams) as process:
            os.close(terminal)
            try:
                while data := os.read(main, 65536):  # all of it: a terminal that nobody reads stops the process
                    shown += data
                    if interrupt_at and interrupt_at in shown:
                        process.send_signal(signal.SIGINT)
                        interrupt_at = b""
            except OSError:  # how Linux says that the other end is closed
                pass
        os.close(main)
        other.seek(0)
        return process.returncode, shown.decode(), other.read()


def assert_one_error(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """One message on standard error that holds these words, nothing on standard output, no traceback."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("onnxsep: error: ")
    for word in words:
        assert word in lines[0]
    assert done.stdout == ""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the digits model."""
    path = tmp_path / "in.onnx"
    path.write_bytes(DIGITS.read_bytes())
    return path


def external_model(folder: Path, location: str = "weights.bin") -> Path:
    """A model of two Convs whose weights lie in a file beside it."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((16, 16, 3, 3), dtype=np.float32) for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="one", pads=[1] * 4),
        helper.make_node("Conv", ["a", "w1"], ["y"], name="two", pads=[1] * 4),
    ]
    tensors = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 16, 8, 8])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 16, 8, 8])
    graph = helper.make_graph(nodes, "g", [value], [output], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "in.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if location != "weights.bin":
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            next(entry for entry in tensor.external_data if entry.key == "location").value = location
        path.write_bytes(proto.SerializeToString())
    return path


# What a newcomer sees


def test_rewrite_prints_every_conv_totals_and_comparison(model: Path, tmp_path: Path) -> None:
    done = run_process("rewrite", model, tmp_path / "out.onnx", *MODE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    assert "\x1b" not in done.stdout
    rows = done.stdout.splitlines()
    convs = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
    assert len(convs) == 7
    for name in convs:
        assert sum(row.startswith(f"{name} ") for row in rows) == 1
    assert any(row.startswith("stem_conv ") and "first Conv" in row for row in rows)
    assert any(row.startswith("4 of 7 convolutions replaced; parameters 186,314 -> ") for row in rows)
    assert any(row.startswith("compared in ONNX Runtime on the same inputs: ") for row in rows)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_json_and_report_hold_what_the_table_says(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("rewrite", model, tmp_path / "out.onnx", *MODE, "--json", "--report", report)
    data = json.loads(done.stdout)
    assert data == json.loads(report.read_text())
    assert data["output"] == str(tmp_path / "out.onnx")
    assert data["output_bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert [row["status"] for row in data["convs"]].count("replaced") == data["totals"]["replaced"] == 4
    # The counts again, from the files alone.
    for path, key in ((model, "parameters_before"), (tmp_path / "out.onnx", "parameters_after")):
        sizes = [np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1]
        assert data["totals"][key] == sum(sizes)


def test_quiet_prints_nothing(model: Path, tmp_path: Path) -> None:
    done = run("rewrite", model, tmp_path / "out.onnx", *MODE, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out.onnx").exists()


def test_dry_run_shows_the_plan_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = run("rewrite", model, tmp_path / "out.onnx", *MODE, "--dry-run")
    assert done.returncode == 0
    assert "dry run: nothing was written" in done.stdout
    assert "4 of 7 convolutions replaced" in done.stdout
    assert sorted(tmp_path.iterdir()) == before
    assert run("rewrite", model, *MODE, "--dry-run").stdout == done.stdout
    planned = json.loads(run("rewrite", model, *MODE, "--dry-run", "--json").stdout)
    done_totals = json.loads(run("rewrite", model, tmp_path / "out.onnx", *MODE, "--json").stdout)["totals"]
    assert planned["totals"] == done_totals


def test_a_progress_bar_appears_in_a_terminal(model: Path, tmp_path: Path) -> None:
    status, shown, _ = run_in_terminal(["rewrite", model, tmp_path / "out.onnx", *MODE], "stderr")
    assert status == 0
    assert "comparing original and result" in shown  # the last that is done before the result is written


def test_rewrite_in_place(model: Path) -> None:
    original = onnxsep.load(model).proto
    assert run("rewrite", model, model, *MODE).returncode == 0
    result = onnxsep.load(model).proto
    assert len(result.graph.node) == len(original.graph.node) + 4
    assert [path.name for path in model.parent.iterdir()] == ["in.onnx"]


def test_inspect_prints_a_row_for_each_conv_and_changes_nothing(model: Path) -> None:
    content = model.read_bytes()
    done = run("inspect", model)
    assert done.returncode == 0
    assert "IR 8, opset ai.onnx 17" in done.stdout
    layers, _, blocks = done.stdout.partition("peak activation memory")
    names = ("stem_conv ", "block1_conv", "block2_conv", "down_conv", "head_conv")
    assert sum(line.startswith(names) for line in layers.splitlines()) == 7
    assert sum("basic block" in line for line in blocks.splitlines()) == 2
    assert model.read_bytes() == content
    rows = json.loads(run("inspect", model, "--json").stdout)["convs"]
    assert [row["op_type"] for row in rows] == ["Conv"] * 7 + ["Gemm"]  # a mode for Gemm is installed
    only = json.loads(run("inspect", model, "--mode", "depthwise", "--json").stdout)
    assert [row["op_type"] for row in only["convs"]] == ["Conv"] * 7


def test_check_says_same_or_differs(model: Path, tmp_path: Path) -> None:
    assert run("check", model, model).returncode == 0
    reference = tmp_path / "reference.txt"
    assert run("check", model, reference, "--update").returncode == 0
    assert run("check", model, reference).returncode == 0
    assert run("rewrite", model, tmp_path / "out.onnx", *MODE).returncode == 0
    done = run("check", tmp_path / "out.onnx", reference)
    assert done.returncode == 3
    assert "block1_conv1_vertical" in done.stdout
    assert "::error" in run("check", tmp_path / "out.onnx", reference, "--format", "github").stdout
    assert run("check", tmp_path / "out.onnx", reference, "--format", "junit").stdout.startswith("<?xml")
    parts = json.loads(run("check", tmp_path / "out.onnx", reference, "--format", "json").stdout)["parts"]
    assert parts[0]["status"] == "differs"


def test_version_and_modes() -> None:
    assert run("--version").stdout == f"onnxsep {onnxsep.__version__}\n"
    lines = run("modes").stdout.splitlines()  # below a mode, indented, its settings
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == sorted(onnxsep.available_modes())


def test_verification_that_fails_exits_with_3_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("rewrite", model, tmp_path / "out.onnx", *MODE, "--max-error", "1e-6", "--report", report)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "--max-error" in line
    assert line.endswith("nothing was written")
    assert not (tmp_path / "out.onnx").exists()
    # Which Conv is to blame can be seen all the same.
    assert "block1_conv1 " in done.stdout
    assert json.loads(report.read_text())["verification"]["relative"] > 1e-6


def test_head_closes_the_pipe(model: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("onnxsep")), "rewrite", str(model), str(tmp_path / "out.onnx"), *MODE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_is_full_is_told(model: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("onnxsep")), "rewrite", str(model), str(tmp_path / "out.onnx"), *MODE]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("onnxsep: error: cannot print: No space left on device")
    with Path("/dev/full").open("w") as full:
        failing = [*command, "--max-error", "1e-6"]
        done = subprocess.run(failing, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert "--max-error" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("columns", [40, 120])
def test_terminal_of_any_width_shows_every_figure(columns: int, model: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = ["rewrite", model, tmp_path / "out.onnx", *MODE]
    status, shown, _ = run_in_terminal(arguments, "stdout", columns=columns)
    assert status == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    rows = [line.split() for line in shown.splitlines()]
    first = next(number for number, words in enumerate(rows) if words[:1] == ["block2_conv1"])
    row = [word for words in rows[first : first + (6 if columns == 40 else 1)] for word in words]  # a card, or a line
    assert "64x64x3x3" in row
    assert "24,640" in row
    assert "393,216" in row
    assert "36,928" in row


def test_given_inputs_are_used(model: Path, tmp_path: Path) -> None:
    # Zeros give the biases alone, which the rewrite does not touch: at this input the difference vanishes.
    np.savez(tmp_path / "zeros.npz", image=np.zeros((3, 1, 8, 8), np.float32))
    arguments = ("rewrite", model, tmp_path / "out.onnx", *MODE, "--only", "block1_conv1", "--json")
    given = json.loads(run(*arguments, "--inputs", tmp_path / "zeros.npz").stdout)["verification"]
    random = json.loads(run(*arguments, "--seed", "7").stdout)["verification"]
    assert given["relative"] != random["relative"]
    assert random == json.loads(run(*arguments, "--seed", "7").stdout)["verification"]


# Bad input: one clear error, the right status, the target untouched


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_MODELS: dict[str, tuple[Callable[[Path], Path], Sequence[str]]] = {
    "missing": (lambda folder: folder / "missing.onnx", ["missing.onnx"]),
    "empty": (lambda folder: write(folder / "empty.onnx", b""), ["empty.onnx"]),
    "not-onnx": (lambda folder: write(folder / "cat.onnx", b"\x89PNG\r\n\x1a\n" + bytes(range(256))), ["cat.onnx"]),
    "text": (lambda folder: write(folder / "a.onnx", b"<html>404</html>"), ["a.onnx"]),
    "lfs": (lambda folder: write(folder / "a.onnx", b"version https://git-lfs.github.com/spec/v1\noid"), ["LFS"]),
    "truncated": (lambda folder: write(folder / "cut.onnx", DIGITS.read_bytes()[:100_000]), ["cut.onnx"]),
    "folder": (lambda folder: folder, []),
    "no-data": (lambda folder: external_model(folder, "absent.bin"), ["absent.bin"]),
    "outside": (lambda folder: external_model(folder, "../weights.bin"), ["../weights.bin"]),
    "absolute": (lambda folder: external_model(folder, "/etc/passwd"), ["/etc/passwd"]),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_model_that_cannot_be_loaded(case: str, tmp_path: Path) -> None:
    make, words = BAD_MODELS[case]
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(100_000))  # what a path that leads outside would find
    source = make(folder)
    target = tmp_path / "out.onnx"
    target.write_bytes(DIGITS.read_bytes())
    for command in (("rewrite", source, target, *MODE), ("inspect", source), ("check", source, DIGITS)):
        assert_one_error(run(*command), *words)
    assert target.read_bytes() == DIGITS.read_bytes()


def test_output_folder_that_is_missing_or_a_file(model: Path, tmp_path: Path) -> None:
    assert_one_error(run("rewrite", model, tmp_path / "absent" / "out.onnx", *MODE), "absent")
    (tmp_path / "file").write_bytes(b"")
    assert_one_error(run("rewrite", model, tmp_path / "file" / "out.onnx", *MODE), "file")
    assert_one_error(run("rewrite", model, tmp_path, *MODE), str(tmp_path))
    assert_one_error(
        run("rewrite", model, tmp_path / "out.onnx", *MODE, "--report", tmp_path / "no" / "r.json"), "r.json"
    )
    assert not (tmp_path / "out.onnx").exists()


def test_disk_full_while_saving(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(DIGITS.read_bytes())
    files = sorted(tmp_path.iterdir())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = run_process("rewrite", model, target, *MODE, before=limit)
    assert_one_error(done, "out.onnx was not written")
    assert target.read_bytes() == DIGITS.read_bytes()
    assert sorted(tmp_path.iterdir()) == files


def test_report_does_not_overwrite_the_models(model: Path, tmp_path: Path) -> None:
    content, out = model.read_bytes(), tmp_path / "out.onnx"
    (tmp_path / "link.json").symlink_to(model)
    (tmp_path / "in.onnx.data").write_bytes(b"weights")
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, image=np.zeros((1, 1, 8, 8), np.float32))
    (tmp_path / "package.json").write_text('{"name": "precious"}')
    for report in (model, out, *(tmp_path / name for name in ("link.json", "in.onnx.data", "package.json")), inputs):
        done = run("rewrite", model, out, *MODE, "--report", report, "--inputs", inputs)
        assert_one_error(done, "--report", "would overwrite")
    assert_one_error(run("rewrite", model, inputs, *MODE, "--inputs", inputs), "would overwrite")
    assert_one_error(run("rewrite", model, *MODE, "--dry-run", "--report", model), "would overwrite")
    assert model.read_bytes() == content
    assert not out.exists()
    report = tmp_path / "report.json"
    for _ in range(2):  # a report may be written over a report
        assert run("rewrite", model, out, *MODE, "--report", report, "--no-verify").returncode == 0


def test_links_in_a_circle_are_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "b.json")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    for arguments in (
        ("rewrite", model, tmp_path / "out.onnx", *MODE, "--report", tmp_path / "a.json"),
        ("check", model, tmp_path / "a.txt"),
    ):
        done = run(*arguments)
        assert "internal error" not in done.stderr
        assert done.returncode in (0, 1)


def test_nohup_is_respected(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = ['onnxsep', 'modes'];"
        "import onnxsep.cli as cli; cli.app = lambda: os.kill(os.getpid(), signal.SIGHUP); cli.main(); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "alive\n", done.stderr


def test_closed_standard_output(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("onnxsep")), "rewrite", str(model), str(tmp_path / "out.onnx"), *MODE],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.close(1),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="no /dev/stdout on this system")
def test_devices_are_no_targets(model: Path, tmp_path: Path) -> None:
    (tmp_path / "stdout.onnx").symlink_to("/proc/self/fd/1")
    for target in ("/dev/stdout", "/dev/null", "/proc/self/fd/1", tmp_path / "stdout.onnx"):
        assert_one_error(run("rewrite", model, target, *MODE), str(target))
    assert Path("/dev/stdout").is_symlink()


def test_names_come_out_as_they_are_or_escaped(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    names = iter(["block:fire:conv", "[bold]x[/bold]", "\u5377\u79ef", "bell\x07\x1b[31m"])
    for node in proto.graph.node:
        if node.op_type == "Conv" and node.name.startswith("block"):
            node.name = next(names)
    onnx.save(proto, model)
    done = run("rewrite", model, tmp_path / "out.onnx", *MODE)
    assert done.returncode == 0, done.stderr
    assert "block:fire:conv " in done.stdout
    assert "[bold]x[/bold] " in done.stdout
    assert "\u5377\u79ef " in done.stdout
    assert "bell\\x07\\x1b[31m " in done.stdout
    assert "\x1b" not in done.stdout
    narrow = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [str(Path(sys.executable).with_name("onnxsep")), "rewrite", str(model), str(tmp_path / "out.onnx"), *MODE]
    plain = subprocess.run(command, capture_output=True, env=narrow, check=False)
    assert plain.returncode == 0, plain.stderr
    command = [str(Path(sys.executable).with_name("onnxsep")), "inspect", str(model), "--json"]
    as_json = subprocess.run(command, capture_output=True, env={**narrow, "PYTHONIOENCODING": "ascii"}, check=True)
    names_in_json = {conv["name"] for conv in json.loads(as_json.stdout)["convs"]}
    assert {"block:fire:conv", "[bold]x[/bold]", "\u5377\u79ef", "bell\x07\x1b[31m"} <= names_in_json
    assert b"\\u5377\\u79ef " in plain.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_path_that_is_no_text(model: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx")
    model.rename(odd)
    for arguments in (("rewrite", odd, odd, *MODE, "--json"), ("inspect", odd, "--json"), ("inspect", odd)):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "m\\xff.onnx" in done.stdout.replace("\\\\", "\\")


def test_interrupt_ends_in_one_line_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    # A weight whose factorisation takes seconds, so that the interrupt comes in the middle of it.
    wide = np.random.default_rng(0).standard_normal((700, 700, 3, 3), dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", pads=[1] * 4),
        helper.make_node("Conv", ["a", "w"], ["y"], name="two", pads=[1] * 4),
    ]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 700, 8, 8])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 700, 8, 8])
    graph = helper.make_graph(nodes, "g", [value], [output], [numpy_helper.from_array(wide, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    arguments: list[str | Path] = ["rewrite", model, tmp_path / "out.onnx", *MODE]
    arguments += ["--include-first", "--rank", "full", "--force"]
    # The line of progress says that the work has begun.
    status, shown, printed = run_in_terminal(arguments, "stderr", interrupt_at=b"factorising")
    assert (status, printed) == (130, b"")
    assert "onnxsep: interrupted; nothing was written" in shown
    assert "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize("rank", ["0", "-3", "1.5", "energy=0", "energy=2", "big", ""])
def test_rank_out_of_range(rank: str, model: Path, tmp_path: Path) -> None:
    assert_one_error(run("rewrite", model, tmp_path / "out.onnx", *MODE, f"--rank={rank}"), "rank")
    assert not (tmp_path / "out.onnx").exists()


def test_unknown_mode_pattern_provider_and_library(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert_one_error(run("rewrite", model, out, "--mode", "spatal"), "'spatal'", ", ".join(onnxsep.available_modes()))
    assert_one_error(run("rewrite", model, out, *MODE, "--only", "conv9*"), "--only 'conv9*'", "'stem_conv'")
    assert_one_error(run("rewrite", model, out, *MODE, "--provider", "NoSuch"), "NoSuch", "CPUExecutionProvider")
    assert_one_error(run("rewrite", model, out, *MODE, "--custom-op-library", tmp_path / "no.so"), "no.so")
    assert_one_error(run("rewrite", model, out, *MODE, "--input-shape", "picture:1,1,8,8"), "picture", "image")
    assert_one_error(run("rewrite", model, out, *MODE, "--inputs", tmp_path / "no.npz"), "no.npz")
    assert not out.exists()


def test_usage_errors_exit_with_2(model: Path, tmp_path: Path) -> None:
    for arguments in (
        ("rewrite", model),
        ("rewrite", model, *MODE),
        ("rewrite", model, tmp_path / "out.onnx", *MODE, "--verify", "maybe"),
        ("rewrite", model, tmp_path / "out.onnx", *MODE, "--no-such-option"),
        ("rewrite", model, tmp_path / "out.onnx", *MODE, "--no-verify", "--verify", "full"),
        ("rewrite", model, tmp_path / "out.onnx", *MODE, "--round-ranks", "7"),
        ("check", model),
        ("check", model, model, "--format", "html"),
        ("compress", model),
    ):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for arguments in (("--debug", "inspect", tmp_path / "no.onnx"), ("inspect", tmp_path / "no.onnx", "--debug")):
        done = run(*arguments)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ModelLoadError: " in done.stderr
        assert done.stderr.splitlines()[-1].startswith("onnxsep: error: ")


def test_help_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys, onnxsep.cli; print([name for name in ('onnxruntime', 'torch', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert done.stdout.strip() == "[]"
