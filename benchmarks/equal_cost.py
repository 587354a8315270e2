"""Accuracy of linear-bottleneck beside cp and depthwise at equal parameters and at equal latency, without training.

    python benchmarks/equal_cost.py [--networks resnet20 resnet56] [--terms 1 2] [--images 1000] [--samples 300]
    python benchmarks/equal_cost.py --no-latency        # equal parameters alone, on a machine that is not quiet
    python benchmarks/equal_cost.py --cache FOLDER --no-accuracy      # on a quiet machine; the rest later, same folder

All 3 x 3 Convs but the first are replaced and fitted together with their activations ("joint") on training images.
Depthwise has few ranks, its terms, so it sets the costs: for each, cp and linear-bottleneck get the share of every
Conv's parameters at which the network has as many, and then the one at which it takes as long. Latency is timed for
factors from the weights alone, which run as fast: all candidates in turn with the original network, one thread, the
median of the ratios. Shares are searched by bisection; what is printed is the ratio of a last timing of all that were
chosen together. The standard error of an accuracy on 1,000 images is about one point. With --cache each figure is
kept in a file, and a run that was ended goes on. Needs ../shared.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cifar
import numpy as np
from keeping import Keeping

import onnxsep
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.running.timing import SHARES, THOROUGH, Effort, measure_times

OTHERS = ("cp", "linear-bottleneck")
ONE_THREAD = RuntimeOptions(threads=1)
STEPS = 6  # of a bisection
LOW, HIGH = 0.03, 0.6  # shares between which it begins


@dataclass(frozen=True)
class Form:
    """All 3 x 3 Convs in one mode, at one rank."""

    mode: str
    rank: str


class Bench:
    """A network, its images, and what has been made of it.

    Args:
        network: which.
        data: the images.
        images: how many test images count.
        samples: how many training images calibrate.
    """

    def __init__(self, network: cifar.Network, data: cifar.Cifar, images: int, samples: int) -> None:
        self._source = onnxsep.load(network.path)
        self._test, self._labels = network.images(data.test[:images]), data.labels[:images]
        chosen = np.random.default_rng(0).permutation(len(data.train))[:samples]
        self._calibration = network.images(data.train[chosen])
        self._plain: dict[Form, onnxsep.Result] = {}

    def plain(self, form: Form) -> onnxsep.Result:
        """With factors from the weights alone."""
        if form not in self._plain:
            made = onnxsep.rewrite(self._source, mode=form.mode, rank=form.rank, force=True, verify="none")
            self._plain[form] = made
        return self._plain[form]

    def parameters(self, form: Form) -> float:
        """Of the replaced Convs, as a share of theirs before."""
        rows = [row for row in self.plain(form).report.convs if row.status == "replaced"]
        return sum(row.parameters_after or 0 for row in rows) / sum(row.parameters_before or 0 for row in rows)

    def latencies(self, forms: Sequence[Form], effort: Effort) -> list[float]:
        """Relative to the original network, in turn with it."""
        models = [self._source, *(self.plain(form).model for form in forms)]
        name = self._source.proto.graph.input[0].name
        runners = [Runner(model, ONE_THREAD) for model in models]
        found = measure_times(runners, [{name: self._test[:1]}], effort=effort)
        return [one.against_first.value if one.against_first else one.median / found[0].median for one in found[1:]]

    def accuracy(self, form: Form) -> tuple[float, float]:
        """Of the fitted network on the test images, and the mean held-out error of its Convs."""
        name = self._source.proto.graph.input[0].name
        made = onnxsep.rewrite(
            self._source,
            mode=form.mode,
            rank=form.rank,
            data={name: self._calibration},
            samples=len(self._calibration),
            force=True,
            verify="none",
            runtime=ONE_THREAD,
        )
        errors = [row.held_out_error for row in made.report.convs if row.held_out_error is not None]
        return float(cifar.correct(made.model, self._test, self._labels).mean()), float(np.mean(errors))

    def whole(self) -> float:
        """Accuracy of the network as it is."""
        return float(cifar.correct(self._source, self._test, self._labels).mean())

    def as_fast(self, mode: str, goal: Form) -> Form:
        """The largest share at which a mode is not slower than another form; the lowest one where it always is."""
        low, high = LOW, HIGH
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            own, other = self.latencies([Form(mode, f"{middle:.4f}"), goal], SHARES)
            low, high = (middle, high) if own <= other else (low, middle)
        return Form(mode, f"{low:.4f}")


def rows(bench: Bench, rank: str, *, latency: bool) -> list[tuple[str, str, str, float]]:
    """The forms for a number of terms: why, mode, rank and time."""
    goal = Form("depthwise", rank)
    forms = [("", goal)]
    forms += [("as many parameters", Form(mode, f"{bench.parameters(goal):.4f}")) for mode in OTHERS]
    if latency:
        forms += [("as fast", bench.as_fast(mode, goal)) for mode in OTHERS]
    ratios = bench.latencies([form for _, form in forms], THOROUGH) if latency else [float("nan")] * len(forms)
    return [(why, form.mode, form.rank, ratio) for (why, form), ratio in zip(forms, ratios, strict=True)]


def accuracy(bench: Bench, form: Form) -> tuple[float, float, float]:
    """Accuracy, held-out error and CPU seconds."""
    begun = time.process_time()
    return (*bench.accuracy(form), time.process_time() - begun)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"], choices=cifar.NETWORKS)
    parser.add_argument("--terms", nargs="+", default=["1", "2"])
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--no-accuracy", action="store_true")
    parser.add_argument("--cache", type=Path, help="a folder in which each figure is kept")
    options = parser.parse_args()
    data, kept = cifar.load(), Keeping(options.cache)
    on = f"{options.images} {options.samples}"
    for name in options.networks:
        bench = Bench(cifar.NETWORKS[name], data, options.images, options.samples)
        print(f"{name}: {kept.get(f'{name} {on}', bench.whole):.1%}", flush=True)
        for terms in options.terms:
            which = f"{name} rows {terms}{' parameters' if options.no_latency else ''}"
            found = kept.get(which, partial(rows, bench, terms, latency=not options.no_latency))
            for why, mode, rank, ratio in found:
                form = Form(mode, rank)
                costs = f"  {mode:18} {rank:>7} {why:18}  parameters {bench.parameters(form):.3f}  latency {ratio:.2f}"
                if options.no_accuracy:
                    print(costs, flush=True)
                    continue
                right, error, seconds = kept.get(f"{name} {on} {mode} {rank}", partial(accuracy, bench, form))
                print(f"{costs}  accuracy {right:.1%}  held-out error {error:.3f}  {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
