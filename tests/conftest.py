"""Fixtures that every test module may use."""

import os
import signal
from pathlib import Path

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
