"""One form for all layers, as large as goals allow: the rank of a rewrite, or the channels that stay."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import onnx

from onnxsep.compression.goals import Goals
from onnxsep.compression.step import Step
from onnxsep.compression.steps import Prune, Rewrite
from onnxsep.data import Dataset
from onnxsep.errors import OnnxsepError
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import Model
from onnxsep.planner.int8 import QUICK
from onnxsep.pruning import prune
from onnxsep.quantization import quantize
from onnxsep.reporting.model_info import size_bytes
from onnxsep.rewriting.api import rewrite
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.sizes import find_sizes

Form = Literal["spatial", "channels", "plan"]
"""One form for all layers, or one for each by a plan."""
COUNTED = ("size", "params", "macs")
"""Budgets that need no measurement."""
_STEPS = 7  # of a search by halves: shares are then known to a hundredth
_LEAST, _MOST = 0.01, 0.97
_BIASED = ("Conv", "Gemm")
_NAMED = 20  # bytes of a small tensor beside its elements: its name, dimensions, and where it is used
_FEW = 8  # samples that are calibrated with: bytes do not depend on the ranges
_SPARE = 0.002  # of a budget: what calibration and training change in a file


def begin(form: Form, share: float) -> Step:
    """The step that makes a form.

    Args:
        form: Which one.
        share: Of the weights that stay.
    """
    if form == "channels":
        return Prune(channels=True, sparsity=round(1 - share, 4))
    return Rewrite(mode=form, rank=round(share, 4), init="joint")


def fitting_share(
    form: Form, original: Model, goals: Goals, data: Dataset, options: Mapping[str, Any], runtime: RuntimeOptions
) -> float | None:
    """The largest share of the weights with which the quantised model keeps within the budgets; None where none does.

    Args:
        form: Of all layers.
        original: The model.
        goals: Whose budgets are all among ``COUNTED``.
        data: What is calibrated with.
        options: Of ``quantize``.
        runtime: How models are run.
    """

    def costs(model: Model) -> Mapping[str, float]:
        made = quantize(model, data=data, runtime=runtime, samples=_FEW, **{**options, **QUICK}).model
        count, more = _possible_biases(model.proto)
        found: dict[str, float] = {
            "size": size_bytes(made) + count * _NAMED + 4 * more,
            "params": count_parameters(made.proto) + more,
        }
        if any(target.kind == "macs" for target in goals.targets):
            found["macs"] = find_sizes(model, runtime=runtime).macs(skeleton(model)).total
        return found

    whole = {"size": size_bytes(original), "params": count_parameters(original.proto)}
    if any(target.kind == "macs" for target in goals.targets):
        whole["macs"] = find_sizes(original, runtime=runtime).macs(skeleton(original)).total
    most = {target.kind: target.amount(whole[target.kind]) * (1 - _SPARE) for target in goals.targets}

    def fits(share: float) -> bool:
        try:
            found = costs(_made(form, original, share, data, runtime))
        except OnnxsepError:  # nothing is so small, or it cannot be quantised
            return False
        return all(found[kind] <= allowed for kind, allowed in most.items())

    return _largest(fits)


def _made(form: Form, original: Model, share: float, data: Dataset, runtime: RuntimeOptions) -> Model:
    """The form with the biases that fits add; fitted to very little, as its values do not matter."""
    step = begin(form, share)
    if isinstance(step, Prune):
        return prune(original, **step.options, verify="none").model
    little: dict[str, Any] = {"samples": _FEW, "positions": 1, "verify": "none"}
    return rewrite(original, **step.options, data=data, runtime=runtime, **little).model


def _possible_biases(proto: onnx.ModelProto) -> tuple[int, int]:
    """Biases that a correction may add when the model is quantised: how many, and their elements."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    bare = [node for node in proto.graph.node if node.op_type in _BIASED and len([*filter(None, node.input)]) == 2]
    sizes = [stored[node.input[1]].dims[0] for node in bare if node.input[1] in stored]
    return len(sizes), sum(sizes)


def _largest(fits: Callable[[float], bool]) -> float | None:
    """The largest share that fits, to a hundredth."""
    low, high, found = _LEAST, _MOST, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if fits(middle):
            low = found = middle
        else:
            high = middle
    return found
