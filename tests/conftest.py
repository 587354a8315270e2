"""Fixtures that every test module may use."""

import signal
from pathlib import Path

import pytest

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
