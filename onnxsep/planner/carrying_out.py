"""A choice carried out as a rewrite would: Conv by Conv, each fitted to what those before it deliver; then measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxsep.calibration.dense import Dense as DenseLayer
from onnxsep.calibration.own_nodes import OwnNodes, own_nodes
from onnxsep.calibration.together import fit_together
from onnxsep.engine.factors import Factorized, factorize_all
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planned_costs import edited, plan_macs
from onnxsep.engine.planning import Plan, reject
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.counting import compare_macs
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.file_size import FileSize, FileSizes
from onnxsep.planner.measuring import Dense, Measured, Samples
from onnxsep.planner.output_distance import Effect
from onnxsep.planner.peak_memory import PeakMemory
from onnxsep.planner.replaced import replaced
from onnxsep.planner.targets import Budget
from onnxsep.planner.timings import Timings
from onnxsep.running.float32 import held_types

UNKNOWN = Effect("relative", float("nan"), 0)


@dataclass(frozen=True)
class Carried:
    """A choice that was carried out.

    Attributes:
        plan: A row for each layer.
        dense: What stands for the replaced layers, as dense ones.
        held_out: The errors of their outputs, by their places.
        effect: On the network's output, of all together, with the pieces that are written.
        model: The rewritten model.
    """

    plan: Plan
    dense: Dense
    held_out: Mapping[Place, float]
    effect: Effect
    model: Model


def plan_of_choice(sites: Sites, chosen: Sequence[Measured], reasons: Mapping[Place, str]) -> Plan:
    """The plan for a choice: a row for each layer, and why it is left alone."""
    rows = {one.site.place: one.row for one in chosen if one.row is not None}
    covered = {place for one in chosen for place in one.covers}
    plan = Plan()
    for item in sites.found:
        if item.place in covered:  # the row of its block tells of it
            continue
        if isinstance(item, Rejected):
            plan.rows.append(item)
        else:
            row = rows.get(item.place)
            plan.rows.append(row or reject(item, reasons.get(item.place, "not chosen")))
    return plan


def carry_out(
    model: Model, sites: Sites, plan: Plan, samples: Samples, walk: EffectWalk, progress: Progress | None = None
) -> Carried:
    """Fit a plan, put it into the model, and measure its effect.

    Args:
        model: The source.
        sites: Its layers.
        plan: A row for each; those that cannot be fitted are left alone.
        samples: What it is fitted to.
        walk: What measures effects against the source.
        progress: Told of every layer that is fitted.

    Raises:
        CalibrationError: The data cannot be used, or the runtime cannot run the model.
        PassError: A mode broke a promise.
    """
    factors = fitted(model, sites, plan, samples, progress)
    made = assembled(model, sites, plan, factors)
    return replace(made, effect=walk.of(made.model))


def fitted(
    model: Model, sites: Sites, plan: Plan, samples: Samples, progress: Progress | None = None
) -> dict[Place, Factorized]:
    """Fit a plan: the new tensors of each layer by its place. The arguments and errors are those of ``carry_out``.

    Layers that cannot be fitted are left alone: their rows in the plan change.
    """
    found = fit_together(model, sites, plan, samples.fitted, samples.options, samples.runtime, progress)
    factors = factorize_all(model, sites, plan, given=found.outcomes, workers=samples.runtime.threads, force=True)
    return factors | {place: one for place, one in found.by_place.items() if place in factors}


def assembled(model: Model, sites: Sites, plan: Plan, factors: Mapping[Place, Factorized]) -> Carried:
    """Put what was fitted into the model; its effect is not known yet.

    Args:
        model: The source.
        sites: Its layers.
        plan: A row for each.
        factors: Of each that is replaced.
    """
    result = replaced(model, plan.replacements, factors)
    dense, held_out = dict[Place, DenseLayer | OwnNodes](), {}
    own = own_nodes(model, sites, plan, copied=bool(held_types(model)), given=factors)
    for row in plan.replacements:
        made = factors[row.site.place]
        if isinstance(row, BlockReplacement):
            dense[row.site.place] = own.of(row)
        else:
            bias = None if made.bias is None else made.bias.astype(np.float64)
            dense[row.site.place] = row.mode.reconstruct(row.site.conv, made.factors), bias
        if made.errors is not None:
            held_out[row.site.anchor.place] = made.errors.held_out
    return Carried(plan, dense, held_out, UNKNOWN, result)


class Costs:
    """What plans for one model cost as a whole, counted as ``inspect`` counts, and as the file is written.

    Args:
        model: The source.
        sites: Its layers.
        timings: What forms take, where that is a budget.
        size: Bytes of what is shipped; None: of the rewritten model itself.
        memory: What plans need for activations, where that is a budget.

    Attributes:
        source: What the source costs, quantised where that is what is shipped.
        original: What the source costs as it is: shares are of this.
        unknown_macs: How many of its nodes have MACs that are not known.
    """

    def __init__(
        self,
        model: Model,
        sites: Sites,
        timings: Timings | None = None,
        size: FileSizes | None = None,
        memory: PeakMemory | None = None,
    ) -> None:
        self._sites, self._timings, self._memory = sites, timings, memory
        self._size = size or FileSize(model, sites.light)
        nothing = Plan([reject(item, "") for item in sites.found if isinstance(item, ConvSite)])
        self.source = self.of(nothing)
        self.original: dict[Budget, int] = {**self.source, "size": self._size.original}
        if timings is not None:
            self.original["latency"] = timings.original
        _, _, self.unknown_macs = compare_macs(*plan_macs(sites, nothing))

    def of(self, plan: Plan) -> dict[Budget, int]:
        """The amount of each kind of budget; the latency and the memory where they matter."""
        light, _ = edited(self._sites, plan)
        _, macs, _ = compare_macs(*plan_macs(self._sites, plan))
        rows = plan.replacements
        counted: dict[Budget, int] = {"params": count_parameters(light), "macs": macs, "size": self._size.of(rows)}
        if self._memory is not None:
            counted["ram"] = self._memory.of(plan)
        return counted if self._timings is None else {**counted, "latency": self._timings.of(rows)}
