"""The choice of one form for each layer that loses least within budgets: an integer program.

Minimise the sum of the losses of what is chosen (softened KL, relative errors squared), one candidate for each layer,
with the sums of their costs within the budgets. It is solved by HiGHS (scipy.optimize.milp), whose lower bound says how
far from the best it may be.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onnxsep.planner.measuring import Measured
from onnxsep.planner.quiet import quiet
from onnxsep.planner.targets import Budget

COSTS: Mapping[Budget, Callable[[Measured], int]] = {
    "params": lambda one: one.parameters,
    "macs": lambda one: one.macs or 0,
    "size": lambda one: one.bytes,
    "latency": lambda one: one.latency,
    "ram": lambda one: one.ram,
}
"""What each budget counts of a candidate. All but the last add up; of the last each alone keeps within the budget."""
_SECONDS = 60.0
_GAP = 1e-4


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        chosen: For each layer.
        effect: The sum of the effects.
        loss: The sum of what was made small.
        gap: How much smaller the least possible sum of that may be.
    """

    chosen: tuple[Measured, ...]
    effect: float
    loss: float
    gap: float


def select(
    layers: Sequence[Sequence[Measured]],
    budgets: Mapping[Budget, float],
    before: Sequence[Measured] = (),
    changes: int | None = None,
) -> Selection | None:
    """Choose a candidate for each layer.

    Args:
        layers: The candidates of each.
        budgets: The largest sum of the costs of what is chosen, by the name of the cost; of "ram" the largest.
        before: An earlier choice.
        changes: How many layers may get another form than there; None: all.

    Returns:
        The choice; None where nothing keeps within the budgets.
    """
    if not all(layers):
        return None
    if not layers:
        return Selection((), 0.0, 0.0, 0.0) if min(budgets.values(), default=0) >= 0 else None
    most_ram = budgets.get("ram", math.inf)
    flat = [one for layer in layers for one in layer if math.isfinite(one.loss) and one.ram <= most_ram]
    once = _once(layers, flat)
    if once is None:
        return None
    constraints = [LinearConstraint(once, 1, 1)]
    sums: dict[Budget, float] = {name: most for name, most in budgets.items() if name != "ram"}
    for name, most in sums.items():
        costs = np.array([COSTS[name](one) for one in flat], float)
        scale = max(float(np.abs(costs).max()), 1.0)  # HiGHS has tolerances of its own
        constraints.append(LinearConstraint(costs[None] / scale, -np.inf, most / scale))
    if changes is not None:
        groups = len(layers) - sum(len(one.covers) for one in before)
        same = np.array([any(one.is_like(other) for other in before) for one in flat], float)
        constraints.append(LinearConstraint(same[None], groups - changes, np.inf))
    losses = np.array([one.loss for one in flat])
    scale = float(np.abs(losses).max()) or 1.0
    with quiet():
        found = milp(
            losses / scale,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": _GAP, "time_limit": _SECONDS},
        )
    if found.x is None:
        return None
    chosen = tuple(flat[place] for place in np.flatnonzero(found.x > 0.5))
    over: dict[Budget, float] = {name: most - 1 for name, most in sums.items() if sum(map(COSTS[name], chosen)) > most}
    if over:  # within a tolerance of an older HiGHS
        return select(layers, {**budgets, **over}, before, changes)
    effect, loss = (float(sum(values)) for values in zip(*((one.effect, one.loss) for one in chosen), strict=True))
    bound = found.mip_dual_bound
    return Selection(chosen, effect, loss, 0.0 if bound is None else max(loss - float(bound) * scale, 0.0))


def _once(layers: Sequence[Sequence[Measured]], flat: Sequence[Measured]) -> csr_array | None:
    """[layers, candidates]: which candidate says what becomes of a layer; None where one has none.

    A block says it of all layers that it covers.
    """
    numbers = {layer[0].site.place: number for number, layer in enumerate(layers)}
    several: list[list[int]] = [[] for _ in layers]
    for column, one in enumerate(flat):
        for place in (one.site.place, *one.covers):
            several[numbers[place]].append(column)
    if not all(several):
        return None
    starts = np.cumsum([0, *map(len, several)]).astype(np.int32)  # an older HiGHS takes no other integers
    columns = np.array([column for own in several for column in own], np.int32)
    return csr_array((np.ones(len(columns)), columns, starts), (len(layers), len(flat)))


def least(layers: Sequence[Sequence[Measured]], name: Budget) -> int:
    """The smallest sum of one cost that a choice can have; of "ram" the smallest peak in these layers."""
    if name == "ram":
        return max((min(map(COSTS[name], layer)) for layer in layers), default=0)
    if any(one.covers for layer in layers for one in layer):  # blocks and the forms of their layers exclude each other
        priced = [[replace(one, effect=float(COSTS[name](one)), deciding=None) for one in layer] for layer in layers]
        found = select(priced, {})
        return sum(map(COSTS[name], found.chosen)) if found is not None else 0
    return sum(min(map(COSTS[name], layer)) for layer in layers)
