"""How many random examples a test tries: enough for every kind of input, or far more of them with `make deep`."""

import os

DEEP = os.environ.get("ONNXSEP_TESTS") == "deep"


def examples(usual: int, deep: int) -> int:
    """The number for hypothesis' ``max_examples``."""
    return deep if DEEP else usual
