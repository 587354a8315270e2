"""What the ranks of a rewrite keep of the weights: for drawings."""

from collections.abc import Hashable

import numpy as np

from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import FactorizationError
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.ranks import kept_energy
from onnxsep.rewriting.report import Spectrum

_POINTS = 24  # of a curve
_DIGITS = 5
_LARGEST = 1 << 22  # elements of a weight; singular values of larger ones take seconds


def spectra(model: Model, sites: Sites, plan: Plan) -> dict[Place, Spectrum]:
    """The spectrum of each replaced Conv whose mode has singular values, by its place.

    Args:
        model: The source.
        sites: Its Convs.
        plan: What was done.
    """
    known: dict[Hashable, Spectrum | None] = {}
    found = {}
    for row in plan.replacements:
        if isinstance(row, ConvReplacement):
            if row.key not in known:
                known[row.key] = _spectrum(model, sites, row)
            if (one := known[row.key]) is not None:
                found[row.site.place] = one
    return found


def _spectrum(model: Model, sites: Sites, row: ConvReplacement) -> Spectrum | None:
    conv = row.site.conv
    if not row.rank or conv.weight_size > _LARGEST:
        return None
    try:
        kept = kept_energy(row.mode, conv, read_weight(model, sites, row.site), row.rank)
    except FactorizationError:
        return None
    axis = row.mode.rank_axis(conv, row.rank[:-1])
    step = 1 if axis is None else axis.step
    own = min(max(row.rank[-1] // step, 1), len(kept)) - 1
    places = sorted({own, *_some(len(kept))})
    return Spectrum(
        ranks=tuple((at + 1) * step for at in places), kept=tuple(round(float(kept[at]), _DIGITS) for at in places)
    )


def _some(count: int) -> list[int]:
    """Places along a curve of so many values: all, or the first, the last and some between, closer at the beginning."""
    if count <= _POINTS:
        return list(range(count))
    return [round(float(value)) - 1 for value in np.geomspace(1, count, _POINTS)]
