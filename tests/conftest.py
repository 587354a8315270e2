"""Fixtures that every test module may use."""

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

# Before numpy is imported: several processes of tests that each start a thread per core in every product of matrices
# wait for each other most of the time.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402

# A shell starts jobs in the background with SIGINT ignored, and children inherit that; the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models from many exporters; it lies beside the checkout where it is available."""
    folder = ROOT.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("the folder ../shared with trained models is not there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _short_timing() -> Iterator[None]:
    """Latency is timed for a tenth of a second at most, where a user waits for seconds; its own tests say how long."""
    from onnxsep.evaluation import api, latency
    from onnxsep.quantization import comparing
    from onnxsep.running.timing import Effort

    short = Effort(turn=0.001, rounds=4, slow_rounds=1, shortest=0.004, longest=0.1, enough=0.1)
    with (
        mock.patch.object(comparing, "QUICK", short),
        mock.patch.object(api, "measure_latency", functools.partial(latency.measure_latency, effort=short)),
    ):
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive a power cut; thousands of files would wait for the disk one after another."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield
