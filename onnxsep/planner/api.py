"""Choosing a form for each layer within budgets: measure, choose, carry out, measure around that, choose again."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxsep.calibration.api import Fitting, opened
from onnxsep.data import Dataset, Preprocessing
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.errors import OptionError, spelled
from onnxsep.graph.places import Place
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import NOTHING, Reads, check_paths
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.options.progress import announce
from onnxsep.options.taking import takes
from onnxsep.planner.block_rows import block_rows
from onnxsep.planner.carrying_out import Costs
from onnxsep.planner.elsewhere import elsewhere_for
from onnxsep.planner.evidence import evidence
from onnxsep.planner.forms import block_forms, forms
from onnxsep.planner.frontier import Frontier, frontier
from onnxsep.planner.judging import Judge, planning_data
from onnxsep.planner.means import Means
from onnxsep.planner.measuring import Measured
from onnxsep.planner.meeting import Meeting
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.output_distance import Effect, from_additive
from onnxsep.planner.peak_memory import PeakMemory
from onnxsep.planner.plan_file import PlanFile, plan_of
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.quantized import Quantized
from onnxsep.planner.refusing import loses_too_much, too_small
from onnxsep.planner.report import PlannedQuantization, PlanReport, RoundReport, TargetReport
from onnxsep.planner.rows import counted, layer_rows, layers_to_plan
from onnxsep.planner.search import Found, Round, Search
from onnxsep.planner.shipping import Best, best_plan, budget_notes, latency_report, quantization_report
from onnxsep.planner.surveying import crew_for, survey_for
from onnxsep.planner.targets import Target
from onnxsep.planner.timings import Timer, scratch_for, timings_for
from onnxsep.reporting.model_info import model_info
from onnxsep.running.feeds import check_input_shapes
from onnxsep.running.sizes import find_sizes


@dataclass(frozen=True, repr=False)
class PlanResult:
    """A plan and the report of how it was found; ``onnxsep.rewrite(model, plan=result.plan, data=...)`` does it."""

    plan: PlanFile
    report: PlanReport
    reads: Reads = NOTHING
    frontier: Frontier | None = None
    frontier_folder: Path | None = None
    judge: Judge | None = None
    """What says whether a model loses too much, where that was asked."""

    def __repr__(self) -> str:
        return f"<PlanResult: {self.report.summary()}>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as a TOML file, and the trade-off curve where it was asked for.

        Raises:
            ModelSaveError: The file cannot be written.
            OptionError: It would overwrite a file that the plan was made from, or one that is no plan.
        """
        self.plan.save(path, self.reads)
        if self.frontier is not None and self.frontier_folder is not None:
            self.frontier.save(self.frontier_folder, self.reads)


@takes(PlanOptions)
def plan(model: AnyModel, options: PlanOptions) -> PlanResult:
    """Choose a form for each layer, by measurement, so that the model keeps within budgets and loses least.

    Writes nothing: ``PlanResult.save`` does, and ``rewrite`` with the plan carries it out.

    Args:
        model: a file, a ModelProto, or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: a target, mode, pattern or other option cannot be used.
        ModeNotFoundError: no such mode.
        UnsupportedModelError: the graph cannot be read.
        FeedError: the input shapes do not fit the model.
        DataError: the data do not fit the model.
        CalibrationError: nothing can be fitted to the data, or measured on them.
        TargetError: no choice keeps within the budgets; its ``report`` says the least that can be had.
    """
    started = time.perf_counter()
    reads = Reads.of(model, options.reads())
    check_paths(reads, options.writes())
    source = load(model, follow_links=options.follow_links)
    check_input_shapes(source, options.shapes)
    announce(options.teller, "finding the layers")
    modes, blocks = forms(options.modes), block_forms(options.modes)
    linear = any(mode.linear_layers for mode in modes)
    sites = find_sites(source, options.shapes, linear_layers=linear, transposed=True)
    fitting = Fitting(
        data=options.data,
        preprocessing=Preprocessing.of(options.preprocessing),
        skip_bad=options.skip_bad,
    )
    dataset = opened(fitting, source, options.run_with).data
    assert isinstance(dataset, Dataset)
    data, judge = planning_data(source, dataset, options)
    memory = quantized = None
    if any(one.kind == "ram" for one in options.targets):
        memory = PeakMemory(sites, find_sizes(source, options.shapes, options.run_with))
    if options.quantized is not None:
        quantized = Quantized(source, sites, options.quantized, dataset, options.run_with, options.teller)
    with scratch_for(options) as scratch, crew_for(options) as crew:
        survey = survey_for(source, sites, modes, blocks, data, options, crew)
        elsewhere = elsewhere_for(options, crew)
        timer = Timer() if elsewhere is None else Timer(elsewhere.latencies, elsewhere.ratio)
        timings = timings_for(source, sites, options, scratch, options.teller, quantized, timer)
        means = Means(survey, timer, timings, memory, judge, quantized)
        return _Planner(source, sites, modes, blocks, data, options, reads, started, means).run()


class _Planner:
    """One run."""

    def __init__(
        self,
        model: Model,
        sites: Sites,
        modes: Sequence[Mode],
        blocks: Sequence[BlockMode],
        data: PlanningData,
        options: PlanOptions,
        reads: Reads,
        started: float,
        means: Means,
    ) -> None:
        self._model, self._sites, self._data, self._options = model, sites, data, options
        self._reads, self._started, self._means = reads, started, means
        self._timings, self._judge, memory = means.timings, means.judge, means.memory
        for one in options.targets:
            if memory is not None and one.kind == "ram":
                memory.keep_within(one.amount(memory.source))
        layers, self._reasons = layers_to_plan(sites, options)
        self._search = Search(
            model,
            sites,
            layers,
            modes,
            data.samples,
            lambda around: data.walk(model, sites, around),
            self._reasons,
            options.round_ranks,
            options.teller,
            means.timings,
            None if means.quantized is None else means.quantized.size,
            means.survey,
            memory,
            block_rows(model, sites, blocks, layers, recurse=options.recurse),
        )
        unknown = Costs(model, sites).unknown_macs
        if unknown and any(one.kind == "macs" for one in options.targets):
            raise OptionError(
                f"{spelled('target')} macs= needs the sizes of all inputs, and {unknown} nodes have none that are known"
                f"; {spelled('input_shapes', hint='NAME:DIMS')} gives them"
            )

    def run(self) -> PlanResult:
        """Search, and say what was found."""
        self._refuse_impossible()
        measured = self._search.alone()
        self._settle_budgets()  # now that times are known
        if self._judge is not None:
            return self._meeting(measured, self._judge)
        found = best_plan(self._search, measured, self._budgets, self._options.rounds, self._means.quantized)
        if found.found is None:
            raise too_small(self._report(measured, Best(()), {}))
        report = self._report(measured, found, counted([one.measured for one in found.rounds]))
        return self._result(measured, found.found, found.rounds[0].found, report)

    def _settle_budgets(self) -> None:
        self._costs = self._search.costs
        self._budgets = {one.kind: one.amount(self._costs.original[one.kind]) for one in self._options.targets}

    def _refuse_impossible(self) -> None:
        """Say that no form is so small before anything is measured, where that needs no measurement.

        Raises:
            TargetError: None is.
        """
        counted = [one.kind for one in self._options.targets if one.kind in ("params", "macs", "size")]
        if len(counted) < len(self._options.targets):
            return  # what is missing must be measured, to say all of it
        self._settle_budgets()
        priced = self._search.priced(counted)
        if any(self._search.smallest(kind, priced) > self._budgets[kind] for kind in counted):
            report = self._report(priced, Best(()), {})
            raise too_small(report.model_copy(update={"fitted_samples": 0, "measured_samples": 0}))

    def _meeting(self, measured: Mapping[Place, Sequence[Measured]], judge: Judge) -> PlanResult:
        """The cheapest plan that does not lose too much."""
        kind = self._options.targets[0].kind
        meeting = Meeting(self._search, judge, kind, self._budgets, self._data.all_samples, self._options.rounds)
        taken = meeting.run(measured)
        if not meeting.tries:
            raise too_small(self._report(measured, Best(()), {}))
        count = counted(one.candidates for one in meeting.tries)
        tries = tuple(meeting.reports(taken))
        if taken is None:
            nearest = meeting.nearest.verdict or meeting.nearest.losses
            report = self._report(measured, Best(()), count)
            needed = meeting.needed(measured) if report.targets[0].target else None
            report = report.model_copy(update={"losses": judge.report(nearest), "tries": tries})
            raise loses_too_much(report, judge, nearest, needed)
        best = taken.found_as_written
        report = self._report(measured, Best([Round(best, taken.candidates)], best), count)
        report = report.model_copy(update={"losses": judge.report(taken.verdict), "tries": tries})
        return self._result(measured, best, meeting.tries[0].found, report)

    def _result(
        self, measured: Mapping[Place, Sequence[Measured]], best: Found, first: Found, report: PlanReport
    ) -> PlanResult:
        if self._options.frontier is None:
            if self._means.quantized is None:
                report = report.model_copy(update={"curve": self._frontier(measured, first, report).drawn()})
            return PlanResult(self._file(best, report), report, self._reads, judge=self._judge)
        curve = self._frontier(measured, first, report)
        report = report.model_copy(update={"frontier": curve.points})
        folder = Path(self._options.frontier)
        return PlanResult(self._file(best, report), report, self._reads, curve, folder, self._judge)

    def _frontier(self, measured: Mapping[Place, Sequence[Measured]], first: Found, report: PlanReport) -> Frontier:
        target, effect = report.targets[0], first.carried.effect
        summed, whole = from_additive(effect.kind, first.selection.loss), effect.value
        scale = whole / summed if summed > 0 and math.isfinite(whole) else 1.0
        return frontier(self._search, measured, target.kind, target.least, effect.kind, scale, self._budgets)

    def _report(
        self,
        measured: Mapping[Place, Sequence[Measured]],
        found: Best,
        count: Mapping[Place, int],
    ) -> PlanReport:
        divided, dataset, best = self._data.divided, self._data.dataset, found.found
        used = sorted({*divided.fitted, *divided.measured})
        if self._judge is not None:
            used = sorted({*used, *self._judge.choosing, *self._judge.held})
        report = PlanReport(
            source=model_info(self._model),
            options=self._options.as_json(model=self._model),
            targets=tuple(self._target(one, measured, found) for one in self._options.targets),
            losses=() if self._judge is None else self._judge.report(None),
            layers=tuple(layer_rows(self._sites, best, self._reasons, count, self._timings)),
            rounds=tuple(
                RoundReport(
                    number=one.found.round,
                    candidates=one.candidates,
                    predicted=one.found.predicted if math.isfinite(one.found.predicted) else None,
                    gap=one.found.selection.gap / one.found.selection.loss if one.found.selection.loss > 0 else 0.0,
                    measured=one.found.carried.effect.report,
                    softened=one.found.carried.effect.finite_softened,
                    taken=one.found is best,
                )
                for one in found.rounds
            ),
            measured=None if best is None else best.carried.effect.report,
            latency=latency_report(self._model, found, self._timings, self._options, self._means.timer),
            quantized=self._shipped(found),
            data=dataset.source,
            fingerprint=dataset.fingerprint(used),
            fitted_samples=len(divided.fitted),
            measured_samples=len(divided.measured),
            held_out=divided.unseen,
            preprocessing=dataset.preprocessing,
            notes=(*self._sites.notes, *dataset.notes),
            measuring=self._means.survey.said,
            seconds=time.perf_counter() - self._started,
        )
        return report.model_copy(update={"notes": (*report.notes, *budget_notes(report))})

    def _shipped(self, found: Best) -> PlannedQuantization | None:
        if self._means.quantized is None or found.shipped is None:
            return None
        walk = self._data.walk(self._model, self._sites, None)
        return quantization_report(found, self._means.quantized, walk, self._timings)

    def _target(self, target: Target, measured: Mapping[Place, Sequence[Measured]], found: Best) -> TargetReport:
        before, kind = self._costs.original[target.kind], target.kind
        smallest = self._search.smallest(kind, measured)
        after = None if found.found is None else found.found.costs[kind]
        if kind == "size" and found.shipped is not None:
            after = found.shipped.size
        return TargetReport(
            kind=kind,
            target=target.text,
            allowed=self._budgets[kind],
            before=before,
            after=after,
            least=min(smallest, self._costs.source[kind] if after is None else after),
        )

    def _file(self, best: Found, report: PlanReport) -> PlanFile:
        kind = best.carried.effect.kind
        shown = {one.site.place: Effect(kind, from_additive(kind, one.effect), 0) for one in best.selection.chosen}
        notes = {
            one.site.place: f"{shown[one.site.place]} alone, held-out error {one.held_out:.3f}"
            + (f" (those of {one.instead})" if one.instead else "")
            for one in best.selection.chosen
            if one.row is not None
        }
        return plan_of(self._model, self._sites, best.carried.plan, {}, notes, evidence(report))
