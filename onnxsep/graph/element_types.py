"""Element types: how weights are stored in numpy, and how many bits an element takes."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

STORED_TYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


# Those that numpy has no type for in every version of onnx.
_BITS = {
    "BFLOAT16": 16,
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
}


def element_bits(kind: int) -> int | None:
    """Bits of one element of an ONNX type; None where it has no fixed size, or is not known."""
    name = next((name for name, number in onnx.TensorProto.DataType.items() if number == kind), "UNDEFINED")
    if name in _BITS:
        return _BITS[name]
    return None if name in ("UNDEFINED", "STRING") else 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
