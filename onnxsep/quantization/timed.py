"""Layers in int8, to be timed: what ``onnxsep.planner.latency`` does to each piece before it runs."""

from collections.abc import Mapping
from typing import Any

from onnxsep.errors import OnnxsepError
from onnxsep.model.io import Model
from onnxsep.planner.latency import Then
from onnxsep.quantization.api import quantize
from onnxsep.running.runtime import CannotRun


def int8(**options: Any) -> Then:
    """Quantisation with these options of ``onnxsep.quantize``; uint8 activations unless they say otherwise.

    Ranges are those of the inputs that a piece is timed on: time does not depend on them.
    """
    given = {"activations": "uint8", "bias_correction": False, **options}

    def make(model: Model, feeds: Mapping[str, Any]) -> Model:
        try:
            return quantize(model, data=dict(feeds), verify="none", **given).model
        except OnnxsepError as error:
            raise CannotRun(f"it cannot be quantised: {error}") from error

    return Then("int8 " + ", ".join(f"{name}={given[name]!r}" for name in sorted(given)), make)
