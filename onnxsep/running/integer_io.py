"""Models that take and give integers for real numbers, as on a microcontroller, and how to run them on real numbers.

``onnxsep quantize --int8-io`` makes such models. What an integer stands for is in the model's metadata, one entry for
each such input and output:

    onnxsep.quantization.input.NAME  = scale,zero_point
    onnxsep.quantization.output.NAME = scale,zero_point

real = scale * (integer - zero_point). Data are always given as real numbers: they are quantised here, as the
QuantizeLinear that the model lacks would do it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from onnxsep.errors import ModelLoadError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner, RuntimeOptions

_PREFIX = "onnxsep.quantization."
TYPES: dict[int, type[np.integer[Any]]] = {onnx.TensorProto.UINT8: np.uint8, onnx.TensorProto.INT8: np.int8}

Kind = Literal["input", "output"]


@dataclass(frozen=True)
class Integers:
    """What the integers of an input or output stand for.

    Attributes:
        scale: Positive, finite.
        zero_point: The integer that stands for 0.
        dtype: uint8 or int8.
    """

    scale: np.float32
    zero_point: int
    dtype: type[np.integer[Any]]

    def quantize(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Real numbers to integers: rounded to even, cut off at the ends of the type, as QuantizeLinear does."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(values.astype(np.float32) / self.scale) + self.zero_point
        return np.asarray(np.clip(steps, limits.min, limits.max), dtype=self.dtype)

    def dequantize(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Integers to real numbers."""
        return np.asarray((values.astype(np.int32) - self.zero_point) * self.scale, dtype=np.float32)


@dataclass(frozen=True)
class IntegerIO:
    """The inputs and outputs of a model that hold integers for real numbers, by name."""

    inputs: Mapping[str, Integers] = field(default_factory=dict)
    outputs: Mapping[str, Integers] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


def metadata_of(kind: Kind, name: str, integers: Integers) -> tuple[str, str]:
    """Key and value of the metadata entry of an input or output; the value gives back the scale to the last bit."""
    return f"{_PREFIX}{kind}.{name}", f"{float(integers.scale):.9g},{integers.zero_point}"


def integer_io(proto: onnx.ModelProto) -> IntegerIO:
    """What the model's metadata say.

    Entries do not count where the model has no such input or output, or it is of another type than uint8 and int8.

    Raises:
        ModelLoadError: an entry cannot be read.
    """
    entries = {entry.key: entry.value for entry in proto.metadata_props if entry.key.startswith(_PREFIX)}
    if not entries:
        return IntegerIO()
    held = {tensor.name for tensor in proto.graph.initializer}
    found: dict[Kind, dict[str, Integers]] = {"input": {}, "output": {}}
    kinds: tuple[tuple[Kind, Any], ...] = (("input", proto.graph.input), ("output", proto.graph.output))
    for kind, values in kinds:
        for value in values:
            key = f"{_PREFIX}{kind}.{value.name}"
            dtype = TYPES.get(value.type.tensor_type.elem_type)
            if key in entries and dtype is not None and value.name not in held:
                found[kind][value.name] = _read(key, entries[key], dtype)
    return IntegerIO(found["input"], found["output"])


def _read(key: str, text: str, dtype: type[np.integer[Any]]) -> Integers:
    try:
        first, second = text.split(",")
        scale, zero_point = float(first), int(second)
    except ValueError:
        scale, zero_point = math.nan, 0
    limits = np.iinfo(dtype)
    if not (0 < scale < math.inf and limits.min <= zero_point <= limits.max):
        raise ModelLoadError(
            f"the metadata entry {key!r} is {text!r}, and not a scale and a zero point, such as '0.0078125,128';"
            " correct or remove it"
        )
    return Integers(np.float32(scale), zero_point, dtype)


def as_real(model: Model) -> Model:
    """The model as it is seen from outside: its integer inputs and outputs declared as float32. It is not to be run.

    A model without such inputs and outputs is given back as it is.

    Raises:
        ModelLoadError: a metadata entry cannot be read.
    """
    found = integer_io(model.proto)
    if not found:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for values, names in ((proto.graph.input, found.inputs), (proto.graph.output, found.outputs)):
        for value in values:
            if value.name in names:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return Model(proto, base_dir=model.base_dir, follow_links=model.follow_links)


class RealRunner:
    """Runs a model on real numbers, whatever its inputs and outputs hold.

    Args:
        model: The model.
        options: Threads, provider, custom operators.

    Raises:
        CannotRun: the runtime refuses the model.
        ModelLoadError: a metadata entry cannot be read; or as for ``Runner``.
    """

    def __init__(self, model: Model, options: RuntimeOptions) -> None:
        self._integers = integer_io(model.proto)
        self.run = Runner(model, options)

    def own(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The feed as the model itself takes it; ``run`` is the model itself."""
        return quantized_feed(feed, self._integers)

    def __call__(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name for real inputs.

        Raises:
            CannotRun: as ``Runner``.
        """
        outputs = self.run(self.own(feed))
        for name, integers in self._integers.outputs.items():
            outputs[name] = integers.dequantize(outputs[name])
        return outputs


def quantized_feed(feed: Mapping[str, Any], integers: IntegerIO) -> dict[str, Any]:
    """The feed with integers where the model takes them."""
    return {
        name: integers.inputs[name].quantize(value) if name in integers.inputs else value
        for name, value in feed.items()
    }
