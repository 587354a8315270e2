"""The digits of scikit-learn in files, as ``models/digits/data.py`` writes them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import load_script

DATA = Path(__file__).resolve().parents[1] / "models" / "digits" / "data.py"


@cache
def split() -> Any:
    """The training and the test images with their labels, read once."""
    pytest.importorskip("sklearn")
    return load_script(DATA).load_split()


def digits_in(folder: Path) -> Path:
    """Write the digits as train.npz and test.npz into a folder."""
    for name, part in zip(("train.npz", "test.npz"), split(), strict=True):
        np.savez(folder / name, x=part.images, y=part.labels)
    return folder
