"""Layers in int8: what ``onnxsep.planner.latency`` does to each piece before it runs."""

from collections.abc import Mapping
from typing import Any

from onnxsep.errors import OnnxsepError
from onnxsep.model.io import Model
from onnxsep.planner.latency import Then
from onnxsep.quantization import quantize
from onnxsep.running.runtime import CannotRun

QUICK: Mapping[str, Any] = {"verify": "none", "equalize": False, "bias_correction": False}
"""Options of ``quantize`` that change values of weights and biases only: neither time nor bytes depend on those."""
_OF_WHOLE = {"exclude", "int8_io"}  # a piece has other names, and its ends are in the middle of a network


def int8(**options: Any) -> Then:
    """Quantisation with these options of ``onnxsep.quantize``; uint8 activations unless they say otherwise.

    Ranges are those of the inputs that a piece is timed on: time does not depend on them.
    """
    said = {name: value for name, value in quantizing(options).items() if name not in {*QUICK, *_OF_WHOLE}}

    def make(model: Model, feeds: Mapping[str, Any]) -> Model:
        try:
            return quick(model, feeds, said)
        except OnnxsepError as error:
            raise CannotRun(f"it cannot be quantised: {error}") from error

    return Then("int8 " + ", ".join(f"{name}={said[name]!r}" for name in sorted(said)), make)


def quick(model: Model, feeds: Mapping[str, Any], options: Mapping[str, Any]) -> Model:
    """A model quantised on some inputs, with float inputs and outputs: as fast as it will be, and as large.

    Raises:
        OnnxsepError: As ``onnxsep.quantize`` raises it.
    """
    return quantize(model, data=dict(feeds), **{**options, **QUICK, "int8_io": False}).model


def quantizing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``onnxsep.quantize`` as plans have them: uint8 activations, the fast ones on x86, unless said."""
    return {"activations": "uint8", **options}
