"""The search for a plan: candidates measured alone, a choice, then rounds of candidates measured around the choice."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode
from onnxsep.options.progress import Progress
from onnxsep.planner.block_candidates import joined, kept_blocks, without_blocks
from onnxsep.planner.carrying_out import Carried, Costs, plan_of_choice
from onnxsep.planner.cut_alike import cut_alike
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.file_size import FileSize, FileSizes
from onnxsep.planner.filling import filled
from onnxsep.planner.grid import candidates
from onnxsep.planner.job import Job
from onnxsep.planner.measuring import Dense, Measured, Samples
from onnxsep.planner.near import near
from onnxsep.planner.output_distance import from_additive
from onnxsep.planner.peak_memory import PeakMemory
from onnxsep.planner.pricing import priced
from onnxsep.planner.selection import COSTS, Selection, least, select
from onnxsep.planner.survey import Rows, Survey
from onnxsep.planner.targets import Budget
from onnxsep.planner.timings import Timings

_STEPS = (1.0, 0.5, 0.25)  # of the layers, that a further round may change
_MISLED = 1.0  # times what sums of effects say that a plan loses: where it loses more, a worse sum may lose less
_TRIES = 8  # of a choice, until what it costs as a whole keeps within the budgets


@dataclass(frozen=True)
class Found:
    """A plan.

    Attributes:
        selection: The choice.
        carried: What became of it.
        costs: What it costs as a whole, by the kind of budget.
        round: In which round it was found, from 1.
        predicted: The effect of the whole that the measurements promised.
    """

    selection: Selection
    carried: Carried
    costs: Mapping[Budget, int]
    round: int
    predicted: float


@dataclass(frozen=True)
class Round:
    """A plan, and what it was chosen from.

    Attributes:
        found: The plan.
        measured: The candidates of each layer.
    """

    found: Found
    measured: Mapping[Place, Sequence[Measured]]

    @property
    def candidates(self) -> int:
        """How many were measured, but for the layers left alone."""
        return sum(len(several) - 1 for several in self.measured.values())


@dataclass(frozen=True)
class Search:
    """What does not change between rounds.

    Attributes:
        model: The source.
        sites: Its layers.
        layers: Those that a plan is for.
        modes: The forms that they may get.
        samples: What candidates are fitted to.
        walk: Gives what measures effects, around a plan or in the source.
        reasons: Why other layers are left alone, by their places; what the first round finds out is added.
        round_ranks: As for ``onnxsep.rewrite``.
        progress: Told how far it is.
        timings: What forms take, where that is a budget.
        quantized_size: Bytes of quantised files, where these are what is shipped.
        survey: Measures; None: this process does, and nothing is kept.
        memory: What forms need for activations, where that is a budget.
        blocks: Forms that blocks of several nodes may get.
    """

    model: Model
    sites: Sites
    layers: Sequence[ConvSite]
    modes: Sequence[Mode]
    samples: Samples
    walk: Callable[[Dense | None], EffectWalk]
    reasons: dict[Place, str] = field(default_factory=dict)
    round_ranks: int = 0
    progress: Progress | None = None
    timings: Timings | None = None
    quantized_size: FileSizes | None = None
    survey: Survey | None = None
    memory: PeakMemory | None = None
    blocks: Sequence[BlockReplacement] = ()

    @cached_property
    def size(self) -> FileSizes:
        """Bytes of what is shipped."""
        return self.quantized_size or FileSize(self.model, self.sites.light)

    @cached_property
    def measurer(self) -> Survey:
        """What measures candidates, and carries out plans."""
        return self.survey or Survey(Job(self.model, self.sites, tuple(self.modes), self.samples, self.walk))

    @property
    def costs(self) -> Costs:
        """What plans cost as a whole."""
        return Costs(self.model, self.sites, self.timings, self.size, self.memory)

    @cached_property
    def _grid(self) -> Rows:
        return {site.place: list(candidates(site, self.modes, round_ranks=self.round_ranks)) for site in self.layers}

    def priced(self, kinds: Collection[Budget]) -> dict[Place, list[Measured]]:
        """What the candidates of the first round cost, before anything is measured of them.

        Args:
            kinds: Budgets that matter; bytes are counted where they are among these. Times are not known yet.
        """
        size = self.size if "size" in kinds else None
        return priced(self.sites, self.layers, self._grid, self.blocks, size)

    def alone(self) -> dict[Place, list[Measured]]:
        """The first round: every candidate of the grid with all other layers as they are."""
        return joined(self._measure(self._grid, None), self._alone_blocks(), self.sites)

    def _alone_blocks(self) -> list[Measured]:
        """Candidates of blocks that are fast enough to be of use."""
        rows, latency = self.blocks, None
        if self.timings is not None and rows:
            latency = self.timings.change
            by_place: dict[Place, list[BlockReplacement]] = {}
            for row in rows:
                by_place.setdefault(row.site.place, []).append(row)
            rows = [row for several in self.timings.usable(by_place)[0].values() for row in several]
        return self.measurer.measured_blocks(rows, self.size, latency or (lambda _: 0), self.progress)

    def around(self, found: Found, measured: Mapping[Place, Sequence[Measured]]) -> dict[Place, list[Measured]]:
        """A further round: what is near to a plan, with all other layers as the plan says.

        Args:
            found: The plan.
            measured: The first round, which says what forms are of use at about that cost.
        """
        chosen = found.selection.chosen
        layers = [one for one in chosen if not one.is_block]
        rows = {one.site.place: near(one, measured[one.site.place], self.modes, self.round_ranks) for one in layers}
        return kept_blocks(self._measure(rows, found.carried.dense), chosen, self.sites)

    def _measure(self, rows: Rows, around: Dense | None) -> dict[Place, list[Measured]]:
        """Time forms, where that is a budget, then fit and measure those that are left."""
        latency = None
        if self.timings is not None:
            latency = self.timings.change
            rows, reasons = self.timings.usable(rows)
            if around is None:
                self.reasons.update(reasons)
        self.size.prepare(row for several in rows.values() for row in several)
        found = self.measurer.measured(rows, around, self.size, latency or (lambda _: 0), self.progress)
        return found if self.memory is None else self.memory.added(found)

    def rounds(
        self, measured: Mapping[Place, Sequence[Measured]], budgets: Mapping[Budget, int], more: int
    ) -> Iterator[Round]:
        """Plans within budgets, from the first round of measurements, and from up to so many more around the best.

        Nothing comes where nothing keeps within the budgets; the last one need not be the best.
        """
        selection = self.choose(measured, budgets)
        if selection is None:
            return
        first = [selection]  # and one without blocks, whose effects add up less well than those of layers
        if any(one.is_block for one in selection.chosen):
            first += filter(None, [self.choose(without_blocks(measured), budgets)])
        carried = self.carry_out_all([(self.filled(one, budgets), 1, one.effect) for one in first])
        best = min(carried, key=lambda one: one.carried.effect.deciding)
        if best.carried.effect.deciding > _MISLED * best.selection.loss:
            best = self._better(best, measured, budgets)
        yield Round(best, measured)
        yield from self.rounds_from(best, measured, budgets, more)

    def _better(
        self, best: Found, measured: Mapping[Place, Sequence[Measured]], budgets: Mapping[Budget, int]
    ) -> Found:
        """The best of a plan by sums of effects and of those that cut all layers alike."""
        least_loss = best.selection.loss - best.selection.gap
        others = cut_alike(measured, lambda layers: self.choose(layers, budgets))
        held = [replace(one, gap=max(one.loss - least_loss, 0.0)) for one in others]
        found = self.carry_out_all([(self.filled(one, budgets), 1, one.effect) for one in held])
        return min([best, *found], key=lambda one: one.carried.effect.deciding)

    def rounds_from(
        self, best: Found, measured: Mapping[Place, Sequence[Measured]], budgets: Mapping[Budget, int], more: int
    ) -> Iterator[Round]:
        """The further rounds, around a plan that was carried out."""
        for number in range(2, more + 2):
            if best.carried.effect.value == 0:
                return
            around = self.around(best, measured)
            steps = self.carry_out_all(list(self._steps(best, around, budgets, number)))
            if not steps:
                return
            found = min(steps, key=lambda one: one.carried.effect.deciding)
            yield Round(found, around)
            if not found.carried.effect.deciding < best.carried.effect.deciding:
                return
            best = found

    def _steps(
        self, best: Found, around: Mapping[Place, Sequence[Measured]], budgets: Mapping[Budget, int], number: int
    ) -> Iterator[tuple[Selection, int, float]]:
        """Choices that change all layers, or a part of them: what was measured holds while the others stay."""
        seen = [best.selection.chosen]
        for share in _STEPS:
            changes = max(round(share * len(around)), 1)
            chosen = self.choose(around, budgets, best.selection.chosen, changes)
            if chosen is None or any(_alike(chosen.chosen, other) for other in seen):
                continue
            seen.append(chosen.chosen)
            yield self.filled(chosen, budgets), number, predicted(best, around, chosen)

    def choose(
        self,
        measured: Mapping[Place, Sequence[Measured]],
        budgets: Mapping[Budget, int],
        before: Sequence[Measured] = (),
        changes: int | None = None,
    ) -> Selection | None:
        """The choice whose cost as a whole keeps within the budgets; None where there is none.

        Args:
            measured: The candidates of each layer.
            budgets: By kind.
            before: An earlier choice.
            changes: How many layers may get another form than there; None: all.
        """
        counted = self.costs
        layers = list(measured.values())
        alone = {name: sum(COSTS[name](layer[0]) for layer in layers) for name in budgets}
        room: dict[Budget, float] = {name: most - counted.source[name] + alone[name] for name, most in budgets.items()}
        if self.memory is not None and "ram" in budgets:
            room["ram"] = budgets["ram"]  # of each alone
        for _ in range(_TRIES):
            selection = select(layers, room, before, changes)
            if selection is None:
                return None
            costs = counted.of(plan_of_choice(self.sites, selection.chosen, self.reasons))
            over = {name: costs[name] - most for name, most in budgets.items() if costs[name] > most}
            if not over:
                return selection
            room = {name: most - over.get(name, 0) for name, most in room.items()}
        return None

    def smallest(self, kind: Budget, measured: Mapping[Place, Sequence[Measured]]) -> int:
        """The least of one kind of cost that plans can have."""
        layers = list(measured.values())
        if kind == "ram" and self.memory is not None:
            return max(self.memory.others([layer[0].site for layer in layers]), least(layers, kind))
        return self.costs.source[kind] + least(layers, kind) - sum(least([layer[:1]], kind) for layer in layers)

    def filled(self, selection: Selection, budgets: Mapping[Budget, int]) -> Selection:
        """A choice that uses what is left of a budget of bytes; forms that were not timed cannot be had for it."""
        if self.timings is not None:
            return selection

        def costs(chosen: Sequence[Measured]) -> Mapping[Budget, int]:
            return counted.of(plan_of_choice(self.sites, chosen, self.reasons))

        counted = self.costs
        return filled(selection, budgets, costs, self.round_ranks)

    def carry_out(self, selection: Selection, number: int, predicted: float) -> Found:
        """Fit a choice and measure it; ``predicted`` is the sum of what adds up."""
        return self.carry_out_all([(selection, number, predicted)])[0]

    def carry_out_all(self, choices: Sequence[tuple[Selection, int, float]]) -> list[Found]:
        """The same of several choices."""
        plans = [plan_of_choice(self.sites, selection.chosen, self.reasons) for selection, *_ in choices]
        found = []
        for (selection, number, predicted), one in zip(
            choices, self.measurer.carried(plans, self.progress), strict=True
        ):
            shown = from_additive(one.effect.kind, predicted)
            found.append(Found(selection, one, self.costs.of(one.plan), number, shown))
        return found


def _alike(one: Sequence[Measured], other: Sequence[Measured]) -> bool:
    return all(any(now.is_like(then) for then in other) for now in one)


def predicted(best: Found, around: Mapping[Place, Sequence[Measured]], chosen: Selection) -> float:
    """The effect of a plan, and what each change of it adds.

    Args:
        best: The plan.
        around: Candidates that were measured around it.
        chosen: The plan with its changes.
    """
    before = sum(
        now.effect for one in best.selection.chosen for now in around.get(one.site.place, ()) if now.is_like(one)
    )
    return best.carried.effect.additive + chosen.effect - before
