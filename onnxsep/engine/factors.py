"""Computing and checking the factors of every Conv of a plan, several Convs at a time."""

import os
from collections.abc import Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxsep.algebra.linalg import Array, relative_error
from onnxsep.engine.planning import Plan, Replacement, drop, factor_key, naming, settle_shared
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import FactorizationError, PassError
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.places import Place
from onnxsep.layers.layer import ConvLayer
from onnxsep.model.io import Model
from onnxsep.modes.base import Factors, Task, factor_shapes
from onnxsep.options.progress import Progress
from onnxsep.running.workers import in_threads

_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


# A full-rank factorisation may be off by the rounding of its factors to the stored type.
_EXACT_UNITS = 16


@dataclass(frozen=True)
class OutputErrors:
    """Relative errors |u - u'| / |u - mean u| of what follows a Conv up to its activation, on calibration data."""

    svd: float
    """Of the factors from the weights alone, with a fitted bias, on positions that no fit has seen."""
    fitted: float
    """On the positions of the fit."""
    held_out: float
    """On the others."""


@dataclass(frozen=True)
class Factorized:
    """The factors of one Conv in the stored type, and ||W - W'|| / ||W|| of what they give."""

    arrays: list[NDArray[np.generic]]
    weight_error: float
    bias: NDArray[np.generic] | None = None
    """The fitted bias, where there is one."""
    errors: OutputErrors | None = None
    """What calibration measured."""

    @property
    def factors(self) -> Factors:
        """The factors as they are stored, in double precision."""
        return Factors([array.astype(np.float64) for array in self.arrays])


def factorize_all(
    model: Model,
    sites: Sites,
    plan: Plan,
    *,
    given: Mapping[Hashable, Factorized | str] | None = None,
    workers: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[Place, Factorized]:
    """Factorise every replacement of the plan, a shared weight once.

    A Conv whose weight or factors are not finite is left alone: its row in the plan changes.

    Args:
        model: the source.
        sites: where the Convs are.
        plan: what to do; changed as said above.
        given: outcomes that are known already, by ``onnxsep.engine.planning.factor_key``.
        workers: Convs at a time, each on one thread of the linear algebra; 0 takes the number of processors.
        force: keep Convs whose shared weight then has to stay.
        progress: told of every Conv that is done.

    Returns:
        The factors by the place of the replaced Conv.

    Raises:
        PassError: a mode failed, returned factors of the wrong shape, or ones that are not exact at full rank.
    """
    replacements = plan.replacements
    done: dict[Hashable, Factorized | str] = dict(given or {})
    unique = {factor_key(replacement): replacement for replacement in replacements}
    unique = {key: replacement for key, replacement in unique.items() if key not in done}
    # Many small problems in parallel on one thread each beat one after the other on many threads.
    jobs = {key: partial(_factorize, model, sites, replacement) for key, replacement in unique.items()}
    with threadpool_limits(1), closing(in_threads(jobs, workers or os.cpu_count() or 1)) as found:
        for key, made in found:
            done[key] = made
            if progress:
                progress(unique[key].site.name, len(done), len(unique))
    for replacement in replacements:
        outcome = done[factor_key(replacement)]
        if isinstance(outcome, str):
            drop(plan, replacement, outcome)
    if not force:
        settle_shared(plan)
    results = {}
    for replacement in plan.replacements:
        outcome = done[factor_key(replacement)]
        assert isinstance(outcome, Factorized)
        results[replacement.site.place] = outcome
    return results


def _factorize(model: Model, sites: Sites, replacement: Replacement) -> Factorized | str:
    """The factors of one Conv, or the reason why it has none."""
    try:
        with naming(replacement.mode, replacement.site.name):
            weight = read_weight(model, sites, replacement.site)
            factors = replacement.mode.factorize(Task(replacement.site.conv, weight), replacement.rank)
            return checked_factors(replacement, weight, factors)
    except FactorizationError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory to factorise it"


def checked_factors(
    replacement: Replacement, weight: Array, factors: Factors, *, fitted: bool = False
) -> Factorized | str:
    """Factors in the stored type and their error, or the reason why they cannot be stored.

    Factors that are fitted to data need not be exact at full rank: they also make up for what earlier Convs have lost.

    Raises:
        PassError: the mode broke a promise: shapes, the bias, or exactness at full rank.
    """
    site, mode, doubles = replacement.site, replacement.mode, list(factors.weights)
    shapes = factor_shapes(replacement.layers)
    if [array.shape for array in doubles] != shapes:
        found = [array.shape for array in doubles]
        raise PassError(f"mode {mode.name}, Conv {site.name!r}: factors of shapes {found} instead of {shapes}")
    biased = sum(isinstance(layer, ConvLayer) and layer.conv.bias for layer in replacement.layers)
    if biased != (site.conv.bias or replacement.new_bias):
        raise PassError(f"mode {mode.name}, Conv {site.name!r}: {biased} layers add the bias; exactly one must, if any")
    with np.errstate(over="ignore"):
        arrays = [np.ascontiguousarray(array.astype(STORED_TYPES[site.dtype])) for array in doubles]
    stored = [array.astype(np.float64) for array in arrays]
    if not all(np.isfinite(array).all() for array in stored):
        return f"its factors do not fit into {site.dtype}"
    weight_error = relative_error(weight, mode.reconstruct(site.conv, Factors(stored)))
    # The stored type rounds the factors once; sums in double precision grow with the square root of their length.
    allowed = _EXACT_UNITS * _EPSILON[site.dtype] + weight.size**0.5 * _EPSILON["float64"]
    if replacement.exact and not fitted and weight_error > allowed:
        rank = replacement.rank
        raise PassError(f"mode {mode.name}, Conv {site.name!r}: full rank {rank} has an error of {weight_error:g}")
    return Factorized(arrays, weight_error)
