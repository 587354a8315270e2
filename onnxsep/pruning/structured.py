"""Pruning whole channels: the filters that matter least leave the graph, with everything that goes with them.

What the result computes is exact: it equals the source in which nobody reads the removed channels, that is, in which
the weights of every Conv, Gemm and MatMul are zero where they would read one (``Outcome.masked``), up to the rounding
of sums. Where the removed channels are zero anyway in the source, it equals the source itself.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from onnxsep.engine.channels import Channels, Ids
from onnxsep.engine.families import Gone, Importance, WeightCounter, families, filter_norms
from onnxsep.engine.following import follow
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.sites import Sites
from onnxsep.engine.slicing import mask_readers, take_out
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.constants import read_constant
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model
from onnxsep.options.patterns import check_patterns, left_out
from onnxsep.options.progress import Progress
from onnxsep.pruning.options import Norm, Scope
from onnxsep.pruning.outcome import Outcome, left_row, make_totals, sharing_notes
from onnxsep.pruning.report import PrunedLayer
from onnxsep.pruning.schedule import Goal
from onnxsep.pruning.selecting import search


def prune_channels(
    source: Model,
    sites: Sites,
    goal: Goal,
    scope: Scope,
    norm: Norm,
    *,
    multiple: int = 0,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Remove the output channels of Convs whose filters have the smallest norms.

    Args:
        source: the model; it is not changed.
        sites: its Convs.
        goal: the share of the Convs' weights that goes with the channels.
        scope: "global" compares the channels of all Convs, "layer" takes the same share of each.
        norm: of the filters, see ``Importance``.
        multiple: each Conv keeps a multiple of so many channels, where it has as many; 0 for any number.
        only: glob patterns; the filters of a Conv whose name matches none stay.
        skip: glob patterns; the filters of a Conv whose name matches one stay.
        input_shapes: shapes for inputs whose dimensions are free, for counting.
        dry_run: give the source itself as the model.
        progress: told of every Conv that is done.

    Raises:
        OptionError: a pattern matches the name of no Conv, or the sparsity cannot be reached.
        ModelLoadError: a weight cannot be read.
        PassError: the result is not valid; this is a bug.
    """
    check_patterns([item.name for item in sites.found], only, skip, "layer")
    channels = follow(source, sites)
    for item in sites.found:
        reason = left_out(item.name, only, skip)
        if reason and item.place in channels.filters:
            channels.freeze(channels.filters[item.place], f"{item.op_type} {item.name!r} is {reason}")
    importance = _importance(source, sites, channels, norm, progress)
    every, frozen, counter = channels.classes(), channels.frozen(), WeightCounter(sites, channels)
    none = np.zeros(len(every), np.bool_)
    total = counter.weights(none)
    wanted = goal.left(total)

    def numbers(classes: set[int]) -> Gone:
        return np.isin(every, list(classes))

    found = families(channels, every, frozen, importance)
    reasons = _reasons(sites, channels, every, frozen)
    if not any(family.free for family in found):
        why = next((f" ({item.name!r}: {reasons[item.place]})" for item in sites.found if item.place in reasons), "")
        raise OptionError(
            f"no channels of the model can be removed{why}; single weights can become zero: {spelled('sparsity')} "
            f"without {spelled('channels')}"
        )
    chosen = search(found, scope, importance, multiple, wanted[-1], lambda classes: counter.weights(numbers(classes)))
    gone = numbers(chosen)
    result, moved = take_out(source, sites, channels, gone) if chosen else (source, ())
    light = infer_shapes(skeleton(result), input_shapes)
    note = ensure_valid(source, light) if chosen else None
    rows = _rows(sites, counter, gone, reasons)
    return Outcome(
        source if dry_run else result,
        rows,
        make_totals(
            sites, light, pruned=sum(row.status == "pruned" for row in rows), weights=(total, counter.weights(gone))
        ),
        frozenset(item.dtype for item in sites.found if isinstance(item, ConvSite)),
        moved,
        wanted,
        (note,) if note else (),
        partial(mask_readers, source, sites, channels, gone) if chosen and not dry_run else None,
    )


def _importance(
    source: Model, sites: Sites, channels: Channels, norm: Norm, progress: Progress | None
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """By class; a Conv whose weight holds NaN or infinity keeps its filters. A shared weight counts once."""
    every, seen = channels.classes(), set()
    importance = Importance(len(every))
    convs = [item for item in sites.found if isinstance(item, ConvSite) and item.place in channels.filters]
    for number, site in enumerate(convs):
        if site.weight not in seen:
            seen.add(site.weight)
            norms, ones = filter_norms(read_constant(source, sites.scopes, site.weight), norm)
            ids = channels.filters[site.place]
            if not np.isfinite(norms).all():
                channels.freeze(ids, f"the weight of {site.op_type} {site.name!r} holds NaN or infinity")
                norms = np.zeros_like(norms)
            importance.add(every[ids], norms, ones)
        if progress:
            progress(site.name, number + 1, len(convs))
    return importance.values()


def _reasons(sites: Sites, channels: Channels, every: Ids, frozen: Mapping[int, str]) -> dict[Place, str]:
    """By place of each Conv of which at least some filters stay, why."""
    reasons = dict(channels.reasons)
    for item in sites.found:
        if isinstance(item, Rejected):
            reasons[item.place] = item.reason
        elif item.place[0]:
            reasons[item.place] = "it is in a nested graph or function; channels are followed in the main graph"
        elif item.place in channels.filters:
            stay = [frozen[number] for number in every[channels.filters[item.place]].tolist() if number in frozen]
            if stay:
                reasons[item.place] = stay[0]
    return reasons


def _rows(sites: Sites, counter: WeightCounter, gone: Gone, reasons: Mapping[Place, str]) -> tuple[PrunedLayer, ...]:
    shared, rows = sharing_notes(sites), []
    for item in sites.found:
        notes, reason = shared.get(item.place, ()), reasons.get(item.place, "")
        shape = counter.shape(item.weight, gone) if isinstance(item, ConvSite) else None
        if not isinstance(item, ConvSite) or shape == item.conv.weight_shape:
            rows.append(left_row(item, reason or "none of its channels is among those that matter least", notes))
            continue
        rows.append(
            PrunedLayer(
                name=item.name,
                op_type=item.op_type,
                where=item.where,
                status="pruned",
                notes=(*notes, *((f"filters stay: {reason}",) if reason else ())),
                weight_shape=item.conv.weight_shape,
                new_shape=shape,
                weights=item.conv.weight_size,
            )
        )
    return tuple(rows)
