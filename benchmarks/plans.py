"""Plans for budgets of parameters: accuracy of a CIFAR-10 network on the test images, round by round.

    python benchmarks/plans.py [--network resnet20] [--shares .377 .263 .148 .132] [--seeds 1] [--rounds 2] [--modes M]
        [--tune STEPS] [--cache FOLDER]
    python benchmarks/plans.py --drop 1 [--network resnet20] [--seeds 1] [--modes M]

Choices are made on 500 training images without labels, drawn anew for each seed; the 1,000 test images are measured
once for each row. Plans are searched with fits to what the samples that measure effects leave of the 500; the best one
is then fitted to all 500, as `rewrite` does: the row "written", which counts. No training but in the row "tuned".

--tune: the written model after so many steps of `rewrite --tune`, on the same images. --cache: what was measured is
kept there, by seed, and the rows "written" and "tuned" too: the same command goes on. --first-seed: where to begin.

--drop: the cheapest model that loses at most so many points, by `onnxsep.rewrite(target="drop=...")` with the labels of
the training images; then, paired, what it loses on the test images.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from cifar import NETWORKS, Cifar, Network, correct, load

import onnxsep
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.engine.surgery import replace_matches
from onnxsep.errors import TargetError
from onnxsep.model.io import Model
from onnxsep.model.io import load as load_model
from onnxsep.planner.carrying_out import Costs, fitted
from onnxsep.planner.forms import forms
from onnxsep.planner.job import Job
from onnxsep.planner.kept import Kept, about
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.search import Found, Search
from onnxsep.planner.survey import Survey
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.scores import paired
from onnxsep.training.bridge import write_back
from onnxsep.training.tuning import tune

ONE_THREAD = RuntimeOptions(threads=1)


@dataclass(frozen=True)
class Run:
    """A network, the images, and what the plans of one seed are searched with."""

    seed: int
    network: Network
    images: Cifar
    data: PlanningData
    search: Search
    whole: int

    def right(self, model: Model) -> float:
        """Percent of the test images."""
        return 100 * float(correct(model, self.network.images(self.images.test), self.images.labels).mean())

    def written(self, share: float, found: Found, steps: int) -> Iterator[str]:
        """The rows of a plan that is fitted to all samples, and of the same after so many steps of tuning."""
        search, started = self.search, time.process_time()
        plan = found.carried.plan
        factors = fitted(search.model, search.sites, plan, self.data.all_samples)
        proto = onnx.ModelProto()
        proto.CopyFrom(search.model.proto)
        edit = replace_matches(proto, plan.replacements, factors)
        model = Model(proto)
        costs = f"{share:6.3f} {found.costs['params'] / self.whole:7.4f}"
        yield f"{costs} written: {self.right(model):5.1f} %, {time.process_time() - started:.0f} CPU s"
        if steps:
            started = time.process_time()
            tuned = tune(
                model,
                search.model,
                self.data.dataset,
                edit.new_weights,
                steps=steps,
                seed=self.seed,
                runtime=ONE_THREAD,
            )
            model = write_back(model, tuned.arrays) if tuned.arrays else model
            loss = f"{tuned.held_out_before:.4f} -> {tuned.held_out_after:.4f} at step {tuned.best_step} of {steps}"
            seconds = time.process_time() - started
            yield f"{costs} tuned: {self.right(model):5.1f} %, held-out loss {loss}, {seconds:.0f} CPU s"

    def show(self, share: float, found: Found, started: float) -> None:
        """One row."""
        forms = {one.row.mode.name for one in found.selection.chosen if one.row}
        costs = f"{found.costs['params'] / self.whole:7.4f}"
        print(
            f"{share:6.3f} {costs} round {found.round}: {self.right(found.carried.model):5.1f} %, promised"
            f" {found.predicted:.4f}, measured {found.carried.effect} (softened {found.selection.loss:.3f},"
            f" {found.carried.effect.deciding:.3f}), gap {found.selection.gap:.2g},"
            f" {time.process_time() - started:.0f} CPU s, {', '.join(sorted(forms))}",
            flush=True,
        )


def prepared(network: Network, images: Cifar, seed: int, modes: list[str], cache: Path | None) -> Run:
    """What the plans of one seed are searched with."""
    model = load_model(network.path)
    sites = find_sites(model, linear_layers=True)
    chosen = np.random.default_rng(seed).permutation(len(images.train))[:500]
    dataset = open_data(network.images(images.train[chosen]), model)
    data = PlanningData.of(dataset, 500, CalibrationOptions(seed=seed), ONE_THREAD)
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    job = Job(model, sites, forms(modes), data.samples, lambda around: data.walk(model, sites, around))
    kept = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        kept = Kept(cache, *about(model, dataset, data.divided, {"seed": seed, "modes": modes}))
    search = Search(model, sites, layers, job.modes, job.samples, job.walk, survey=Survey(job, kept=kept))
    return Run(seed, network, images, data, search, Costs(model, sites).source["params"])


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
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tune", type=int, default=0, help="steps")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    images = load()
    for seed in range(asked.seeds if asked.drop is not None else 0):
        show_drop(NETWORKS[asked.network], images, seed, asked.drop, asked.modes)
    if asked.drop is not None:
        return
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        started = time.process_time()
        folder = None if asked.cache is None else asked.cache / f"{asked.network}-{seed}"
        run = prepared(NETWORKS[asked.network], images, seed, asked.modes, folder)
        measured = run.search.alone()
        count = sum(len(several) - 1 for several in measured.values())
        print(f"seed {seed}: {count} candidates measured in {time.process_time() - started:.0f} CPU s", flush=True)
        for share in asked.shares:
            file = None if folder is None else folder / f"{share}-{asked.rounds}-{asked.tune}.txt"
            if file is not None and file.is_file():
                print(file.read_text("utf-8"), end="", flush=True)
                continue
            started, found = time.process_time(), []
            for one in run.search.rounds(measured, {"params": int(share * run.whole)}, asked.rounds):
                found.append(one.found)
                run.show(share, one.found, started)
            if not found:
                print(f"{share:6.3f} cannot be had")
                continue
            best = min(found, key=lambda one: one.carried.effect.deciding)
            rows = ""
            for row in run.written(share, best, asked.tune):
                print(row, flush=True)
                rows += f"seed {seed}: {row}\n"
            if file is not None:
                file.write_text(rows, "utf-8")


if __name__ == "__main__":
    main()
