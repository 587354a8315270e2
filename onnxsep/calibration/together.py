"""Fitting a plan in which both Convs and blocks are replaced.

Blocks are fitted first, as if they were the only ones; then Convs, to what a network with these blocks delivers; then
blocks again where Convs are replaced too, on what they will really read. What is the better of the two on the samples
that were held out was measured on different inputs, so the second stands.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.calibration.blocks import fit_blocks, fitted_blocks
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.dense import Dense
from onnxsep.calibration.layerwise import calibrate
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.factors import Factorized
from onnxsep.engine.planning import Plan, in_main_graph
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.running.runtime import RuntimeOptions

Feeds = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]


def fit_together(
    model: Model,
    sites: Sites,
    plan: Plan,
    feeds: Feeds,
    options: CalibrationOptions,
    runtime: RuntimeOptions,
    progress: Progress | None = None,
) -> Calibrated:
    """Fit every replacement of a plan that stands in the main graph; the arguments are those of ``calibrate``.

    Args:
        model: the source.
        sites: its convolutions.
        plan: what to replace; not changed.
        feeds: gives the inputs, once for each fit.
        options: how.
        runtime: how pieces of the networks are run.
        progress: told of everything that is fitted.

    Raises:
        CalibrationError: the data cannot be used, or the runtime cannot run the model on them.
        PassError: a mode broke a promise.
    """
    blocks = fitted_blocks(plan)
    if not blocks:
        return calibrate(model, sites, plan, feeds(), options, runtime, progress)
    outcomes, samples = fit_blocks(model, sites, blocks, feeds(), options, runtime, progress)
    done = Calibrated(samples=samples)
    if plan.convs:
        made = {place: one for place, one in outcomes.items() if isinstance(one, Factorized)}
        done = calibrate(model, sites, plan, feeds(), options, runtime, progress, made)
        if convs := _stand_ins(plan, done):
            outcomes, _ = fit_blocks(model, sites, blocks, feeds(), options, runtime, progress, convs)
    for row in blocks:
        outcome = outcomes[row.site.place]
        done.outcomes[row.key] = outcome
        if isinstance(outcome, Factorized):
            done.by_place[row.site.place] = outcome
    return done


def _stand_ins(plan: Plan, done: Calibrated) -> dict[Place, Dense]:
    """The Convs that were fitted, as the dense ones that their factors multiply to."""
    found: dict[Place, Dense] = {}
    for row in plan.convs:
        made = done.by_place.get(row.site.place)
        if made is not None and in_main_graph(row.site):
            bias = None if made.bias is None else made.bias.astype(np.float64)
            found[row.site.place] = row.mode.reconstruct(row.site.conv, made.factors), bias
    return found
