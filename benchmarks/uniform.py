"""Plans beside one mode for all layers, at the same budgets: is any single mode better than a choice for each layer?

    python benchmarks/uniform.py [--only resnet8 unet] [--kinds params latency] [--cache FOLDER] [--times-only]

For each budget: what the plan loses on held-out samples, and what every mode loses that all layers get, where it pays,
at the largest share of the layers' parameters at which the whole keeps within the budget. Lost is, of classifiers, the
mean Kullback-Leibler divergence of the classes' probabilities from the original's, of others the relative error of the
output. All is chosen and fitted on the same calibration samples; what is printed was measured once on others. A plan is
as good as a mode where the mean of the differences, sample by sample, is at most its standard error.

Latencies are sums over layers, as plans count them, one thread, for both sides from the same measurements; --times-only
makes these, on a quiet machine. With --cache each cell is kept in a file, and a run that was ended goes on; a change of
onnxsep is not noticed. --kept prints what is there. All of it takes hours. Needs ../shared, but for the U-Net.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from keeping import Keeping
from starts import log_probabilities
from uniform_networks import SUBJECTS, Subject, subject

import onnxsep
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Options, make_plan
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.errors import TargetError
from onnxsep.graph.parameters import count_parameters
from onnxsep.layers.rank import RankPolicy
from onnxsep.modes.base import Mode
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.latency import latencies
from onnxsep.running.runtime import Runner, RuntimeOptions

ONE_THREAD = RuntimeOptions(threads=1)
SHARES = tuple(float(x) for x in np.geomspace(0.03, 0.97, 60))  # of a layer's parameters, for budgets of these
TIMED = (0.06, 0.09, 0.13, 0.18, 0.25, 0.3, 0.35, 0.42, 0.5, 0.6, 0.7, 0.85)  # for budgets of latency
ANY = 1e9  # an effect that is never reached: low-rank 1 x 1 Convs are not left alone for theirs
KINDS = ("params", "latency")
Losses = npt.NDArray[np.float64]
Cell = dict[str, Any]


class Bench:
    """A network and what is kept of it.

    Args:
        name: Of the network.
        found: The network.
        kept: Cells that are done.
        cache: Where plans keep what they measure.
        rounds: Of plans.
    """

    def __init__(self, name: str, found: Subject, kept: Keeping, cache: Path | None, rounds: int) -> None:
        self._name, self._subject, self._kept, self._cache, self._rounds = name, found, kept, cache, rounds
        self._source = found.model
        graph = self._source.proto.graph
        stored = {tensor.name for tensor in graph.initializer}
        self._input = next(value.name for value in graph.input if value.name not in stored)
        self._data = {self._input: found.calibration}
        self._sites = find_sites(self._source, linear_layers=True, transposed=True)
        self._before = self._outputs(self._source)

    def modes(self) -> tuple[Mode, ...]:
        """Those that a plan chooses from."""
        return forms(())

    def _outputs(self, model: onnxsep.Model) -> Losses:
        images = self._subject.test
        if self._is_classifier:
            return log_probabilities(model, images).astype(np.float64)
        run = Runner(model, ONE_THREAD)
        found = [next(iter(run({self._input: images[k : k + 50]}).values())) for k in range(0, len(images), 50)]
        return np.concatenate(found).astype(np.float64)

    @property
    def _is_classifier(self) -> bool:
        return self._name != "unet"

    def losses(self, model: onnxsep.Model) -> list[float]:
        """Of each test sample: the divergence, or the squared error as a share of the mean square of the outputs."""
        after, before = self._outputs(model), self._before
        if self._is_classifier:
            lost = (np.exp(before) * (before - after)).sum(axis=1)
        else:
            axes = tuple(range(1, before.ndim))
            lost = ((before - after) ** 2).sum(axis=axes) / (before**2).sum(axis=axes).mean()
        return [float(x) for x in lost]

    def shown(self, losses: Sequence[float]) -> float:
        """What losses of samples are as one number: a divergence, or a relative error."""
        mean = float(np.mean(losses))
        return mean if self._is_classifier else float(np.sqrt(mean))

    def plan(self, kind: str, share: float) -> Cell:
        """The cell of a plan."""
        return self._kept.get(f"{self._name} {kind} {share} plan", lambda: self._plan(kind, share))

    def _plan(self, kind: str, share: float) -> Cell:
        started = time.process_time()
        try:
            found = onnxsep.plan(
                self._source,
                target=f"{kind}={share}",
                data=self._data,
                samples=len(self._subject.calibration),
                rounds=self._rounds,
                cache=self._cache,
                runtime=ONE_THREAD,
            )
        except TargetError as error:
            return {"why": str(error)}
        made = onnxsep.rewrite(self._source, plan=found.plan, **self._fit())
        return {
            **self._measured(made, started),
            "promised": None if found.report.latency is None else found.report.latency.promised,
            "measured": None if found.report.latency is None else found.report.latency.measured,
        }

    def uniform(self, mode: Mode, kind: str, share: float) -> Cell:
        """The cell of a mode."""
        return self._kept.get(f"{self._name} {kind} {share} {mode.name}", lambda: self._uniform(mode, kind, share))

    def _uniform(self, mode: Mode, kind: str, share: float) -> Cell:
        costs = self.times()[mode.name] if kind == "latency" else self._parameters(mode)
        within = [(rank, cost) for rank, cost in costs if cost <= share]
        if not within:
            return {"why": f"{min((cost for _, cost in costs), default=1.0):.3f} at least"}
        rank, promised = within[-1]
        started = time.process_time()
        more: dict[str, Any] = {"max_effect": ANY} if mode.linear_layers else {}
        made = onnxsep.rewrite(self._source, mode=mode, rank=f"{rank:.4f}", **more, **self._fit())
        return {**self._measured(made, started), "promised": promised}

    def _fit(self) -> dict[str, Any]:
        return {
            "data": self._data,
            "samples": len(self._subject.calibration),
            "verify": "none",
            "runtime": ONE_THREAD,
        }

    def _measured(self, made: onnxsep.Result, started: float) -> Cell:
        rows = [row for row in made.report.convs if row.status == "replaced"]
        used = {str(row.mode) for row in rows}
        return {
            "params": made.report.totals.parameters_after / made.report.totals.parameters_before,
            "replaced": len(rows),
            "modes": sorted(used),
            "losses": self.losses(made.model),
            "seconds": time.process_time() - started,
        }

    def _rows(self, mode: Mode, share: float) -> list[ConvReplacement]:
        """What a rewrite in this mode replaces, as `make_plan` says."""
        options = Options(RankPolicy.parse(f"{share:.4f}"), init=mode.inits[-1])
        return make_plan(
            self._sites.found, mode, options, lambda site: read_weight(self._source, self._sites, site)
        ).convs

    def _parameters(self, mode: Mode) -> list[tuple[float, float]]:
        whole = count_parameters(self._source.proto)
        costs = []
        for share in SHARES:
            rows = self._rows(mode, share)
            saved = sum(row.site.conv.parameters - row.parameters for row in rows)
            costs.append((share, 1 - saved / whole))
        return costs

    def times(self) -> dict[str, list[tuple[float, float]]]:
        """By mode: shares of the layers' parameters, and the time of the whole as a share of the original's."""
        return self._kept.get(f"{self._name} times", self._times)

    def _times(self) -> dict[str, list[tuple[float, float]]]:
        rows = {(mode.name, share): self._rows(mode, share) for mode in self.modes() for share in TIMED}
        every = [row for several in rows.values() for row in several]
        layers = [site for site in self._sites.found if isinstance(site, ConvSite) and not site.first]
        every += [row for site in layers for row in candidates(site, self.modes())]  # what a plan asks for first
        found = latencies(self._source, self._sites, every, ONE_THREAD, cache=self._cache)
        costs: dict[str, list[tuple[float, float]]] = {mode.name: [] for mode in self.modes()}
        for (mode, share), several in rows.items():
            costs[mode].append((share, found.promised(several)[0]))
        return costs


def verdict(bench: Bench, plan: Cell, others: dict[str, Cell]) -> str:
    """Whether a plan is as good as every mode, and by how much it is not."""
    if any(one.get("why") == "not run" for one in (plan, *others.values())):
        return "not run"
    if "losses" not in plan:
        return "no plan" if any("losses" in other for other in others.values()) else "nothing can be had"
    worse, ties = [], []
    for name, other in others.items():
        if "losses" not in other:
            continue
        differences = np.array(plan["losses"]) - np.array(other["losses"])
        mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
        if mean > error:
            worse.append(f"{name} is better by {mean:.2g} +- {error:.1g}")
        elif mean > 0:
            ties.append(f"{name} (+{mean:.1g} +- {error:.1g})")
    return "; ".join(worse) if worse else f"yes, a tie with {', '.join(ties)}" if ties else "yes"


def cell(bench: Bench, found: Cell, kind: str) -> str:
    """A cell as text."""
    if "losses" not in found:
        return ""
    cost = found["params"] if kind == "params" else found["promised"]
    return f"{bench.shown(found['losses']):.3g} ({cost:.3f})"


def known(make: Callable[[], Cell]) -> Cell:
    """A cell; one that is not there where none are made."""
    try:
        return make()
    except KeyError:
        return {"why": "not run"}


def show(bench: Bench, kind: str, budgets: Sequence[float]) -> None:
    """Print the rows of a table, each as soon as it is known."""
    names = [mode.name for mode in bench.modes()]
    print(f"\n| {kind} | plan | {' | '.join(names)} | no mode is better |", flush=True)
    print("|---" * (len(names) + 3) + "|", flush=True)
    for share in budgets:
        plan = known(partial(bench.plan, kind, share))
        others = {mode.name: known(partial(bench.uniform, mode, kind, share)) for mode in bench.modes()}
        cells = [cell(bench, one, kind) for one in (plan, *others.values())]
        print(f"| {share:g} | {' | '.join(cells)} | {verdict(bench, plan, others)} |", flush=True)


def main() -> None:
    """Print a table for each network and kind of budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="networks")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budgets", nargs="+", type=float, help="shares of the whole, in place of each network's own")
    parser.add_argument("--samples", type=int, default=200, help="that calibrate")
    parser.add_argument("--images", type=int, default=1_000, help="that measure")
    parser.add_argument("--rounds", type=int, default=2, help="of plans")
    parser.add_argument("--cache", type=Path, help="a folder in which each cell is kept")
    parser.add_argument("--times-only", action="store_true", help="measure the latencies of the modes, and end")
    parser.add_argument("--kept", action="store_true", help="print what is kept, and make nothing")
    asked = parser.parse_args()
    kept = Keeping(asked.cache, closed=asked.kept)
    for name in asked.only:
        found = subject(name, asked.samples, asked.images)
        bench = Bench(name, found, kept, None if asked.cache is None else asked.cache / name, asked.rounds)
        print(f"\n**{name}**", flush=True)
        if asked.times_only:
            for mode, costs in bench.times().items():
                print(mode, " ".join(f"{share:g}: {cost:.3f}" for share, cost in costs), flush=True)
            continue
        for kind in asked.kinds:
            show(bench, kind, asked.budgets or getattr(found, kind))


if __name__ == "__main__":
    main()
