"""Workers that measure for a plan: the same plan whoever works, and what a worker that dies costs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calibration_models import MODEL, ONE_THREAD, X
from command_line import run
from worker_tasks import Broken, Deadly, ends, slow, where

import onnxsep
from onnxsep import PlanResult
from onnxsep.errors import OptionError, PassError
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.surveying import threads_of_each
from onnxsep.running.child import environment
from onnxsep.running.crew import Gone
from onnxsep.running.processes import Processes
from onnxsep.running.runtime import RuntimeOptions

QUICK: dict[str, Any] = {"target": "params=0.7", "data": X, "positions": 8, "rounds": 0, "only": "conv_[ce]"}
QUICK["runtime"] = ONE_THREAD


def plan(**options: Any) -> PlanResult:
    return onnxsep.plan(MODEL, **{**QUICK, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_plan_and_the_cache_are_the_same_whoever_works(tmp_path: Path) -> None:
    modes = ["spatial", "depthwise"]
    one = plan(modes=modes, rounds=1, cache=tmp_path / "one")
    two = plan(modes=modes, rounds=1, cache=tmp_path / "two", workers=2)
    assert one.plan.text() == two.plan.text()
    assert one.report.rounds == two.report.rounds
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    again = plan(modes=modes, rounds=1, cache=tmp_path / "one", workers=2)  # nobody is started for it
    assert again.plan.text() == one.plan.text()
    assert any("are used" in note for note in again.report.measuring)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_worker_that_dies_costs_its_item_only(tmp_path: Path) -> None:
    mode = Deadly(rank=2, once=tmp_path / "dead")
    whole = plan(modes=[mode])  # this process does not die
    twice = plan(modes=[mode], workers=2)
    assert mode.once is not None
    assert mode.once.exists()
    assert twice.plan.text() == whole.plan.text()
    assert twice.report.layers == whole.report.layers
    assert twice.report.measuring == ()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_form_over_which_two_workers_die_is_left_out_with_a_line() -> None:
    mode = Deadly(rank=2)
    whole, without = (plan(modes=[mode], only="conv_c", workers=workers, target="params=0.9") for workers in (1, 2))
    assert without.report.measuring == ("conv_c: deadly 2 left out, for two workers ended over it (signal 9)",)
    before, after = (one.report.layers[1] for one in (whole, without))
    assert before.candidates == after.candidates + 1 > 3
    assert before.rank == after.rank != (2,)


def test_what_a_mode_does_wrong_is_said_in_the_same_words() -> None:
    told = []
    for workers in (1, 2):
        with pytest.raises(PassError) as caught:
            plan(modes=[Broken()], workers=workers, only="conv_c")
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "broken" in told[0]


def test_a_mode_of_the_running_program_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = type("Mine", (Broken,), {"name": "mine", "__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Mine", mine, raising=False)
    with pytest.raises(OptionError, match=r"put modes of your own into a module .* or use workers=1"):
        plan(modes=[mine()], workers=2, only="conv_c")


@pytest.mark.parametrize(("threads", "workers", "each"), [(4, 2, 2), (3, 2, 1), (1, 8, 1), (8, 1, 8)])
def test_threads_are_shared(threads: int, workers: int, each: int) -> None:
    options = PlanOptions(target="params=0.5", data=X, workers=workers, runtime=RuntimeOptions(threads=threads))
    assert threads_of_each(options) == each


@pytest.fixture(scope="module")
def crew() -> Iterator[Processes]:
    crew = Processes(2, threads=1)
    yield crew
    processes = [one.process for one in crew._workers]
    crew.close()
    assert all(one.returncode is not None for one in processes)


def test_processes_do_all_items_with_the_threads_that_they_may(crew: Processes) -> None:
    told: list[tuple[int, object]] = []
    found = dict(crew.each(where, [["shared"]], [10, 11, 12], lambda *one: told.append(one)))
    assert {number: one[1] for number, one in found.items()} == {n: ["shared", str(10 + n)] for n in range(3)}
    assert all(pid != os.getpid() for pid, *_ in found.values())
    assert all(pools and set(pools) == {1} for *_, pools in found.values())
    assert sorted(told) == [(0, "begun"), (1, "begun"), (2, "begun")]


def test_a_process_that_ends_is_replaced_and_says_why(crew: Processes) -> None:
    found = dict(crew.each(ends, [], [0, 3, 0]))
    assert found == {0: 0, 1: Gone("status 3: no room left"), 2: 0}
    assert dict(crew.each(ends, [], [0])) == {0: 0}


def test_nobody_waits_for_what_is_left_when_a_caller_leaves(crew: Processes) -> None:
    started = time.monotonic()
    results = crew.each(slow, [], [0.0, 60.0, 60.0])
    assert next(results) == (0, 0.0)
    results.close()  # as Ctrl-C does
    assert all(one.item is None for one in crew._workers)
    assert dict(crew.each(ends, [], [0, 0])) == {0: 0, 1: 0}
    assert time.monotonic() - started < 50


def test_a_worker_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    # Its input ends with that program, however it ends.
    code = "import sys; sys.path[:] = [p for p in sys.argv[1:]]; from onnxsep.running.child import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(1, tmp_path),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(8)  # it is there
        process.stdin.close()
        assert process.wait(20) == 0


def test_options_that_contradict_one_another(tmp_path: Path) -> None:
    for options, message in (
        ({"workers": 2, "scheduler": "tcp://localhost:1"}, "has workers of its own"),
        ({"scheduler": "somewhere"}, "is no address such as tcp://host:8786"),
        ({"latency_resource": "quiet"}, "is for scheduler"),
        ({"scheduler": "tcp://localhost:1", "latency_resource": "quiet"}, "is for target latency="),
    ):
        with pytest.raises(OptionError, match=message):
            plan(**options)
    with pytest.raises(OptionError, match="workers is for target"):
        onnxsep.rewrite(MODEL, mode="spatial", workers=2)
    words = ("--data", "x.npy", "--target", "params=1", "--workers", 0)
    refused = run("plan", "m.onnx", "p.toml", *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--workers" in refused.stderr
