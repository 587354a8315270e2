"""Which layers a plan is for, and what becomes of each, as records."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planning import Options, in_main_graph, left_alone
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError
from onnxsep.graph.places import Place
from onnxsep.options.patterns import as_patterns, check_patterns
from onnxsep.planner.measuring import Measured
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.output_distance import from_additive
from onnxsep.planner.report import PlannedLayer
from onnxsep.planner.search import Found
from onnxsep.planner.timings import Timings


def layers_to_plan(sites: Sites, options: PlanOptions) -> tuple[list[ConvSite], dict[Place, str]]:
    """The layers that get candidates, and why the others do not, by their places.

    Raises:
        OptionError: A pattern matches no layer, or none is left.
    """
    only, skip = as_patterns(options.only), as_patterns(options.skip)
    check_patterns([item.name for item in sites.found], only, skip, "convolution")
    asked = Options(include_first=options.include_first, recurse=options.recurse, only=only, skip=skip)
    found = [item for item in sites.found if isinstance(item, ConvSite)]
    weights = [item.weight for item in found]
    layers: list[ConvSite] = []
    reasons: dict[Place, str] = {}
    for item in found:
        reason = left_alone(item, asked) or options.stays_in_float(item.name)
        if not reason and (item.pinned or weights.count(item.weight) > 1):
            reason = "its weight is shared, and plans are made for layers with weights of their own"
        if not reason and not in_main_graph(item):
            reason = "it is in a nested graph or a function, where nothing is measured"
        if reason:
            reasons[item.place] = reason
        else:
            layers.append(item)
    if not layers:
        raise OptionError("there is no layer to plan for: " + (next(iter(reasons.values()), "the model has none")))
    return layers, reasons


def layer_rows(
    sites: Sites,
    best: Found | None,
    reasons: Mapping[Place, str],
    count: Mapping[Place, int],
    timings: Timings | None = None,
) -> Iterator[PlannedLayer]:
    """A record for each layer, in graph order.

    Args:
        sites: The layers.
        best: The plan; None where there is none.
        reasons: Why some have no candidates, by their places.
        count: How many candidates were measured, by the place of the layer.
        timings: What forms take, where that is a budget.
    """
    chosen = {} if best is None else {one.site.place: one for one in best.selection.chosen}
    blocks = {place: one for one in chosen.values() for place in one.covers}
    kind = "kl" if best is None else best.carried.effect.kind
    for item in sites.found:
        if isinstance(item, Rejected):
            yield PlannedLayer(name=item.name, op_type=item.op_type, where=item.where, reason=item.reason)
            continue
        if item.place in blocks:
            reason = f"in the block of {blocks[item.place].site.name!r}"
            yield PlannedLayer(name=item.name, op_type=item.op_type, where=item.where, reason=reason)
            continue
        alone = Measured.as_it_is(item)
        one = chosen.get(item.place, alone)
        yield PlannedLayer(
            name=item.name,
            op_type=item.op_type,
            where=item.where,
            mode=one.row.mode.name if one.row else None,
            rank=one.row.rank if one.row else None,
            reason="" if one.row else reasons.get(item.place, "not chosen"),
            candidates=count.get(item.place, 0),
            parameters_before=alone.parameters + sum(other.parameters for other in _covered(sites, one)),
            parameters_after=one.parameters,
            macs_before=None if alone.macs is None else alone.macs + sum(o.macs or 0 for o in _covered(sites, one)),
            macs_after=one.macs,
            bytes_more=one.bytes if one.row else None,
            held_out_error=None if best is None else best.carried.held_out.get(item.place),
            time_ratio=timings.ratio(one.row) if timings and one.row else None,
            effect=from_additive(kind, one.effect) if item.place in chosen else None,
        )


def _covered(sites: Sites, one: Measured) -> list[Measured]:
    """The other layers of a block, as they are."""
    found = (item for item in sites.found if isinstance(item, ConvSite) and item.place in one.covers)
    return [Measured.as_it_is(item) for item in found]


def counted(measured: Iterable[Mapping[Place, Sequence[Measured]]]) -> Mapping[Place, int]:
    """How many candidates were measured of each layer, in several rounds."""
    count = Counter[Place]()
    for one in {id(one): one for one in measured}.values():
        count.update({place: len(several) - 1 for place, several in one.items()})
    return count
