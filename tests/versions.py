"""What the oldest versions that are supported cannot do."""

import onnxruntime
import pytest

RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
OLD = RUNTIME < (1, 22)

needs_new_runtime = pytest.mark.skipif(
    OLD, reason="this old runtime, or its quantiser, knows less: Flatten, Resize of some axes, tensors without elements"
)
