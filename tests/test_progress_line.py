"""The line that says how far a run is: one, in its place, never glued to anything, and gone in the end."""

import contextlib
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import helper, numpy_helper
from rich.cells import cell_len
from terminal import ESCAPES, Terminal, on_terminal, terminal

import onnxsep
from onnxsep.cli.app import say
from onnxsep.options.progress import Progress, announce, under
from onnxsep.reporting.progress import Clock, duration, progress_line, shortened

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_cnn.onnx"
NAME = "/backbone/stages.0/blocks.1/token_mixer/mixer/conv_reparam/Conv"
DRAWN = 0.3  # seconds in which the line is drawn anew


def frames(shown: Terminal) -> list[str]:
    """What the line showed, one time after the other."""
    return [part.strip() for part in re.split(r"[\r\n]", ESCAPES.sub("", shown.written.decode())) if part.strip()]


@contextlib.contextmanager
def line(columns: int, term: str = "xterm-256color") -> Iterator[tuple[Progress | None, Terminal]]:
    """The line in a terminal; complete behind the block."""
    with terminal(columns, term) as (file, shown), contextlib.redirect_stderr(file), progress_line() as tell:
        yield tell, shown


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 200])
def test_the_line_is_one_and_has_the_layer_and_the_times(columns: int) -> None:
    with line(columns) as (tell, shown):
        assert tell is not None
        for done in range(1, 4):
            tell(NAME, done, 12)
            time.sleep(DRAWN)
    assert shown.widest <= columns
    assert shown.written.count(b"\n") == 1  # it never takes a second line, but for the moment in which it goes
    assert not any(shown.screen())
    seen = frames(shown)
    pattern = re.compile(r"3/12 \d+ s, \d+ s left (.*)$")
    (last,) = {found[1] for frame in seen if (found := pattern.search(frame))}
    assert last.endswith("Conv")  # the end of a name tells most
    assert (last == NAME) == (columns >= 100)
    assert cell_len(last) <= columns


def test_what_is_said_meanwhile_stands_on_lines_of_its_own_above(tmp_path: Path) -> None:
    piped = io.StringIO()
    long = "w " * 60
    with line(60) as (tell, shown), contextlib.redirect_stdout(piped):
        assert tell is not None
        tell(NAME, 1, 3)
        time.sleep(DRAWN)
        say("step 1 rewrite: 2.1 s")
        print("careful", file=sys.stderr)
        print("for the pipe")
        tell(NAME, 2, 3)
        time.sleep(DRAWN)
        say(long)
    assert piped.getvalue() == "for the pipe\n"  # what is not the terminal's does not go there
    screen = shown.screen()
    assert screen[:2] == ["step 1 rewrite: 2.1 s", "careful"]
    assert " ".join(screen).count("w w w") > 10
    assert not any(NAME[-10:] in each for each in screen)
    assert shown.widest <= 60


def test_a_dumb_terminal_and_a_file_get_nothing(tmp_path: Path) -> None:
    with line(80, "dumb") as (tell, shown):
        assert tell is None
    assert shown.written == b""
    with (tmp_path / "log").open("w") as log, contextlib.redirect_stderr(log), progress_line() as tell:
        assert tell is None
    assert (tmp_path / "log").read_text() == ""


def test_names_from_a_model_do_not_act() -> None:
    with line(80) as (tell, shown):
        assert tell is not None
        tell("[bold]\x1b[31mred\x07\n::error::", 1, 3)
        time.sleep(DRAWN)
    assert any("[bold]\\x1b[31mred\\x07\\n::error::" in frame for frame in frames(shown))
    assert b"\x07" not in shown.written
    assert shown.written.count(b"\n") == 1


# Times


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_the_time_that_is_left_is_that_of_what_is_being_done() -> None:
    watch = Watch()
    clock = Clock(watch)

    def left() -> float | None:
        return clock.left

    assert (clock.elapsed, left()) == (0, None)
    watch.time = 104
    clock.tell(0, 4)  # the work begins four seconds after the run
    assert left() is None
    watch.time = 114
    clock.tell(1, 4)
    assert (clock.elapsed, left()) == (14, 30)
    watch.time = 120
    assert left() == 24  # the time goes on
    watch.time = 200
    assert left() == 0
    clock.tell(4, 4)
    assert left() is None
    watch.time = 206
    clock.tell(1, 3)  # other work, the first part of which took six seconds
    assert left() == 12
    watch.time = 207
    clock.tell(0, 1)  # nothing that is counted
    assert left() is None
    clock.tell(50, 100)  # work that goes on where an earlier run was interrupted
    watch.time = 217
    clock.tell(60, 100)
    assert left() == 40
    assert clock.elapsed == 117


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 67, 3599, 3727)] == [
        *("0 s", "59 s", "1:00", "1:07", "59:59", "1:02:07"),
    ]


def test_names_lose_their_middle() -> None:
    assert shortened("abcdefghij", 7) == "abc\u2026hij"
    assert shortened("abcdefghij", 4) == "ab\u2026j"
    for room in range(2, 12):
        assert cell_len(shortened("\u5377\u79ef" * 8, room)) <= max(room, 3)


# Whom to tell


def test_a_function_is_told_what_is_done_and_a_line_what_begins_too() -> None:
    told: list[tuple[str, int, int]] = []

    def function(what: str, done: int, total: int) -> None:
        told.append((what, done, total))

    inner = under("step 1", function)
    assert inner is not None
    announce(inner, "loading")
    inner("conv", 1, 2)
    assert told == [("step 1: conv", 1, 2)]
    assert under("step 1", None) is None
    with line(80) as (tell, shown):
        announce(under("step 1 of 2", tell), "loading", 3, 7)
        time.sleep(DRAWN)
    assert any("3/7" in frame and frame.endswith("step 1 of 2: loading") for frame in frames(shown))


def test_progress_true_shows_the_line_in_a_terminal_and_nothing_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal(80) as (file, shown), contextlib.redirect_stderr(file):
        first = onnxsep.rewrite(DIGITS, mode="spatial", progress=True)
    assert any(frame.endswith("comparing original and result") for frame in frames(shown))
    assert not any(shown.screen())
    second = onnxsep.rewrite(DIGITS, mode="spatial", progress=True)
    assert capsys.readouterr() == ("", "")
    third = onnxsep.rewrite(DIGITS, mode="spatial", progress=False)
    assert first.proto == second.proto == third.proto
    assert "progress" not in first.report.options


# The commands


def test_every_long_command_shows_it_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.random.default_rng(0).standard_normal((12, 1, 8, 8), dtype=np.float32))
    (tmp_path / "two.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nmode = "spatial"\n[[steps]]\ncommand = "prune"\nsparsity = 0.5\n'
    )
    assert run("rewrite", DIGITS, "r.onnx", "--mode", "spatial", "--quiet", cwd=tmp_path).returncode == 0
    for arguments, last, left in (
        (("inspect", DIGITS), "mode tucker", ()),
        (("rewrite", DIGITS, "a.onnx", "--mode", "spatial"), "comparing original and result", ()),
        (("prune", DIGITS, "b.onnx", "--sparsity", "0.5"), "measuring the sizes after zip", ()),
        (("quantize", DIGITS, "c.onnx", "--data", "x.npz"), "measuring the error", ()),
        (("evaluate", DIGITS, "r.onnx", "--data", "x.npz", "--no-memory", "--runs", "1"), "counting", ()),
        (("check", "r.onnx", DIGITS, "--layers"), "comparing the layers from", ()),
        (
            ("compress", DIGITS, "d.onnx", "--recipe", "two.toml", "--runs", "0"),
            "measuring: counting",
            ("step 1 rewrite: ", "step 2 prune: "),
        ),
    ):
        status, shown = on_terminal(*arguments, columns=100, stderr=True, cwd=tmp_path)
        assert status == (3 if arguments[0] == "check" else 0)
        assert shown.widest <= 100
        assert any(last in frame for frame in frames(shown)), arguments
        lines = shown.screen()
        assert [each[: len(want)] for each, want in zip(lines, left, strict=False)] == list(left)
        # On standard output, which is the same terminal here, the report follows on a line of its own.
        assert not any("\u2501" in each or last in each for each in lines)


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="no such signal")
def test_ctrl_c_leaves_whole_lines(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).standard_normal((500, 500, 3, 3), dtype=np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name=NAME, pads=[1] * 4)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 500, 8, 8]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(wide, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    command = [str(Path(sys.executable).with_name("onnxsep")), "rewrite", "m.onnx", "o.onnx", "--mode", "spatial"]
    command += ["--include-first", "--rank", "full", "--force"]
    with terminal(70) as (file, shown), subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path) as process:
        for _ in range(600):
            if b"0/" in shown.written or b"factorising" in shown.written or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait()
    assert process.returncode == 130
    screen = [each for each in shown.screen() if each]
    assert screen == ["onnxsep: interrupted; nothing was written"]
    assert shown.written.endswith(b"\n")
    assert b"\x1b[?25h" in shown.written  # the cursor is there again
