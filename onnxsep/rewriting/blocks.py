"""The blocks of a network, for ``inspect``: residual blocks, layers that stand alone, classifier heads."""

import math
from collections.abc import Iterator, Mapping, Sequence

from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import BlockReplacement, Replacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.activations import activation
from onnxsep.graph.expressions import Const, Either, Op, Value
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match, Pattern
from onnxsep.graph.places import Place
from onnxsep.graph.scopes import display_name
from onnxsep.model.io import Model
from onnxsep.modes.residual import residual_pattern
from onnxsep.rewriting.report import InspectedBlock

_CONV = Op("conv", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
_STATISTICS = [Const(name) for name in ("gamma", "beta", "mean", "variance")]
_NORMED = Either(Op("norm", "BatchNormalization", _CONV, *_STATISTICS), _CONV)
_LAYER = Pattern("layer", Either(activation("activation", _NORMED), _NORMED))


def inspected_blocks(model: Model, sites: Sites, plans: Mapping[str, Plan]) -> tuple[InspectedBlock, ...]:
    """Every block in graph order, and what the modes would do with it.

    Args:
        model: the source.
        sites: its convolutions.
        plans: what each mode would replace, by its name.
    """
    convs = {site.place: site for site in sites.found if isinstance(site, ConvSite)}
    index = Index(model.proto, sites.scopes)
    whole = residual_pattern(end=True).find(index).matches
    taken = {place for match in whole for place in match.nodes.values()}
    branches = [match for match in residual_pattern(end=False).find(index).matches if _is_apart(match, taken)]
    taken |= {place for match in branches for place in match.nodes.values()}
    found = [(match, _residual(match, convs)) for match in (*whole, *branches)]
    layers = [match for match in _LAYER.find(index).matches if _is_apart(match, taken)]
    found += [(match, _layer(index, match, convs)) for match in layers]
    blocks: list[tuple[tuple[Place, ...], InspectedBlock]] = [
        (tuple(match.nodes.values()), block) for match, block in found if block is not None
    ]
    blocks += _heads(plans, convs)
    blocks.sort(key=lambda item: min(item[0]))
    return tuple(_judged(index, places, block, plans) for places, block in blocks)


def _is_apart(match: Match, taken: set[Place]) -> bool:
    return taken.isdisjoint(match.nodes.values())


def _residual(match: Match, convs: Mapping[Place, ConvSite]) -> InspectedBlock | None:
    numbers = [number for number in (1, 2, 3) if f"conv_{number}" in match.nodes]
    places = [match.nodes[f"conv_{number}"] for number in numbers]
    if not all(place in convs for place in places):
        return None
    geometries = [convs[place].conv for place in places]
    kernels = [max(conv.kernel_shape) for conv in geometries]
    kind = "bottleneck" if len(kernels) == 3 and kernels[0] == kernels[2] == 1 else "basic block"
    strides = tuple(math.prod(axis) for axis in zip(*(conv.strides for conv in geometries), strict=True))
    skip = "Conv" if "conv_skip" in match.nodes else "identity" if "add" in match.nodes else "other nodes"
    channels = (geometries[0].in_channels, *(conv.out_channels for conv in geometries))
    return InspectedBlock(kind=kind, channels=channels, strides=strides, skip=skip)


def _layer(index: Index, match: Match, convs: Mapping[Place, ConvSite]) -> InspectedBlock | None:
    site = convs.get(match.nodes["conv"])
    if site is None:
        return None
    behind = ["BatchNormalization"] if "norm" in match.nodes else []
    behind += [index.node(match.nodes["activation"]).op_type] if "activation" in match.nodes else []
    kind = " + ".join(["first Conv" if site.first else "Conv", *behind])
    return InspectedBlock(
        kind=kind, channels=(site.conv.in_channels, site.conv.out_channels), strides=site.conv.strides
    )


def _heads(
    plans: Mapping[str, Plan], convs: Mapping[Place, ConvSite]
) -> Iterator[tuple[tuple[Place, ...], InspectedBlock]]:
    """What block modes find at the end of a network: several linear layers."""
    seen: set[Place] = set()
    for plan in plans.values():
        for row in plan.replacements:
            if not isinstance(row, BlockReplacement) or row.site.op_type == "Conv" or row.site.place in seen:
                continue
            seen.add(row.site.place)
            linear = [convs[place].conv for place in row.site.nodes if place in convs]
            channels = (linear[0].in_channels, *(conv.out_channels for conv in linear))
            yield row.site.nodes, InspectedBlock(kind="classifier head", channels=channels)


def _judged(index: Index, places: Sequence[Place], block: InspectedBlock, plans: Mapping[str, Plan]) -> InspectedBlock:
    """The same with its nodes, and what the modes do with it."""
    own, applies, reasons = set(places), dict[str, tuple[str, ...]](), dict[str, str]()
    for mode, plan in plans.items():
        rows = [row for row in plan.rows if own & _places(row)]
        replaced = tuple(row.site.name for row in rows if isinstance(row, Replacement))
        if replaced:
            applies[mode] = replaced
        elif left := [row for row in rows if isinstance(row, Rejected)]:
            reasons[mode] = left[0].reason
    nodes = tuple(display_name(index.node(place)) for place in sorted(places))
    return block.model_copy(update={"nodes": nodes, "applies": applies, "reasons": reasons})


def _places(row: Replacement | Rejected) -> set[Place]:
    return {row.place} if isinstance(row, Rejected) else set(row.site.nodes)
