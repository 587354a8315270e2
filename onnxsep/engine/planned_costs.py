"""What a plan will cost as a whole, counted on skeletons: no weight is read or computed."""

import onnx

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Plan, site_macs
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import Edit, replace_matches
from onnxsep.graph.counting import node_macs
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import infer_shapes


def planned(sites: Sites, plan: Plan) -> tuple[onnx.ModelProto, Edit]:
    """What the plan would give: a skeleton with inferred shapes, and the edit; no weight is read or computed."""
    light, edit = edited(sites, plan)
    return (infer_shapes(light) if sites.inferred and plan.replacements else light), edit


def edited(sites: Sites, plan: Plan) -> tuple[onnx.ModelProto, Edit]:
    """The same without the shapes of new tensors."""
    if not plan.replacements:
        return sites.light, Edit()
    light = onnx.ModelProto()
    light.CopyFrom(sites.light)
    return light, replace_matches(light, plan.replacements, None)


def plan_macs(sites: Sites, plan: Plan) -> tuple[dict[Place, int | None], dict[Place, int | None]]:
    """MACs of nodes before, and of what stands there after; nodes that are not replaced have the same in both."""
    before = source_macs(sites)
    gone = {place for row in plan.replacements for place in row.site.nodes}
    kept = {place: count for place, count in before.items() if place not in gone}
    return before, {**kept, **{row.site.anchor.place: row.macs for row in plan.replacements}}


def source_macs(sites: Sites) -> dict[Place, int | None]:
    """MACs of each node of the original that multiplies, by its place; None where its sizes are not known."""
    before = node_macs(sites.light)
    for site in sites.found:
        if isinstance(site, ConvSite) and before.get(site.place) is None:
            before[site.place] = site_macs(site)
    return before
