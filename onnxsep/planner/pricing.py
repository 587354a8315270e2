"""What candidates cost before anything is measured of them: whether a budget can be had at all."""

import itertools
import math
from collections.abc import Sequence

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.planner.block_candidates import joined, priced_block
from onnxsep.planner.file_size import FileSizes
from onnxsep.planner.measuring import Measured
from onnxsep.planner.survey import Rows


def priced(
    sites: Sites, layers: Sequence[ConvSite], grid: Rows, blocks: Sequence[BlockReplacement], size: FileSizes | None
) -> dict[Place, list[Measured]]:
    """Candidates without errors, effects and times.

    Args:
        sites: The layers of the model.
        layers: Those that a plan is for.
        grid: The forms that they may get.
        blocks: The forms that blocks may get.
        size: Counts bytes; None: they do not matter.
    """
    found = {site.place: [Measured.as_it_is(site)] for site in layers}
    if size is not None:
        size.prepare([*itertools.chain(*grid.values()), *blocks])
    for place, rows in grid.items():
        for row in rows:
            more = 0 if size is None else size.change(row)
            found[place].append(Measured(row.site, row, row.parameters, row.macs, more, math.nan, math.nan))
    return joined(found, [priced_block(sites, row, 0 if size is None else size.change(row)) for row in blocks], sites)
