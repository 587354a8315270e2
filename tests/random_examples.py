"""How many random examples a test tries: enough for every kind of input, or far more of them with `make deep`."""

import os
from collections.abc import Iterable
from typing import TypeVar

Case = TypeVar("Case")
DEEP = os.environ.get("ONNXSEP_TESTS") == "deep"


def some(cases: Iterable[Case], every: int) -> list[Case]:
    """Each so many-th of the cases, all of them with `make deep`."""
    return list(cases)[:: 1 if DEEP else every]


def examples(usual: int, deep: int) -> int:
    """The number for hypothesis' ``max_examples``."""
    return deep if DEEP else usual
