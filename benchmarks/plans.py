"""Plans for budgets of parameters: accuracy of a CIFAR-10 network on the test images, round by round.

    python benchmarks/plans.py [--network resnet20] [--shares .377 .263 .148 .132] [--seeds 1] [--rounds 2] [--modes M]

Choices are made on 500 training images without labels, drawn anew for each seed; the 1,000 test images are measured
once for each row. Plans are fitted to what the samples that measure effects leave of the 500. No training.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from cifar import NETWORKS, Cifar, Network, correct, load

from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.model.io import load as load_model
from onnxsep.planner.carrying_out import Costs
from onnxsep.planner.forms import forms
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.search import Found, Search
from onnxsep.running.runtime import RuntimeOptions

ONE_THREAD = RuntimeOptions(threads=1)


@dataclass(frozen=True)
class Run:
    """A network, the images, and what the plans of one seed are searched with."""

    network: Network
    images: Cifar
    search: Search
    whole: int

    def show(self, share: float, found: Found, started: float) -> None:
        """One row."""
        right = correct(found.carried.model, self.network.images(self.images.test), self.images.labels)
        forms = {one.row.mode.name for one in found.selection.chosen if one.row}
        costs = f"{found.costs['params'] / self.whole:7.4f}"
        print(
            f"{share:6.3f} {costs} round {found.round}: {100 * right.mean():5.1f} %, promised"
            f" {found.predicted:.4f}, measured {found.carried.effect}, gap {found.selection.gap:.2g},"
            f" {time.process_time() - started:.0f} CPU s, {', '.join(sorted(forms))}",
            flush=True,
        )


def prepared(network: Network, images: Cifar, seed: int, modes: list[str]) -> Run:
    """What the plans of one seed are searched with."""
    model = load_model(network.path)
    sites = find_sites(model, linear_layers=True)
    chosen = np.random.default_rng(seed).permutation(len(images.train))[:500]
    dataset = open_data(network.images(images.train[chosen]), model)
    data = PlanningData.of(dataset, 500, CalibrationOptions(seed=seed), ONE_THREAD)
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    search = Search(model, sites, layers, forms(modes), data.samples, lambda around: data.walk(model, sites, around))
    return Run(network, images, search, Costs(model, sites).source["params"])


def main() -> None:
    """Print a row for each share, round and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.377, 0.263, 0.148, 0.132])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=[])
    asked = parser.parse_args()
    images = load()
    for seed in range(asked.seeds):
        started = time.process_time()
        run = prepared(NETWORKS[asked.network], images, seed, asked.modes)
        measured = run.search.alone()
        count = sum(len(several) - 1 for several in measured.values())
        print(f"seed {seed}: {count} candidates measured in {time.process_time() - started:.0f} CPU s", flush=True)
        for share in asked.shares:
            started, found = time.process_time(), False
            for one in run.search.rounds(measured, {"params": int(share * run.whole)}, asked.rounds):
                found = True
                run.show(share, one.found, started)
            if not found:
                print(f"{share:6.3f} cannot be had")


if __name__ == "__main__":
    main()
