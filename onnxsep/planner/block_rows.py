"""The forms that blocks of several nodes may get in a plan."""

from collections.abc import Sequence

from onnxsep.algebra.linalg import Array
from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Options, does_not_pay, in_main_graph, make_plan
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.layers.layer import Layer
from onnxsep.model.io import Model
from onnxsep.modes.block import BlockMode


def block_rows(
    model: Model, sites: Sites, modes: Sequence[BlockMode], layers: Sequence[ConvSite], *, recurse: bool = False
) -> list[BlockReplacement]:
    """The forms that blocks may get: those that pay, of blocks all of whose layers may be replaced.

    Args:
        model: The source.
        sites: Its layers.
        modes: With their settings.
        layers: Those that a plan is for.
        recurse: As for ``onnxsep.rewrite``.

    Raises:
        PassError: A mode failed.
    """
    allowed, every = {site.place for site in layers}, {item.place for item in sites.found}
    found: list[BlockReplacement] = []
    seen: set[tuple[str, tuple[Place, ...], tuple[Layer, ...]]] = set()
    for mode in modes:
        options = Options(include_first=True, recurse=recurse)
        for row in make_plan(find_blocks(model, sites, mode), mode, options, _no_weight).replacements:
            assert isinstance(row, BlockReplacement)
            form = mode.name, row.site.nodes, row.layers
            held = every.intersection(row.site.nodes)
            if held <= allowed and in_main_graph(row.site) and form not in seen and not does_not_pay(row):
                seen.add(form)
                found.append(row)
    return found


def members(sites: Sites, row: BlockReplacement) -> list[ConvSite]:
    """The layers among the nodes of a block, its anchor first."""
    places = set(row.site.nodes)
    found = [item for item in sites.found if isinstance(item, ConvSite) and item.place in places]
    return sorted(found, key=lambda site: (site.place != row.site.anchor.place, site.place))


def _no_weight(site: ConvSite) -> Array:
    raise AssertionError(f"a block mode reads no weight of {site.name!r} to be planned")
