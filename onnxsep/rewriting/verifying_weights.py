"""Running the source and the pruned model on the same inputs, as ``rewrite`` does."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx

from onnxsep.algebra.output_parts import PartTally
from onnxsep.errors import FeedError, VerificationError, spelled
from onnxsep.graph.index import Index
from onnxsep.graph.scopes import Scope, constant_value, scopes
from onnxsep.model.io import Model
from onnxsep.reporting.model_info import size_bytes
from onnxsep.reporting.records import VerificationReport
from onnxsep.rewriting.verification import not_run
from onnxsep.running.comparison import compare_outputs, run_reference
from onnxsep.running.execution import unseen_places
from onnxsep.running.feeds import Feeds, make_feeds, samples_of
from onnxsep.running.runtime import CannotRun, RuntimeOptions
from onnxsep.running.verification import FULL_BELOW, Settings, full_report, too_far

_AMPLIFIED = 10  # times what the model's own rounding makes: that is no error of the result
# Taking out channels reorders sums, so that the result equals the masked source up to rounding, by its float type.
_ROUNDING = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


def verify_pruned(
    source: Model, result: Model, masked: Callable[[], Model] | None, dtypes: Collection[str], settings: Settings
) -> tuple[VerificationReport, str]:
    """Compare the pruned model with its source, and with what it must equal.

    Args:
        source: the original.
        result: the pruned model.
        masked: makes the original with the removed channels without effect, which the result must equal up to
            rounding; None where single weights became zero.
        dtypes: types of the pruned weights.
        settings: how.

    Returns:
        What was measured, and why the verification failed, or "".

    Raises:
        FeedError: the given inputs do not fit the model.
    """
    if settings.verify == "none":
        return _not_run("none", f"switched off ({spelled('verify', 'none')})"), ""
    if settings.verify == "auto" and settings.inputs is None and size_bytes(source) >= FULL_BELOW:
        reason = (
            f"the model has {size_bytes(source):,} bytes; {spelled('verify', 'full')} compares the outputs all the same"
        )
        return _not_run("none", reason), _unmeasured(reason, settings)
    try:
        feeds = settings.given or make_feeds(
            source, inputs=settings.inputs, input_shapes=settings.input_shapes, seed=settings.seed
        )
        whole = compare_outputs(source, result, feeds, settings.runtime)
        notes, failure = list(whole.notes), ""
        if settings.max_error is not None and whole.relative > settings.max_error:
            failure = too_far(whole.relative, settings.max_error)
        if masked is not None:
            note, wrong = _against_masked(masked(), result, feeds, dtypes, settings)
            notes.append(note)
            failure = wrong or failure
        if unseen := _unseen(source, result, feeds, settings.runtime):
            notes.append(unseen)
            failure = failure or _unmeasured(unseen, settings)
        return full_report(whole, notes, feeds.measured_on), failure
    except CannotRun as error:
        reason = str(error)
    except FeedError as error:
        if settings.input_shapes or settings.inputs is not None:
            raise  # what the user gave does not fit; else there are no default inputs, which is nobody's mistake
        reason = str(error)
    except VerificationError as error:
        return _not_run("full", str(error)), str(error)
    return _not_run("full", reason), _unmeasured(reason, settings)


def _against_masked(
    masked: Model, result: Model, feeds: Feeds, dtypes: Collection[str], settings: Settings
) -> tuple[str, str]:
    """A note on how far the result is from the masked source, and why that is too far, or ""."""
    try:
        equal = compare_outputs(masked, result, feeds, settings.runtime)
    except CannotRun as error:
        return f"not compared with the original whose removed channels are masked: {error}", ""
    note = f"equals the original whose removed channels nobody reads, within {equal.relative:.2g} (relative)"
    allowed = max(_ROUNDING[dtype] for dtype in dtypes)
    if equal.relative <= allowed:
        return note, ""
    noise = _noise(masked, feeds, settings.runtime)
    if equal.relative <= _AMPLIFIED * noise:
        return f"{note}; the model amplifies rounding: run without optimisations it differs by {noise:.2g} itself", ""
    return note.replace("equals", "should equal").replace("within", "but is off by"), (
        f"removing channels is exact, yet the outputs differ by {equal.relative:.3g} from those of the original whose "
        f"removed channels nobody reads (allowed {allowed:g}). This is a bug of onnxsep;"
        f" {spelled('verify', 'none')} writes the result "
        "all the same"
    )


def _noise(model: Model, feeds: Feeds, options: RuntimeOptions) -> float:
    """How far the outputs of one model are apart when the runtime computes them in another order (relative)."""
    one, other = (run_reference(model, feeds, replace(options, optimize=optimize))[0] for optimize in (True, False))
    largest = 0.0
    for name, values in one.items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            tally = PartTally()
            tally.add(values, other[name], samples_of(feeds.arrays))
            largest = max(largest, tally.relative)
    return largest


def _unseen(source: Model, result: Model, feeds: Feeds, options: RuntimeOptions) -> str:
    """Which pruned weights the outputs say nothing about, for nothing that reads them ran; "" where there are none."""
    before, after = scopes(source.proto), scopes(result.proto)
    if len(before) == 1:
        return ""
    changed = {
        (scope.index, name)
        for scope, other in zip(before, after, strict=True)
        for name, content in _tensors(scope).items()
        if _tensors(other).get(name) != content
    }
    index = Index(source.proto, before)
    users = ((use.place for use in index.uses(name, scope)) for scope, name in sorted(changed))
    read = [places for found in users if (places := {place for place in found if place is not None})]
    unseen, where = unseen_places(source, set().union(*read), feeds, options)
    count = sum(places <= unseen for places in read)
    return f"these inputs show nothing of {count} of {len(read)} changed weights{not_run(where)}" if count else ""


def _tensors(scope: Scope) -> dict[str, bytes]:
    """Stored constants of a graph by name."""
    tensors = {node.output[0]: value for node in scope.body.node if (value := constant_value(node)) is not None}
    if isinstance(scope.body, onnx.GraphProto):
        tensors.update((tensor.name, tensor) for tensor in scope.body.initializer)
    return {name: tensor.SerializeToString() for name, tensor in tensors.items()}


def _unmeasured(reason: str, settings: Settings) -> str:
    if settings.max_error is None:
        return ""
    return f"{spelled('max_error')} was asked for and could not be measured: {reason}"


def _not_run(kind: Literal["full", "none"], reason: str) -> VerificationReport:
    return VerificationReport(kind=kind, ran=False, reason=reason)
