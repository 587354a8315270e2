"""From a fit to factors in the stored type, and why there are none."""

from dataclasses import replace

import numpy as np

from onnxsep.algebra.gram import Mixed, mean_product, scaled_rows
from onnxsep.algebra.linalg import Array
from onnxsep.calibration.fitting import Fit
from onnxsep.calibration.sampling import Floats
from onnxsep.engine.factors import Factorized, OutputErrors, checked_factors, from_weights
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import CalibrationError, FactorizationError, spelled
from onnxsep.graph.constants import read_constant
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.model.io import Model

FELL_BACK = "on held-out positions nothing was better than the factors of the weights alone"


UNFIT = (CalibrationError, MemoryError, np.linalg.LinAlgError)
"""What may come up in the fit of one Conv, and leaves the others as they are."""


SHARED = "its weight is shared: the factors are those of the first Conv, only the bias was fitted"


SHARED_BY_NESTED = "its weight is shared: the factors were fitted to what a Conv of the main graph reads"


def unfit(error: BaseException) -> str:
    """Why a Conv cannot be fitted, in words."""
    if isinstance(error, MemoryError):
        return f"there is not enough memory for it; fewer {spelled('samples')} or {spelled('positions')} need less"
    return str(error)


def plain_outcome(model: Model, sites: Sites, replacement: ConvReplacement) -> Factorized | str:
    """The factors of the weight alone, or why there are none."""
    try:
        weight = read_weight(model, sites, replacement.site)
        factors = from_weights(model, sites, replacement, weight)
        return checked_factors(replacement, weight, factors)
    except UNFIT as error:
        return f"it cannot be factorised: {unfit(error)}"


def read_bias(model: Model, sites: Sites, site: ConvSite) -> Array | None:
    """The constant bias of a site, [out_channels]; None where it has none.

    Raises:
        FactorizationError: it cannot be read, or holds NaN or infinity.
    """
    if site.bias is None:
        return None
    bias: Array = read_constant(model, sites.scopes, site.bias).astype(np.float64).reshape(-1)
    if not np.isfinite(bias).all():
        raise FactorizationError("its bias holds NaN or infinity")
    return bias


def outcome_of(replacement: ConvReplacement, weight: Array, result: Fit, init: str) -> Factorized | str:
    """A fit in the stored type, or why it cannot be stored."""
    outcome = checked_factors(replacement, weight, result.factors, fitted=init != "svd")
    if isinstance(outcome, str):
        return outcome
    bias = None if result.bias is None else result.bias.astype(STORED_TYPES[replacement.site.dtype])
    if bias is not None and not np.isfinite(bias.astype(np.float64)).all():
        return f"its bias does not fit into {replacement.site.dtype}"
    return replace(outcome, bias=bias, errors=OutputErrors(result.before, result.fitted, result.held_out))


def told(result: Fit) -> str:
    """The error on held-out positions before and after, in words."""
    return f"{result.before:.3f} -> {result.held_out:.3f}"


def mixed_products(originals: Floats, rows: Floats, group: int, *, centre: bool) -> tuple[Mixed, ...]:
    """The mean of x0 x^T for each group, both centred where the bias is fitted."""
    shape = (len(rows), group, rows.shape[1] // group)
    pair = [array - array.mean(axis=0) if centre else array for array in (originals, rows)]
    left, right = (array.reshape(shape) for array in pair)
    groups = [(left[:, number], right[:, number]) for number in range(group)]
    if len(rows) < shape[2]:
        return tuple(Mixed(scaled_rows(before), scaled_rows(after)) for before, after in groups)
    return tuple(Mixed(None, mean_product(before, after)) for before, after in groups)
