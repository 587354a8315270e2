"""Recording the statistics of a network, and fitting factors to recorded ones instead of to data."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.calibration.layerwise import FELL_BACK, SHARED, Calibrated, outcome_of, read_bias, told
from onnxsep.errors import FactorizationError
from onnxsep.factors import Factorized, Progress
from onnxsep.calibration.fitting import fit_moments, mean_product
from onnxsep.io import Model
from onnxsep.modes import Factors
from onnxsep.planning import Plan, factor_key, in_main_graph, naming
from onnxsep.runtime import RuntimeOptions
from onnxsep.calibration.sampling import Floats
from onnxsep.calibration.schedule import make_schedule
from onnxsep.sites import Sites, read_weight
from onnxsep.statistics import Moments, SiteMoments
from onnxsep.calibration.statistics_file import Recorded, model_fingerprint
from onnxsep.types import Conv, ConvSite, Place
from onnxsep.calibration.walk import CalibrationOptions, Walk


def record(
    model: Model,
    sites: Sites,
    batches: Iterable[Mapping[str, NDArray[Any]]],
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    source: str,
    progress: Progress | None = None,
) -> Recorded:
    """Run the original network once and take the statistics of every Conv of the main graph.

    Args:
        model: the source.
        sites: where its Convs are.
        batches: as for ``onnxsep.calibration.layerwise.calibrate``.
        options: positions and seed.
        runtime: how pieces of the network are run.
        source: what the data are, in words.
        progress: told of every Conv that is done.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
    """
    walk = Walk(model, batches, options, runtime)
    wanted = [site for site in sites.found if isinstance(site, ConvSite) and in_main_graph(site)]
    steps = make_schedule(model, sites.scopes, wanted)
    found: dict[Place, SiteMoments] = {}
    for number, step in enumerate(steps):
        walk.advance(step)
        rows = list(walk.rows(step.site))
        patches, held_out = (
            np.concatenate([row.patches for row in rows]),
            np.concatenate([row.held_out for row in rows]),
        )
        found[step.site.place] = SiteMoments(
            _moments(step.site.conv, patches[~held_out]), _moments(step.site.conv, patches[held_out])
        )
        if progress:
            progress(f"{step.site.name}: statistics", number + 1, len(steps))
    return Recorded(found, walk.samples, options.positions, options.seed, source, model_fingerprint(model, sites))


def _moments(conv: Conv, patches: Floats) -> Moments:
    parts = patches.reshape(len(patches), conv.group, -1)
    square = np.stack([mean_product(parts[:, group], parts[:, group]) for group in range(conv.group)])
    return Moments(parts.mean(axis=0, dtype=np.float64), square)


def calibrate_from(
    model: Model,
    sites: Sites,
    plan: Plan,
    recorded: Recorded,
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit every replacement of the plan for which statistics were recorded, each as if it were the only one.

    Args:
        model: the source.
        sites: where its Convs are.
        plan: what to replace; not changed.
        recorded: the statistics.
        options: the initialisation and the prior.
        progress: told of every Conv that is done, with its error before and after.
    """
    done = Calibrated(samples=recorded.samples)
    rows = [row for row in plan.replacements if row.site.place in recorded.sites]
    for number, row in enumerate(rows):
        site, key = row.site, factor_key(row)
        earlier = done.outcomes.get(key)
        given = (
            Factors([array.astype(np.float64) for array in earlier.arrays]) if isinstance(earlier, Factorized) else None
        )
        try:
            weight, bias = read_weight(model, sites, site), read_bias(model, sites, site)
        except FactorizationError as error:
            done.outcomes[key] = str(error)
            continue
        with naming(row.mode, site.name):
            result = fit_moments(
                row.mode,
                site.conv,
                row.rank,
                weight,
                recorded.sites[site.place],
                init=options.init,
                old_bias=bias,
                new_bias=row.new_bias,
                prior=options.prior,
                given=given,
            )
            outcome = outcome_of(row, weight, result, options.init)
            done.outcomes.setdefault(key, outcome)
            if not isinstance(outcome, str):
                done.by_place[site.place] = outcome
            if given:
                done.notes[site.place] = SHARED
            elif result.fell_back and not row.exact:
                done.notes[site.place] = FELL_BACK
        if progress:
            progress(f"{site.name}: {told(result)}", number + 1, len(rows))
    return done
