"""Element types of weights: as numpy stores them."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

STORED_TYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
