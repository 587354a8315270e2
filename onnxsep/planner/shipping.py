"""From the best plan to what is shipped of it: quantised where that was asked for, timed, and held to its budgets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxsep.errors import spelled
from onnxsep.graph.places import Place
from onnxsep.model.files import printable
from onnxsep.model.io import Model
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.measuring import Measured
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.quantized import Quantized, Shipped
from onnxsep.planner.report import PlannedLatency, PlannedQuantization, PlanReport
from onnxsep.planner.search import Found, Round, Search
from onnxsep.planner.targets import Budget
from onnxsep.planner.timings import Timer, Timings

_TRIES = 3  # of a plan whose quantised file is larger than was counted
_SPARE = 0.002  # of a size: biases that a correction adds are not counted beforehand


@dataclass(frozen=True)
class Best:
    """What a search has found.

    Attributes:
        rounds: All of it.
        found: The best plan; None where nothing keeps within the budgets.
        shipped: What is shipped of it, where that is quantised.
    """

    rounds: Sequence[Round]
    found: Found | None = None
    shipped: Shipped | None = None


def best_plan(
    search: Search,
    measured: Mapping[Place, Sequence[Measured]],
    budgets: Mapping[Budget, int],
    rounds: int,
    quantized: Quantized | None,
) -> Best:
    """Search; again, with less room, where the quantised file is larger than its budget.

    Args:
        search: What searches.
        measured: The first round of measurements.
        budgets: By kind.
        rounds: Further ones.
        quantized: What quantises the result.
    """
    room = dict(budgets)
    if quantized is not None and "size" in room:
        room["size"] -= max(quantized.source.size - quantized.size.source, 0) + int(_SPARE * room["size"])
    for _ in range(_TRIES):
        found = list(search.rounds(measured, room, rounds))
        best = min((one.found for one in found), key=lambda one: one.carried.effect.deciding, default=None)
        if best is None or quantized is None:
            return Best(found, best)
        shipped = quantized.of(best.carried.model)
        over = shipped.size - budgets.get("size", shipped.size)
        if over <= 0:
            return Best(found, best, shipped)
        room["size"] -= over
    return Best(())


def latency_report(
    model: Model, best: Best, timings: Timings | None, options: PlanOptions, timer: Timer
) -> PlannedLatency | None:
    """The promise, and what the whole takes where times are those of this machine; None where time is no budget."""
    if timings is None or best.found is None:
        return None
    known = timings.known
    promised, error = known.promised(best.found.carried.plan.convs)
    kept = options.cache if options.latency_from is None else options.latency_from
    found = PlannedLatency(
        whole_ms=known.whole_ms / known.share,
        promised=promised,
        promised_error=error,
        machine=known.machine.words(),
        kept=None if kept is None else printable(kept),
    )
    if options.latency_from is not None:
        return found
    made = best.found.carried.model if best.shipped is None else best.shipped.model
    ratio, spread = timer.ratio(model, made, options.run_with, options.shapes, options.cache, options.teller)
    return found.model_copy(update={"measured": ratio, "measured_error": spread})


def quantization_report(
    best: Best, quantized: Quantized | None, walk: EffectWalk, timings: Timings | None
) -> PlannedQuantization | None:
    """What quantising makes of the model alone, and of the result; None where nothing is quantised."""
    if quantized is None or best.shipped is None:
        return None
    alone = quantized.source
    return PlannedQuantization(
        options=dict(quantized.options),
        bytes_alone=alone.size,
        bytes_after=best.shipped.size,
        effect_alone=walk.of(alone.model).report,
        effect_after=walk.of(best.shipped.model).report,
        latency_alone=None if timings is None else timings.known.share,
    )


def budget_notes(report: PlanReport) -> tuple[str, ...]:
    """What is said of a plan whose budgets the whole exceeds, and of one that quantising alone is as good as."""
    return *_missed_notes(report), *_alone_notes(report)


def _missed_notes(report: PlanReport) -> Iterator[str]:
    """What is said where the whole takes longer than its budget, though the sum over layers keeps within it."""
    latency = report.latency
    target = next((one for one in report.targets if one.kind == "latency"), None)
    if latency is None or latency.measured is None or target is None or not target.before:
        return
    allowed = target.allowed / target.before
    if latency.measured <= allowed:
        return
    over = latency.measured - allowed
    smaller = allowed * allowed / latency.measured
    yield (
        f"warning: the whole takes {latency.measured:.3f} of the time of the model, {over:.3f} ({over / allowed:.1%})"
        f" more than {target.target} allows: single layers do not add up to it quite; {spelled('target')}"
        f" latency={smaller:.3f} leaves room for that"
    )


def _alone_notes(report: PlanReport) -> Iterator[str]:
    """What is said where quantising alone keeps within the budgets, or is the better choice."""
    made = report.quantized
    if made is None:
        return
    replaced = any(layer.mode for layer in report.layers)
    if not replaced:
        yield "int8 alone keeps within the budgets: no layer is replaced, and it is the better choice"
        return
    latency = report.latency
    smaller = made.bytes_after < made.bytes_alone
    faster = (
        latency is not None
        and made.latency_alone is not None
        and (latency.promised if latency.measured is None else latency.measured) < made.latency_alone
    )
    if not smaller and not faster:
        yield "int8 alone is the better choice: the plan makes the quantised model neither smaller nor faster"
