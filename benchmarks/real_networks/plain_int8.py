"""Static int8 as ONNX Runtime's documentation shows it: pre-process, then quantize_static with QDQ nodes.

python plain_int8.py IN.onnx OUT.onnx DATA.npz
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx.version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """One sample after the other."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            (self._name,) = arrays.files
            self._rest: Iterator[Any] = iter(arrays[self._name])

    def get_next(self) -> dict[str, Any] | None:
        """The next one as a batch."""
        sample = next(self._rest, None)
        return None if sample is None else {self._name: sample[None]}


if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {os.getpid() % len(os.sched_getaffinity(0))})  # one thread: it has no option for that
with tempfile.TemporaryDirectory() as folder:
    newer, prepared = str(Path(folder, "newer.onnx")), str(Path(folder, "prepared.onnx"))
    source = onnx.load(sys.argv[1])
    if next(entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx")) < 13:
        source = onnx.version_converter.convert_version(source, 13)  # a scale for each channel needs 13
    onnx.save(source, newer)  # of a model in memory it leaves Constant nodes as they are, and so their weights in float
    quant_pre_process(newer, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        sys.argv[2],
        Samples(Path(sys.argv[3])),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
