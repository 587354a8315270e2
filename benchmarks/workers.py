"""Two workers beside one: how much sooner the candidates of ResNet-20 are measured; are the figures the same?

    python benchmarks/workers.py [--workers 2] [--modes spatial tucker ...] [--samples 250] [--runs 1]

Both sides measure the first round of a plan, without a cache and with one thread for each worker; with one worker it is
this process. Starting the workers counts. The machine must have nothing else to do, and a processor for each worker.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from cifar import NETWORKS, load

from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.graph.places import Place
from onnxsep.model.io import load as load_model
from onnxsep.planner.forms import forms
from onnxsep.planner.measuring import Measured
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.search import Search
from onnxsep.planner.surveying import crew_for, survey_for
from onnxsep.running.runtime import RuntimeOptions


def measured(workers: int, modes: Sequence[str], samples: int) -> tuple[float, Mapping[Place, list[Measured]]]:
    """Seconds, and the candidates."""
    network, images = NETWORKS["resnet20"], load()
    model = load_model(network.path)
    sites = find_sites(model, linear_layers=True)
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    chosen = np.random.default_rng(0).permutation(len(images.train))[:samples]
    dataset = open_data(network.images(images.train[chosen]), model)
    runtime = RuntimeOptions(threads=workers)  # shared: one for each
    options = PlanOptions(target="params=0.3", data=dataset, modes=tuple(modes), workers=workers, runtime=runtime)
    data = PlanningData.of(dataset, samples, CalibrationOptions(), runtime)
    wanted = forms(modes)
    started = time.perf_counter()
    with ExitStack() as stack:
        survey = survey_for(model, sites, wanted, (), data, options, stack.enter_context(crew_for(options)))
        walk = lambda around: data.walk(model, sites, around)  # noqa: E731
        found = Search(model, sites, layers, wanted, data.samples, walk, survey=survey).alone()
    return time.perf_counter() - started, found


def figures(found: Mapping[Place, list[Measured]]) -> list[tuple[Place, str, float, float]]:
    """What must be the same."""
    return [(place, one.words, one.held_out, one.effect) for place, several in found.items() for one in several]


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=["spatial", "tucker", "linear-bottleneck"])
    parser.add_argument("--samples", type=int, default=250)
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    for _ in range(asked.runs):
        one, found = measured(1, asked.modes, asked.samples)
        several, same = measured(asked.workers, asked.modes, asked.samples)
        count = sum(len(layer) - 1 for layer in found.values())
        print(
            f"{count} candidates: one worker {one:.1f} s, {asked.workers} workers {several:.1f} s, {one / several:.2f}"
            f" times as fast; figures {'the same' if figures(found) == figures(same) else 'DIFFER'}; load"
            f" {os.getloadavg()[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
