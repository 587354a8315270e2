"""The cheapest model that does not lose too much: a search along the trade-off curve that is closed by measurement.

Plans for several budgets are chosen from the same measurements, carried out, and what the whole model loses is measured
on samples that plans may be chosen by. The budget is sought by false position in the logarithms of cost and loss, which
a power law makes straight. Then candidates are measured around the cheapest plan that does, as for a budget, and
smaller budgets are tried with these. In the end plans that did are held to samples that nothing was chosen by, the
cheapest first, in the form in which a rewrite writes them: fitted to all samples of the fits. Their order is that of
the choice alone, with wider margins one after another, so that the verdict does not choose among them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxsep.graph.places import Place
from onnxsep.planner.carrying_out import Carried, carry_out
from onnxsep.planner.judging import Judge
from onnxsep.planner.measuring import Measured, Samples
from onnxsep.planner.report import MeasuredLoss, TryReport
from onnxsep.planner.search import Found, Search, predicted
from onnxsep.planner.selection import Selection
from onnxsep.planner.targets import Budget, LossTarget

_FIRST, _MORE = 7, 4  # plans that are carried out, from the first measurements and in each further round
_FEWER = 0.6  # of the cost of a plan: cheaper ones around it are not sought
_ENOUGH = 1.015  # between what is too little and what will do
_STEPS = 40  # choices, of which many are known already
_EDGE = 0.12  # of an interval: so far from its ends the next budget lies
_STRICTER = (1.0, 0.85, 0.7, 0.5)  # of what may be lost: after a verdict that was no, the choice must be surer
_DEARER = (0.25, 0.6)  # of the way to the whole budget
_MARGIN = 0.95  # of a distance of outputs that may be lost: what a plan is chosen for
Candidates = Mapping[Place, Sequence[Measured]]


@dataclass(frozen=True, eq=False)
class Tried:
    """A plan that was carried out.

    Attributes:
        found: The plan.
        candidates: What it was chosen from.
        losses: What it loses on the samples of the choice, for each target.
        verdict: The same on the others, of the model as a rewrite writes it.
        final: That model.
    """

    found: Found
    candidates: Candidates
    losses: tuple[MeasuredLoss, ...]
    verdict: tuple[MeasuredLoss, ...] = ()
    final: Carried | None = None

    @property
    def found_as_written(self) -> Found:
        """The plan with the model that is written."""
        if self.final is None:
            return self.found
        return replace(self.found, carried=replace(self.final, effect=self.found.carried.effect))


class Meeting:
    """One search.

    Args:
        search: What plans are searched with.
        judge: What may be lost, and what is.
        kind: What is made small.
        budgets: What is kept within.
        samples: What the model that is written is fitted to.
        rounds: Further rounds of measurements.

    Attributes:
        tries: All that was carried out.
    """

    def __init__(
        self,
        search: Search,
        judge: Judge,
        kind: Budget,
        budgets: Mapping[Budget, int],
        samples: Samples,
        rounds: int,
    ) -> None:
        self._search, self._judge, self._kind, self._samples = search, judge, kind, samples
        self._budgets, self._rounds = dict(budgets), rounds
        self.tries: list[Tried] = []

    def run(self, measured: Candidates) -> Tried | None:
        """The cheapest plan that does not lose too much; None where there is none.

        Args:
            measured: The candidates of the first round.
        """
        whole = self._search.costs.source[self._kind]
        most = self._budgets[self._kind]
        if most < whole and not self._at(measured, most, 1) and not self._better_at(measured, most):
            return self._verdicts([self.nearest] if self.tries else [])
        self._between(measured, self._search.smallest(self._kind, measured) - 1, 1, _FIRST)
        if self._best is None and most >= whole:  # the gentlest of all
            self._at(measured, whole - 1, 1)
        for number in range(2, self._rounds + 2):
            if not self._around(measured, number):
                break
        return self._verdicts(self._in_order(measured))

    def needed(self, measured: Candidates) -> int | None:
        """What the cheapest plan costs that will do where the first budget does not count; None: there is none."""
        low, self._budgets[self._kind] = self._budgets[self._kind], self._search.costs.source[self._kind]
        self._between(measured, low, 1, _FIRST)
        return None if self._best is None else self._cost(self._best)

    @property
    def nearest(self) -> Tried:
        """Of what was tried, the plan that loses least beyond what it may."""
        asked = [one for one in self.tries if one.verdict] or self.tries
        return min(asked, key=self._distance)

    def _distance(self, one: Tried) -> tuple[float, float, int]:
        losses = one.verdict or one.losses
        most = max(math.inf if loss.value is None else loss.value for loss in losses)
        return self._excess(losses), most, self._cost(one)

    def reports(self, taken: Tried | None) -> Iterator[TryReport]:
        """A record for each."""
        for one in self.tries:
            yield TryReport(
                round=one.found.round,
                cost=self._cost(one),
                effect=one.found.carried.effect.report,
                chosen_by=one.losses,
                verdict=one.verdict,
                taken=one is taken,
            )

    # ------------------------------------------------------------ what was tried

    def _cost(self, one: Tried) -> int:
        return one.found.costs[self._kind]

    def _would_do(self, one: Tried) -> bool:
        return self._excess(one.losses, choosing=True) <= 0

    @property
    def _best(self) -> Tried | None:
        return min((one for one in self.tries if self._would_do(one)), key=self._cost, default=None)

    def _excess(self, losses: Sequence[MeasuredLoss], *, choosing: bool = False) -> float:
        """The logarithm of the largest loss as a multiple of what may be lost; in a choice with its uncertainty."""
        return max(_ratio(*pair, choosing=choosing) for pair in zip(self._judge.targets, losses, strict=True))

    def _is_known(self, selection: Selection) -> bool:
        return any(_alike(one.found.selection, selection) for one in self.tries)

    # ------------------------------------------------------------ trying

    def _at(self, candidates: Candidates, amount: int, number: int, base: Found | None = None) -> Tried | None:
        """Carry out the best plan for a budget; what it became where that will do."""
        selection = self._search.choose(candidates, {**self._budgets, self._kind: amount})
        if selection is None or self._is_known(selection) or all(one.row is None for one in selection.chosen):
            return None
        tried = self._try(selection, candidates, number, base)
        return tried if self._would_do(tried) else None

    def _try(self, selection: Selection, candidates: Candidates, number: int, base: Found | None = None) -> Tried:
        sum_of_effects = selection.effect if base is None else predicted(base, candidates, selection)
        found = self._search.carry_out(selection, number, sum_of_effects)
        self.tries.append(Tried(found, candidates, self._judge.choose(found.carried.model)))
        return self.tries[-1]

    def _better_at(self, measured: Candidates, amount: int) -> bool:
        """Measure again around the plan for the whole budget, which loses too much."""
        if not self.tries:
            return False
        for one in self._search.rounds_from(self.tries[-1].found, measured, self._budgets, self._rounds):
            tried = Tried(one.found, one.measured, self._judge.choose(one.found.carried.model))
            self.tries.append(tried)
            if self._would_do(tried):
                return True
        return False

    def _between(self, candidates: Candidates, low: int, number: int, most: int, base: Found | None = None) -> None:
        """Seek the smallest budget that will do between one that will not and the best so far."""
        whole, left, excess = self._search.costs.source[self._kind], most, math.nan
        for _ in range(_STEPS):
            best = self._best
            high = whole if best is None else self._cost(best)
            if not left or low <= 0 or high <= low * _ENOUGH:
                return
            of_best = -math.inf if best is None else self._excess(best.losses, choosing=True)
            amount = round(math.exp(_next(math.log(low), math.log(high), excess, of_best)))
            amount = min(max(amount, low + 1), high - 1)
            count = len(self.tries)
            self._at(candidates, amount, number, base)
            left -= len(self.tries) - count
            if self._best is best:
                low = amount
                if len(self.tries) > count:
                    excess = self._excess(self.tries[-1].losses, choosing=True)

    def _around(self, measured: Candidates, number: int) -> bool:
        """One more round around the best plan; whether it found a better one."""
        best = self._best
        base = best or (self.nearest if self.tries else None)
        if base is None or base.found.carried.effect.value == 0:
            return False
        around = self._search.around(base.found, measured)
        cost = self._cost(base)
        if best is None and not self._at(around, min(cost, self._budgets[self._kind]), number, base.found):
            return False
        self._between(around, max(round(_FEWER * cost), 1), number, _MORE, base.found)
        return self._best is not best

    # ------------------------------------------------------------ the verdict

    def _in_order(self, measured: Candidates) -> Iterator[Tried]:
        """Plans that will do, the cheapest first, then those that will do by a wider margin; else the nearest."""
        last: Tried | None = None
        for margin in _STRICTER:
            found = self._cheapest(margin, last)
            if found is None and last is not None:
                self._dearer(measured, last)
                found = self._cheapest(margin, last) or self._surest(last)
            if found is not None:
                last = found
                yield found
        if last is None and self.tries:
            yield self.nearest

    def _cheapest(self, margin: float, last: Tried | None) -> Tried | None:
        """The cheapest plan, dearer than the last, that loses at most a share of what it may."""
        least = 0 if last is None else self._cost(last) + 1
        enough = (
            one
            for one in self.tries
            if self._cost(one) >= least and self._excess(one.losses, choosing=True) <= math.log(margin)
        )
        return min(enough, key=self._cost, default=None)

    def _surest(self, last: Tried) -> Tried | None:
        """The plan that loses least of those that are dearer and lose less."""
        excess = self._excess(last.losses, choosing=True)
        dearer = [
            one
            for one in self.tries
            if self._cost(one) > self._cost(last) and self._excess(one.losses, choosing=True) < excess
        ]
        return min(dearer, key=lambda one: self._excess(one.losses, choosing=True), default=None)

    def _dearer(self, measured: Candidates, last: Tried) -> None:
        """Carry out a few plans between one and the whole budget."""
        low, high = math.log(self._cost(last)), math.log(self._budgets[self._kind])
        for share in _DEARER:
            self._at(measured, round(math.exp(low + share * (high - low))), 1)

    def _verdicts(self, asked: Iterator[Tried] | Sequence[Tried]) -> Tried | None:
        search = self._search
        for one in asked:
            final = carry_out(
                search.model, search.sites, one.found.carried.plan, self._samples, search.walk(None), search.progress
            )
            judged = replace(one, verdict=self._judge.verdict(final.model), final=final)
            self.tries[self.tries.index(one)] = judged
            if self._judge.meets(judged.verdict):
                return judged
        return None


def _ratio(target: LossTarget, loss: MeasuredLoss, *, choosing: bool) -> float:
    """log(loss / what may be lost), at most 0 where it is met; that of a choice is met only with some margin."""
    if loss.value is None:
        return math.inf
    value, most = loss.value, target.most
    if choosing and target.kind == "drop":
        value += loss.standard_error or 0.0
    elif choosing:
        most *= _MARGIN
    if value <= most:
        return math.log(value / most) if value > 0 else -math.inf
    return math.log(value / most) if most else math.inf


def _next(low: float, high: float, excess: float, of_high: float) -> float:
    """The next place between two: where a straight line through what is known of both is 0, else the middle."""
    share = 0.5
    if math.isfinite(excess) and math.isfinite(of_high) and excess > of_high:
        share = min(max(excess / (excess - of_high), _EDGE), 1 - _EDGE)
    return low + share * (high - low)


def _alike(one: Selection, other: Selection) -> bool:
    return all(any(now.is_like(then) for then in other.chosen) for now in one.chosen)
