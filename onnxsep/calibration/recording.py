"""Recording the statistics of a network, and fitting factors to recorded ones instead of to data."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.gram import CentredRows, gram_of
from onnxsep.algebra.statistics import Moments, SiteMoments
from onnxsep.algebra.threads import one_thread
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.fitting_moments import fit_moments
from onnxsep.calibration.outcomes import FELL_BACK, SHARED, outcome_of, read_bias, told
from onnxsep.calibration.sampling import Floats, Stack
from onnxsep.calibration.schedule import make_schedule
from onnxsep.calibration.statistics_file import Recorded, model_fingerprint
from onnxsep.calibration.walk import CalibrationOptions, Walk, split
from onnxsep.engine.factors import Factorized, from_weights
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Plan, in_main_graph, naming
from onnxsep.engine.sites import Sites, read_weight
from onnxsep.errors import CalibrationError, FactorizationError, spelled
from onnxsep.graph.places import Place
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.running.runtime import RuntimeOptions


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
        announce(progress, step.site.name, number, len(steps))
        walk.advance(step)
        patches, masks = Stack(), []
        for rows in walk.rows(step.site):
            patches.add(rows.patches, walk.samples * len(rows.patches) // len(rows.positions))
            masks.append(rows.held_out)
        held_out = split(np.concatenate(masks), options.seed, step.site)
        parts = (_moments(step.site.conv, patches.rows, chosen) for chosen in (~held_out, held_out))
        found[step.site.place] = SiteMoments(*parts)
        if progress:
            progress(f"{step.site.name}: statistics", number + 1, len(steps))
    return Recorded(found, walk.samples, options.positions, options.seed, source, model_fingerprint(model))


def _moments(conv: Conv, patches: Floats, chosen: NDArray[np.bool_] | None = None) -> Moments:
    """Of some of the rows, or all."""
    chosen = np.ones(len(patches), bool) if chosen is None else chosen
    mean = patches.mean(axis=0, dtype=np.float64, where=chosen[:, None])
    # Centred before squaring: a large mean would hide a small spread.
    centred = CentredRows(patches, np.flatnonzero(chosen), mean.astype(np.float32))
    return Moments(mean.reshape(conv.group, -1), tuple(gram_of(rows) for rows in centred.groups(conv.group)))


def calibrate_from(
    model: Model,
    sites: Sites,
    plan: Plan,
    recorded: Recorded,
    options: CalibrationOptions,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit every replacement of the plan in the main graph, each as if it were the only one.

    Args:
        model: the source.
        sites: where its Convs are.
        plan: what to replace; not changed.
        recorded: the statistics.
        options: the prior.
        progress: told of every Conv that is done, with its error before and after.

    Raises:
        CalibrationError: the statistics lack one of them.
        PassError: a mode broke a promise.
    """
    done = Calibrated(samples=recorded.samples)
    rows = [row for row in plan.convs if in_main_graph(row.site)]
    missing = [row.site for row in rows if row.site.place not in recorded.sites]
    if missing:
        raise CalibrationError(
            f"the statistics tell nothing about {missing[0].op_type} {missing[0].name!r}: they were recorded for a "
            f"mode that does not take such nodes; record them again with this one, by {spelled('data')} and"
            f" {spelled('statistics')}"
        )
    for number, row in enumerate(rows):
        site, key = row.site, row.key
        earlier = done.outcomes.get(key)
        given = earlier.factors if isinstance(earlier, Factorized) else None
        try:
            weight, bias = read_weight(model, sites, site), read_bias(model, sites, site)
        except FactorizationError as error:
            done.outcomes[key] = str(error)
            continue
        with naming(row.mode, site.name), one_thread():
            result = fit_moments(
                row.mode,
                site.conv,
                row.rank,
                weight,
                recorded.sites[site.place],
                init=row.init,
                old_bias=bias,
                new_bias=row.new_bias,
                prior=options.prior,
                given=given,
                alone=from_weights(model, sites, row, weight) if row.init == "svd" else None,
            )
            outcome = outcome_of(row, weight, result, row.init)
            if isinstance(outcome, str):
                done.outcomes.setdefault(key, outcome)
            else:
                done.outcomes.setdefault(key, replace(outcome, bias=None, errors=None))
                done.by_place[site.place] = outcome
            if given:
                done.notes[site.place] = SHARED
            elif result.fell_back and not row.exact:
                done.notes[site.place] = FELL_BACK
        if progress:
            progress(f"{site.name}: {told(result)}", number + 1, len(rows))
    done.note_nested(plan)
    return done
