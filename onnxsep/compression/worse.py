"""Steps that make a model slower, larger or less accurate than the step before them, and what is better."""

import math
from collections.abc import Iterator, Sequence

from onnxsep.compression.step import Step
from onnxsep.evaluation.cells import uncertain
from onnxsep.evaluation.report import AgainstReference, EvaluatedModel

_SLOWER = 1.05  # times the time before: less is none that anybody notices
_SURE = 2  # standard errors
_POINTS = 1.0  # of accuracy or agreement
_FAR = 0.3  # relative error of the outputs against the original's


def worse(steps: Sequence[Step], rows: Sequence[EvaluatedModel]) -> Iterator[str]:
    """What got worse, step by step and in the end, in words.

    A loss of accuracy that a later step trains away again is none.

    Args:
        steps: In their order.
        rows: The original, and the result of each step.
    """
    last_trained = max((number for number, step in enumerate(steps, start=1) if step.trains()), default=0)
    for number, step in enumerate(steps, start=1):
        if step.plans:
            continue
        before, after, where = rows[number - 1], rows[number], f"step {number} ({step.name})"
        if text := _slower(before, after):
            yield f"{where} makes the model slower: {text} times its time before; {_faster(step)}"
        if after.file_bytes > before.file_bytes:
            sizes = f"{before.file_bytes:,} -> {after.file_bytes:,} bytes"
            yield f"{where} makes the file larger: {sizes}; the recipe does without it, or give it a smaller rank"
        if number > last_trained and (text := _lost(before, after)):
            yield f"{where} loses {text}; {_better(step)}"
    if len(steps) > 1:
        if text := _slower(rows[0], rows[-1]):
            yield f"the result is slower than the original: {text} times its time; the recipe int8 is the fast one"
        if last_trained and (text := _lost(rows[0], rows[-1])):
            yield f"the result has lost {text} against the original; train longer (epochs), or take the recipe int8"


def _slower(before: EvaluatedModel, after: EvaluatedModel) -> str:
    """How many times the time before it takes, where that is surely more."""
    ratios = [_ratio(row) for row in (before, after)]
    (one, one_error), (other, other_error) = ratios
    if not one or not other:
        return ""
    ratio = other / one
    error = ratio * math.hypot(one_error / one, other_error / other)
    return uncertain(ratio, error) if ratio > max(_SLOWER, 1 + _SURE * error) else ""


def _ratio(row: EvaluatedModel) -> tuple[float, float]:
    """Its time as a share of the original's, with the standard error; 0 where it was not measured."""
    if row.latency is None:
        return 0.0, 0.0
    found = row.latency.against_first
    return (1.0, 0.0) if found is None else (found.value, found.standard_error or 0.0)


def _lost(before: EvaluatedModel, after: EvaluatedModel) -> str:
    """How much accuracy, agreement or exactness is lost, where that is surely much."""
    if before.top1 is not None and after.top1 is not None:
        points = 100 * (before.top1.share.value - after.top1.share.value)
        # Both are compared with the original sample by sample: their errors against it bound that of the difference.
        against = [row.top1.against_first for row in (before, after) if row.top1 is not None]
        errors = [one.standard_error for one in against if one is not None]
        error = 100 * math.hypot(*errors)
        return f"{uncertain(points, error)} points of top-1 accuracy" if points > max(_POINTS, _SURE * error) else ""
    if after.metric is not None or after.against_reference is None:
        return ""
    now, earlier = after.against_reference, before.against_reference
    if now.agreement is not None:
        was = 1.0 if earlier is None or earlier.agreement is None else earlier.agreement.value
        points = 100 * (was - now.agreement.value)
        error = 100 * now.agreement.standard_error
        return f"{uncertain(points, error)} points of agreement" if points > max(_POINTS, _SURE * error) else ""
    worst, least = _error(now), 0.0 if earlier is None else _error(earlier)
    return f"exactness: the relative error of the outputs is {worst:.2g}" if worst > max(_FAR, least) else ""


def _error(found: AgainstReference) -> float:
    """The largest of all outputs."""
    return max((one.relative for one in found.outputs if one.relative is not None), default=0.0)


def _faster(step: Step) -> str:
    resolved = step.resolved()
    if step.name == "quantize" and resolved.get("activations") != "uint8" and not resolved.get("int8_io"):
        return 'on x86 processors activations = "uint8" is the fast form'
    return "without it (the recipe int8 is quantize alone) the result may be the faster one"


def _better(step: Step) -> str:
    return {
        "quantize": "max-drop = 1 in that step keeps the layers that hurt in float (with labels)",
        "rewrite": "a higher rank, a step finetune behind it, or the recipe int8, which leaves it out, loses less",
        "prune": "a lower sparsity, or a step finetune behind it, loses less",
    }.get(step.name, "more epochs may win it back")
