"""What the oldest versions that are supported cannot do."""

import onnxruntime
import pytest

RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
OLD = RUNTIME < (1, 22)

WRONG_WEIGHTS = (
    "the quantiser of ONNX Runtime 1.21 makes wrong weights where a bias is large beside them; 1.22 mends that"
)
needs_right_weights = pytest.mark.skipif(RUNTIME == (1, 21), reason=WRONG_WEIGHTS)
needs_new_runtime = pytest.mark.skipif(
    OLD, reason="this old runtime, or its quantiser, knows less: Flatten, Resize of some axes, tensors without elements"
)
