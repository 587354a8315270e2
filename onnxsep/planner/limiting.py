"""Layers of low rank without a kernel, before they are written: what they change at the network's output.

A 1 x 1 Conv, Gemm or MatMul of low rank can lose what the network computes though its own error looks small, as in
networks for mobile devices. Where the effect is too large the layer is left alone: that of the layer alone first, then
that of all that are left together, for many small effects make a large one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.threads import one_thread
from onnxsep.calibration import Fitting
from onnxsep.calibration.candidates import Candidate, Gathered, fit_candidates, gather
from onnxsep.calibration.outcomes import UNFIT, outcome_of, plain_outcome
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import Dataset, partition
from onnxsep.engine.factors import Factorized, factorize_one
from onnxsep.engine.planning import Plan, drop, in_main_graph, naming, settle_shared
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import spelled
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.measured_samples import divide
from onnxsep.planner.output_distance import Effect
from onnxsep.planner.replaced import replaced
from onnxsep.running.runtime import RuntimeOptions

LIMIT = 0.05
"""Of an effect: nats for classifiers, a relative error for other networks."""
_BATCH = 50  # samples that are run at a time


@dataclass(frozen=True)
class Limited:
    """What was measured.

    Attributes:
        effects: By the place of the layer, of each alone.
        notes: What was not measured, and why; what they change together.
    """

    effects: Mapping[Place, Effect] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def limit_effects(
    model: Model,
    sites: Sites,
    plan: Plan,
    fitting: Fitting,
    limit: float,
    runtime: RuntimeOptions,
    progress: Progress | None = None,
) -> Limited:
    """Leave alone layers of low rank without a kernel that change the network's output too much.

    Each is fitted as if it were the only one replaced, and measured on samples that this fit does not see. Of those
    that are small enough alone, so many of the smallest are kept that all together are small enough.

    Args:
        model: The source.
        sites: Its layers.
        plan: What is to be replaced; such layers become rows that are left alone.
        fitting: What the user chose about data, the dataset opened.
        limit: The largest effect.
        runtime: How pieces of the network are run.
        progress: Told of every layer that is measured.

    Raises:
        DataError: The data do not fit the model.
        CalibrationError: They cannot be used, or the runtime cannot run the model on them.
        PassError: A mode broke a promise.
    """
    rows = [row for row in plan.convs if is_low_rank(row)]
    if not rows:
        return Limited()
    dataset = fitting.data
    if not isinstance(dataset, Dataset):
        count = f"{len(rows)} layer{'s' * (len(rows) > 1)} of low rank without a kernel"
        return Limited(notes=(f"what {count} change at the output was not measured: {spelled('data')} is needed",))
    divided = divide(dataset, partition(dataset, fitting.samples, fitting.seed), fitting.seed)
    walk = EffectWalk(model, sites, dataset.feeds(divided.measured, _BATCH), runtime)
    options = CalibrationOptions(positions=fitting.positions, seed=fitting.seed)
    fed = dataset.feeds(divided.fitted, _BATCH)
    effects: dict[Place, Effect] = {}
    small: list[_Measured] = []
    announce(progress, "measuring effects on the output", 0, len(rows))
    for number, (row, outcome) in enumerate(_outcomes(model, sites, rows, fed, options, runtime), start=1):
        if isinstance(outcome, Factorized):
            effect = effects[row.site.place] = _effect(model, walk, row, outcome)
            if not effect.value <= limit:
                drop(plan, row, _too_large(effect, limit, str(divided)))
            else:
                small.append(_Measured(row, outcome, effect))
        if progress:
            progress(row.site.name, number, len(rows))
    settle_shared(plan)
    left = {id(row) for row in plan.convs}
    note = _limit_together(model, walk, plan, [one for one in small if id(one.row) in left], limit)
    settle_shared(plan)
    return Limited(effects, (f"{note}, measured on {divided}",) if note else ())


@dataclass(frozen=True)
class _Measured:
    row: ConvReplacement
    outcome: Factorized
    effect: Effect


def _limit_together(model: Model, walk: EffectWalk, plan: Plan, rows: Sequence[_Measured], limit: float) -> str:
    """Leave those alone that are too many; what the others change together, empty where there are none or one."""
    if len(rows) < 2:
        return ""
    ranked = sorted(rows, key=lambda one: one.effect.value)
    whole = found = _together(model, walk, [(one.row, one.outcome) for one in ranked])
    kept, most = len(ranked), len(ranked)
    if not whole.value <= limit:
        kept, found = 1, ranked[0].effect  # of one alone it is known to be small enough
        while most - kept > 1:
            middle = (kept + most) // 2
            effect = _together(model, walk, [(one.row, one.outcome) for one in ranked[:middle]])
            if effect.value <= limit:
                kept, found = middle, effect
            else:
                most = middle
    for one in ranked[kept:]:
        drop(plan, one.row, _too_many(one.effect, kept, len(ranked), whole, limit))
    return f"{kept} layer{'s' * (kept > 1)} of low rank without a kernel change the output together by {found}"


def _together(model: Model, walk: EffectWalk, rows: Iterable[tuple[ConvReplacement, Factorized]]) -> Effect:
    """What a model with all of them replaced changes."""
    made = {row.site.place: (row, outcome) for row, outcome in rows}
    outcomes = {place: outcome for place, (_, outcome) in made.items()}
    return walk.of(replaced(model, [row for row, _ in made.values()], outcomes))


def is_low_rank(row: ConvReplacement) -> bool:
    """Whether it takes the place of a layer without a kernel, and is not exact."""
    return max(row.site.conv.kernel_shape, default=1) == 1 and not row.exact


def _outcomes(
    model: Model,
    sites: Sites,
    rows: Sequence[ConvReplacement],
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
) -> Iterator[tuple[ConvReplacement, Factorized | str]]:
    """Factors of each, or why it has none: those of the main graph in the order in which they depend on one another."""
    waiting = {row.site.place: row for row in rows}
    inside = [row.site for row in rows if in_main_graph(row.site)]
    try:
        for found in gather(model, sites, inside, batches, options, runtime) if inside else ():
            row = waiting.pop(found.site.place)
            yield row, _fitted(model, sites, row, found)
    except UNFIT:  # one of them cannot be fitted: as in a fit, the weights alone will do
        pass
    for row in waiting.values():
        yield row, factorize_one(model, sites, row)


def _fitted(model: Model, sites: Sites, row: ConvReplacement, found: Gathered) -> Factorized | str:
    if row.init == "svd":
        return plain_outcome(model, sites, row)
    one = Candidate(row.mode, row.rank, row.init)
    with naming(row.mode, row.site.name), one_thread():
        try:
            ((_, result),) = fit_candidates(
                row.site.conv,
                found.weight,
                found.samples,
                found.tail,
                [one],
                old_bias=found.old_bias,
                new_bias=row.new_bias,
                prior=found.prior,
            )
        except UNFIT:
            return plain_outcome(model, sites, row)
        return outcome_of(row, found.weight, result, row.init)


def _effect(model: Model, walk: EffectWalk, row: ConvReplacement, outcome: Factorized) -> Effect:
    if in_main_graph(row.site):
        bias = None if outcome.bias is None else outcome.bias.astype(np.float64)
        return walk.at(row.site)(row.mode.reconstruct(row.site.conv, outcome.factors), bias)
    return _together(model, walk, [(row, outcome)])


def _too_large(effect: Effect, limit: float, samples: str) -> str:
    return (
        f"changes the output too much: {effect}, measured on {samples} with this layer alone replaced"
        f" ({spelled('max_effect', limit)}; {spelled('force', True)})"
    )


def _too_many(effect: Effect, kept: int, count: int, whole: Effect, limit: float) -> str:
    return (
        f"changes the output too much with others: {effect} alone, {count} such layers together {whole}, of which the"
        f" {kept} with the smallest are replaced ({spelled('max_effect', limit)}; {spelled('force', True)})"
    )
