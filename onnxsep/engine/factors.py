"""Computing and checking the factors of every Conv of a plan, several Convs at a time."""

import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxsep.algebra.linalg import Array, relative_error
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Plan, drop, naming, settle_shared
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import FactorizationError, PassError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.graph.places import Place
from onnxsep.layers.layer import ConvLayer
from onnxsep.model.io import Model
from onnxsep.modes.base import Factors, Task
from onnxsep.options.progress import Progress, announce
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
    """The new tensors of one match in the stored type, and ||W - W'|| / ||W|| of what they give."""

    arrays: list[NDArray[np.generic]]
    weight_error: float | None
    """None where no single weight equals them: what such a block computes is measured on outputs."""
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
        given: outcomes that are known already, by ``onnxsep.engine.replacements``.
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
    unique = {replacement.key: replacement for replacement in replacements}
    unique = {key: replacement for key, replacement in unique.items() if key not in done}
    # Many small problems in parallel on one thread each beat one after the other on many threads.
    jobs = {key: partial(factorize_one, model, sites, replacement) for key, replacement in unique.items()}
    if unique:
        announce(progress, "factorising", len(done), len(unique))
    with threadpool_limits(1), closing(in_threads(jobs, workers or os.cpu_count() or 1)) as found:
        for key, made in found:
            done[key] = made
            if progress:
                progress(unique[key].site.name, len(done), len(unique))
    for replacement in replacements:
        outcome = done[replacement.key]
        if isinstance(outcome, str):
            drop(plan, replacement, outcome)
    if not force:
        settle_shared(plan)
    results = {}
    for replacement in plan.replacements:
        outcome = done[replacement.key]
        assert isinstance(outcome, Factorized)
        results[replacement.site.place] = outcome
    return results


def factorize_one(model: Model, sites: Sites, replacement: Replacement) -> Factorized | str:
    """The factors of one match, or the reason why it has none."""
    try:
        with naming(replacement.mode, replacement.site.name):
            if isinstance(replacement, BlockReplacement):
                return _block_tensors(model, sites, replacement)
            weight = read_weight(model, sites, replacement.site)
            factors = from_weights(model, sites, replacement, weight)
            return checked_factors(replacement, weight, factors)
    except FactorizationError as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory to factorise it"


def _block_tensors(model: Model, sites: Sites, replacement: BlockReplacement) -> Factorized | str:
    """The tensors of a block in the stored type, or the reason why it has none.

    Raises:
        PassError: the mode gave tensors of other shapes than its layers have.
    """
    match, values = replacement.site, dict[str, Array]()
    for role, constant in match.constants.items():
        values[role] = read_constant(model, sites.scopes, constant).astype(np.float64)
        if not np.isfinite(values[role]).all():
            return f"its constant {constant.name!r} holds NaN or infinity"
    with np.errstate(over="ignore", invalid="ignore"):
        return block_tensors(replacement, replacement.mode.weights(match.block, values))


def block_tensors(replacement: BlockReplacement, doubles: Sequence[Array]) -> Factorized | str:
    """What a block mode has computed in the stored type, or why it cannot be stored.

    Raises:
        PassError: these are tensors of other shapes than its layers have.
    """
    _check_shapes(replacement, [array.shape for array in doubles])
    dtype = replacement.site.dtype
    arrays = _stored(doubles, dtype)
    return f"its new weights do not fit into {dtype}" if arrays is None else Factorized(arrays, None)


def _check_shapes(replacement: Replacement, found: Sequence[tuple[int, ...]]) -> None:
    wanted = [shape for *_, shape in replacement.tensors]
    if list(found) != wanted:
        where = f"mode {replacement.mode.name}, {replacement.site.op_type} {replacement.site.name!r}"
        raise PassError(f"{where}: factors of shapes {list(found)} instead of {wanted}")


def _stored(doubles: Sequence[Array], dtype: str) -> list[NDArray[np.generic]] | None:
    """The arrays in the stored type; None where one of them does not fit into it."""
    with np.errstate(over="ignore"):
        arrays = [np.ascontiguousarray(array.astype(STORED_TYPES[dtype])) for array in doubles]
    return arrays if all(np.isfinite(array.astype(np.float64)).all() for array in arrays) else None


def from_weights(model: Model, sites: Sites, replacement: ConvReplacement, weight: Array) -> Factors:
    """The factors of a Conv of whose data nothing is known but what stands before and behind it."""
    site = replacement.site
    gains = normalization_gains(model, sites, site) if site.rectified else None
    task = Task(site.conv, weight, rectified=site.rectified, gains=gains)
    return replacement.mode.from_weights(task, replacement.rank)


def normalization_gains(model: Model, sites: Sites, site: ConvSite) -> Array | None:
    """What the BatchNormalization behind a Conv multiplies its outputs by; None where it cannot be used."""
    if site.normalization is None:
        return None
    scale, variance, epsilon = site.normalization
    try:
        sizes, squares = (read_constant(model, sites.scopes, one).astype(np.float64) for one in (scale, variance))
    except FactorizationError:
        return None
    if sizes.shape != (site.conv.out_channels,) or squares.shape != sizes.shape:
        return None
    with np.errstate(all="ignore"):
        gains = sizes / np.sqrt(squares + epsilon)
    return gains if np.isfinite(gains).all() else None


def checked_factors(
    replacement: ConvReplacement, weight: Array, factors: Factors, *, fitted: bool = False
) -> Factorized | str:
    """Factors in the stored type and their error, or the reason why they cannot be stored.

    Factors that are fitted to data need not be exact at full rank: they also make up for what earlier Convs have lost.

    Raises:
        PassError: the mode broke a promise: shapes, the bias, or exactness at full rank.
    """
    site, mode, doubles = replacement.site, replacement.mode, list(factors.weights)
    _check_shapes(replacement, [array.shape for array in doubles])
    biased = sum(isinstance(layer, ConvLayer) and layer.conv.bias for layer in replacement.layers)
    if biased != (site.conv.bias or replacement.new_bias):
        raise PassError(f"mode {mode.name}, Conv {site.name!r}: {biased} layers add the bias; exactly one must, if any")
    arrays = _stored(doubles, site.dtype)
    if arrays is None:
        return f"its factors do not fit into {site.dtype}"
    stored = [array.astype(np.float64) for array in arrays]
    weight_error = relative_error(weight, mode.reconstruct(site.conv, Factors(stored)))
    # The stored type rounds the factors once; sums in double precision grow with the square root of their length.
    allowed = _EXACT_UNITS * _EPSILON[site.dtype] + weight.size**0.5 * _EPSILON["float64"]
    if replacement.exact and not fitted and weight_error > allowed:
        rank = replacement.rank
        raise PassError(f"mode {mode.name}, Conv {site.name!r}: full rank {rank} has an error of {weight_error:g}")
    return Factorized(arrays, weight_error)
