"""A real scheduler of Dask and two workers on this machine, one of which dies."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latency_models
import pytest
from calibration_models import MODEL, ONE_THREAD, X, images
from latency_models import residual
from worker_tasks import Deadly

import onnxsep
from onnxsep import PlanResult
from onnxsep.errors import MissingDependencyError, OptionError
from onnxsep.planner import latency, timings
from onnxsep.running import cluster

QUICK: dict[str, Any] = {"target": "params=0.7", "data": X, "positions": 8, "rounds": 0, "only": "conv_[ce]"}
QUICK["runtime"] = ONE_THREAD
TESTS = Path(__file__).parent


def plan(model: Any = MODEL, **options: Any) -> PlanResult:
    return onnxsep.plan(model, **{**QUICK, **options})


@dataclass
class Dask:
    """A scheduler, and workers that are named."""

    address: str
    folder: Path
    processes: dict[str, "subprocess.Popen[bytes]"]

    def start(self, name: str, *words: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
        environment["OMP_NUM_THREADS"] = "1"
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", *words, "--no-dashboard"]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.folder)

    def start_worker(self, name: str, *words: str) -> None:
        alone = ("--no-nanny", "--nthreads", "1", "--name", name, "--preload", "quick_timing")
        self.start(name, "distributed.cli.dask_worker", self.address, *alone, *words)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Dask(f"tcp://127.0.0.1:{port}", tmp_path_factory.mktemp("dask"), {})
    try:
        made.start("scheduler", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
        made.start_worker("one")
        made.start_worker("two", "--resources", "quiet=1")
        waited_for(made, 2)
        yield made
    finally:
        made.end()


def waited_for(dask: Dask, workers: int) -> None:
    import distributed

    opened: Any = distributed.Client  # its types are not complete
    with opened(dask.address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=60)


def test_latencies_are_measured_where_the_resource_is(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in ((latency, "PIECES"), (latency, "SHARES"), (timings, "THOROUGH")):
        monkeypatch.setattr(place, name, latency_models.QUICK)  # here alone
    options: dict[str, Any] = {
        "data": images(24, (3, 8, 8)),
        "modes": ["depthwise"],
        "only": "one",
        "target": ["latency=1.0"],
    }
    model = residual(8, 8)
    far = plan(model, scheduler=dask.address, latency_resource="quiet", cache=tmp_path / "c", **options)
    assert far.report.latency is not None
    assert far.report.latency.measured is not None
    times = sorted(path.name for path in (tmp_path / "c").glob("*.json"))
    again = plan(model, cache=tmp_path / "c", **options)  # nothing is timed again
    assert again.plan.text() == far.plan.text()
    assert sorted(path.name for path in (tmp_path / "c").glob("*.json")) == times
    with pytest.raises(
        OptionError, match=r"no worker of .* has it; start one with `dask worker .*` and the resource loud=1"
    ):
        plan(model, scheduler=dask.address, latency_resource="loud", **options)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_same_plan_on_a_cluster_one_of_whose_workers_dies(dask: Dask, tmp_path: Path) -> None:
    mode = Deadly(rank=2, once=tmp_path / "dead")
    whole = plan(modes=[mode], cache=tmp_path / "a")
    far = plan(modes=[mode], cache=tmp_path / "b", scheduler=dask.address)
    assert mode.once is not None
    assert mode.once.exists()
    assert far.plan.text() == whole.plan.text()
    assert far.report.measuring == ()
    assert sum(process.poll() is not None for process in dask.processes.values()) == 1
    assert [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*"))] == [
        path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").rglob("*"))
    ]


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    monkeypatch.setattr(cluster, "TIME_LIMIT", 1.0)
    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(OptionError, match=f"{address} did not answer within 1 s"):
            plan(modes=["spatial"], scheduler=address)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependencyError, match=r"pip install onnxsep\[distributed\]"):
        plan(modes=["spatial"], scheduler="tcp://127.0.0.1:8786")
