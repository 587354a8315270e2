"""Pruning single weights: which elements of which stored weights become zero."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.engine.sparsity import set_mark
from onnxsep.engine.storing import with_values
from onnxsep.errors import spelled
from onnxsep.graph.places import Constant, Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.pruning.magnitude import Mask, outside_pattern, smallest
from onnxsep.pruning.options import Scope
from onnxsep.pruning.outcome import Outcome, left_row, make_totals, sharing_notes
from onnxsep.pruning.report import PrunedLayer
from onnxsep.pruning.schedule import Goal
from onnxsep.pruning.targets import Target, Targets, find_targets


@dataclass
class _Choice:
    """New values of the weights that change, and what was decided on the way."""

    values: dict[Constant, NDArray[np.generic]] = field(default_factory=dict)
    zeros: dict[Constant, int] = field(default_factory=dict)  # elements that are zero then, of every target
    left: dict[Place, str] = field(default_factory=dict)  # layers that the pattern does not fit
    surviving: tuple[int, ...] = ()


def prune_weights(
    source: Model,
    sites: Sites,
    goal: Goal,
    scope: Scope,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Set the smallest weights to zero.

    Args:
        source: the model; it is not changed.
        sites: its layers.
        goal: how many weights go.
        scope: "global" compares the weights of all layers, "layer" takes the same share of each.
        only: glob patterns; a layer whose name matches none is left alone.
        skip: glob patterns; a layer whose name matches one is left alone.
        dry_run: choose, and change nothing.
        progress: told of every weight that is done.

    Raises:
        OptionError: a pattern matches the name of no layer.
        ModelLoadError: a weight cannot be read.
    """
    targets = find_targets(source, sites, only, skip)
    choice = _choose(targets, goal, scope, progress)
    pruned = [target for target in targets.found if target.users[0].place not in choice.left]
    weights = sum(target.values.size for target in pruned)
    zeros = sum(target.zeros for target in pruned), sum(choice.zeros[target.constant] for target in pruned)
    result, moved = source, tuple[str, ...]()
    if choice.values and not dry_run:
        result, moved = with_values(source, choice.values)
        method = "magnitude" if goal.pattern is None else "{}:{}".format(*goal.pattern)
        set_mark(result.proto, f"{zeros[1] / weights:.6f} {method}")
    notes = [
        "ONNX Runtime computes with zeros as with any number: they give no speed, and no smaller file until it is"
        f" zipped; {spelled('channels')} takes whole channels out of the graph"
    ]
    if not weights:
        notes = ["nothing was pruned: no layer has float weights that it may change; the table gives the reasons"]
    elif not choice.values:
        notes = [f"nothing changes: {zeros[0]:,} of {weights:,} weights are zero already"]
    if choice.values and goal.step is not None and zeros[0]:
        notes.append(f"{zeros[0]:,} weights were zero already: the steps count from the other {weights - zeros[0]:,}")
    rows = _rows(sites, targets, choice)
    return Outcome(
        result,
        rows,
        make_totals(
            sites,
            sites.light,
            pruned=sum(row.status == "pruned" for row in rows),
            weights=(weights, weights),
            zeros=zeros,
        ),
        frozenset(target.users[0].dtype for target in pruned),
        moved,
        choice.surviving,
        tuple(notes),
    )


def _choose(targets: Targets, goal: Goal, scope: Scope, progress: Progress | None) -> _Choice:
    """Choose the weights that become zero."""
    choice, found = _Choice(), targets.found
    if goal.pattern is None:
        pools = [found] if scope == "global" else [[target] for target in found]
        masks, counts = _smallest(pools, goal)
        choice.surviving = tuple(map(sum, zip(*counts, strict=True)))
    else:
        masks = _outside(found, goal.pattern, choice)
    for number, target in enumerate(found):
        mask = masks.get(target.constant)
        choice.zeros[target.constant] = target.zeros
        if mask is not None and np.any(target.values[mask]):
            values = target.values.copy()
            values[mask] = 0
            choice.values[target.constant] = values
            choice.zeros[target.constant] = values.size - int(np.count_nonzero(values))
        if progress:
            progress(target.users[0].name, number + 1, len(found))
    return choice


def _smallest(pools: Sequence[Sequence[Target]], goal: Goal) -> tuple[dict[Constant, Mask], list[tuple[int, ...]]]:
    """Masks of the smallest weights of each pool, and how many stay in it after each step."""
    masks: dict[Constant, Mask] = {}
    counts = []
    for pool in pools:
        weights = sum(target.values.size for target in pool)
        left = goal.left(weights, sum(target.zeros for target in pool))
        counts.append(left)
        chosen = smallest([target.values for target in pool], weights - left[-1])
        masks.update((target.constant, mask) for target, mask in zip(pool, chosen, strict=True))
    return masks, counts


def _outside(targets: Sequence[Target], pattern: tuple[int, int], choice: _Choice) -> dict[Constant, Mask]:
    """Masks of what is not among the N largest of every M input channels."""
    kept, of = pattern
    masks: dict[Constant, Mask] = {}
    for target in targets:
        weight = target.oriented
        if weight.shape[1] % of:
            reason = f"its {weight.shape[1]} input channels (of each group) are no multiple of {of}"
            choice.left.update((site.place, reason) for site in target.users)
            continue
        mask = outside_pattern(weight, kept, of)
        masks[target.constant] = mask.T if target.users[0].transposed else mask
    return masks


def _rows(sites: Sites, targets: Targets, choice: _Choice) -> tuple[PrunedLayer, ...]:
    reasons = {**targets.left, **choice.left}
    by_place = {site.place: target for target in targets.found for site in target.users}
    shared = sharing_notes(sites)
    rows = []
    for item in sites.found:
        notes = shared.get(item.place, ())
        if item.place in reasons or not isinstance(item, ConvSite):
            rows.append(left_row(item, reasons[item.place], notes))
            continue
        target = by_place[item.place]
        rows.append(
            PrunedLayer(
                name=item.name,
                op_type=item.op_type,
                where=item.where,
                status="pruned",
                notes=notes,
                weight_shape=item.conv.weight_shape,
                weights=item.conv.weight_size,
                zeros_before=target.zeros,
                zeros_after=choice.zeros[target.constant],
            )
        )
    return tuple(rows)
