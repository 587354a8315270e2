"""Plans for budgets of parameters: accuracy of a CIFAR-10 network on the test images, round by round.

    python benchmarks/plans.py [--network resnet20] [--shares .377 .263 .148 .132] [--seeds 1] [--rounds 2] [--modes M]
    python benchmarks/plans.py --drop 1 [--network resnet20] [--seeds 1] [--modes M]

Choices are made on 500 training images without labels, drawn anew for each seed; the 1,000 test images are measured
once for each row. Plans are fitted to what the samples that measure effects leave of the 500. No training.

--drop: the cheapest model that loses at most so many points, by `onnxsep.rewrite(target="drop=...")` with the labels of
the training images; then, paired, what it loses on the test images.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from cifar import NETWORKS, Cifar, Network, correct, load

import onnxsep
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.errors import TargetError
from onnxsep.model.io import load as load_model
from onnxsep.planner.carrying_out import Costs
from onnxsep.planner.forms import forms
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.search import Found, Search
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.scores import paired

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


def show_drop(network: Network, images: Cifar, seed: int, points: float, modes: list[str]) -> None:
    """One row: what a model for ``drop=`` costs, and what it loses on the images of its data and on the test images."""
    started = time.process_time()
    data = {"x": network.images(images.train), "y": images.train_labels.astype(np.int64)}
    pixels = network.images(images.test)
    try:
        done = onnxsep.rewrite(
            network.path,
            target=f"drop={points:g}",
            data=data,
            seed=seed,
            runtime=ONE_THREAD,
            verify="none",
            mode=modes[0] if modes else None,
        )
    except TargetError as error:
        print(f"seed {seed}: {error}")
        return
    planned = done.report.planning
    assert planned is not None
    (loss,) = planned.losses
    after, before = (correct(model, pixels, images.labels) for model in (done.model, load_model(network.path)))
    test = paired(after, before)
    totals = done.report.totals
    print(
        f"seed {seed}: {totals.parameters_after / totals.parameters_before:.4f} of the parameters; {loss.measured} of"
        f" held-out training images; test images {100 * before.mean():.1f} -> {100 * after.mean():.1f} %, lost"
        f" {-100 * test.difference:.2f} +- {100 * test.standard_error:.2f} points ({test.won} won, {test.lost} lost),"
        f" {len(planned.tries)} plans carried out, {time.process_time() - started:.0f} CPU s",
        flush=True,
    )


def main() -> None:
    """Print a row for each share, round and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.377, 0.263, 0.148, 0.132])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--modes", nargs="+", default=[])
    parser.add_argument("--drop", type=float, help="points of accuracy that may be lost, instead of shares")
    asked = parser.parse_args()
    images = load()
    for seed in range(asked.seeds if asked.drop is not None else 0):
        show_drop(NETWORKS[asked.network], images, seed, asked.drop, asked.modes)
    if asked.drop is not None:
        return
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
