"""Fitting the factors of one Conv to recorded statistics, as if it were the only one replaced."""

from collections.abc import Sequence

import numpy as np

from onnxsep.algebra.gram import Gram
from onnxsep.algebra.linalg import Array
from onnxsep.algebra.statistics import SiteMoments, Statistics
from onnxsep.calibration.fitting import PRIOR, Fit
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Mode, Task


def fit_moments(
    mode: Mode,
    conv: Conv,
    rank: Rank,
    weight: Array,
    moments: SiteMoments,
    *,
    init: str,
    old_bias: Array | None,
    new_bias: bool,
    prior: float = PRIOR,
    given: Factors | None = None,
    alone: Factors | None = None,
) -> Fit:
    """Fit the factors of one Conv as if it were the only one replaced, to what the original network delivers to it.

    The arguments are those of ``fit``; nothing is known of what stands behind the Conv. With ``given`` factors only the
    bias is fitted.
    """
    old = np.zeros(conv.out_channels) if old_bias is None else old_bias
    shape = (conv.group, conv.out_channels // conv.group, -1)
    matrix = weight.reshape(shape)

    def measured(factors: Factors, init: str) -> tuple[float, float, Array | None]:
        difference = matrix - mode.reconstruct(conv, factors).reshape(shape)
        free = new_bias and init != "svd"
        bias = old + (difference @ moments.fit.mean[:, :, None]).reshape(-1) if free else None
        # With a fitted bias the mean error is zero on the positions of the fit, elsewhere it is what is left.
        shift = (difference @ moments.fit.mean[:, :, None])[:, :, 0] if free else np.zeros(shape[:2])
        errors = []
        for part in (moments.fit, moments.held_out):
            mean = (difference @ part.mean[:, :, None])[:, :, 0] - shift
            lost = _energy(difference, part.centred) + float(np.vdot(mean, mean))
            whole = _energy(matrix, part.centred)
            errors.append(float(np.sqrt(max(lost, 0.0) / whole)) if whole > 0 else float(lost > 0))
        return errors[0], errors[1], bias

    plain = given or alone or mode.factorize(Task(conv, weight), rank)
    fitted, before, bias = measured(plain, init)
    if given:
        return Fit(plain, bias, fitted, before, before, fell_back=False)
    if init == "svd":
        return Fit(plain, old if new_bias else None, fitted, before, before, fell_back=False)
    grams = moments.fit.centred if new_bias else moments.fit.square()
    cross = np.stack([gram.times(one) for gram, one in zip(grams, matrix, strict=True)])
    statistics = Statistics(grams, cross).with_prior(weight, prior)
    factors = mode.fit(Task(conv, weight, statistics, start=plain), rank, init)
    better = measured(factors, init)
    if better[1] <= before:
        return Fit(factors, better[2], better[0], better[1], before, fell_back=False)
    return Fit(plain, bias, fitted, before, before, fell_back=True)


def _energy(matrix: Array, covariance: Sequence[Gram]) -> float:
    """Mean of |M x|^2 for x of mean zero, over all groups."""
    return sum(float(np.vdot(gram.times(one), one)) for gram, one in zip(covariance, matrix, strict=True))
