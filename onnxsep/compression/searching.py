"""``compress`` without a recipe: ways from the quickest to prepare upwards, until one reaches the goals."""

import importlib.util
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from onnxsep.compression.api import CompressResult, run_recipe
from onnxsep.compression.given import CompressOptions, Given
from onnxsep.compression.goals import distance, in_words
from onnxsep.compression.preparing import lasting, settle_images
from onnxsep.compression.recipe import RECIPE_OUT, Recipe, recipe_text
from onnxsep.compression.report import CompressReport, WayReport
from onnxsep.compression.search_options import SearchOptions
from onnxsep.compression.shared import Shared
from onnxsep.compression.sizing import Form, fitting_share
from onnxsep.compression.ways import FORMS, Way, about_seconds, rounded, ways
from onnxsep.data import Preprocessing, open_data
from onnxsep.engine.sites import find_sites
from onnxsep.errors import DataError, TargetError, VerificationError, spelled
from onnxsep.evaluation.limits import Limits
from onnxsep.model.files import write_text
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import check_paths
from onnxsep.model.saving import SavedFiles
from onnxsep.options.progress import announce, note
from onnxsep.planner.plan_file import PLAN, PlanFile
from onnxsep.planner.reading import plan_from_text
from onnxsep.planner.refusing import least_words
from onnxsep.planner.report import PlanReport
from onnxsep.running.feeds import make_feeds
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.training.choices import Precision
from onnxsep.training.converters import import_torch
from onnxsep.training.devices import quickest_precision

_TORCH = "onnx2torch", "torch"
_TRIALS = 5
_COMPARED = 2  # models: the original and a result
_Nearest = tuple[float, CompressResult, WayReport]  # how far from the goals


@dataclass(frozen=True)
class PlannedWay:
    """A way, and about how long it takes."""

    way: Way
    seconds: float

    @property
    def line(self) -> str:
        """For people."""
        about = f"{self.way.name} ({rounded(self.seconds)})"
        return about if self.way.stage > 1 else f"{about}: {'; '.join(self.steps)}"

    @property
    def steps(self) -> tuple[str, ...]:
        """Each with its options."""
        return _steps(self.way)


@dataclass(frozen=True, repr=False)
class SearchResult(CompressResult):
    """The result of the way that reached the goals; the recipe that repeats it is written beside it."""

    recipe: Recipe | None = None
    plan: PlanFile | None = None

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write the model with its manifest, ``NAME.recipe.toml``, and the plan that the recipe carries out.

        Raises:
            ModelSaveError: One of them cannot be written.
            OptionError: One of them would overwrite something else.
        """
        target = Path(path)
        recipe, plan = recipe_path(target), plan_path(target)
        check_paths(self.reads, {RECIPE_OUT: recipe, **({} if self.plan is None else {PLAN: plan})})
        files = super().save(target)
        assert self.recipe is not None
        if self.plan is not None:
            self.plan.save(plan)
        write_text(recipe, recipe_text(self.recipe, plan.name))
        return files


def recipe_path(target: Path) -> Path:
    """Where the recipe of a result lies."""
    return target.with_suffix(".recipe.toml")


def plan_path(target: Path) -> Path:
    """Where the plan of a result lies."""
    return target.with_suffix(".plan.toml")


class Search:
    """A search for steps that reach goals.

    Args:
        model: What is to be made smaller.
        options: The goals, and what every run gets.
    """

    def __init__(self, model: AnyModel, options: SearchOptions) -> None:
        assert options.goals is not None
        self._model, self._options, self._goals = model, options, options.goals
        self._run_options = CompressOptions(**{one.name: getattr(options, one.name) for one in fields(CompressOptions)})
        self._original = load(model, follow_links=options.follow_links)
        self._shared = self._opened(self._original)
        self._shares: dict[Form, float | None] = {}
        self._ways, self._missing = self._found(self._original)

    @property
    def planned(self) -> tuple[PlannedWay, ...]:
        """The ways in their order, and about how long each takes."""
        return self._ways

    @property
    def missing(self) -> str:
        """What is not tried because something is not installed; empty where that is nothing."""
        return self._missing

    def _opened(self, original: Model) -> Shared:
        """The data, opened once for all ways."""
        options = self._options
        if options.data is None:
            raise DataError(
                f"{spelled('target')} needs data: give {spelled('data')}, a folder of images, .npz or .npy, to fit and"
                " to calibrate with"
            )
        source, test = lasting(options.data), lasting(options.test)
        given = Given(
            data=source,
            labels=options.labels,
            skip_bad=options.skip_bad,
            output=options.output,
            runtime=options.runtime or RuntimeOptions(),
        )
        tests = (test, options.test_labels)
        images, found = settle_images(original, given, Preprocessing.of(options.preprocessing), tests)
        opened = [
            None
            if one is None
            else open_data(one, original, preprocessing=images, labels=labels, skip_bad=options.skip_bad)
            for one, labels in ((source, options.labels), tests)
        ]
        assert opened[0] is not None
        return Shared(opened[0], opened[1], images, found)

    def _found(self, original: Model) -> tuple[tuple[PlannedWay, ...], str]:
        options, goals, data = self._options, self._goals, self._shared.data
        if goals.max_drop is not None and options.metric is None:
            measured = self._shared.test or data
            limits = Limits(max_drop=goals.max_drop)
            limits.check_possible(_COMPARED, labels=measured.labels is not None, source=measured.source)
        sites = len(find_sites(original, linear_layers=True, transposed=True).found)
        one = _seconds_for_one(original, options)
        installed = all(importlib.util.find_spec(name) is not None for name in _TORCH)
        precision: Precision = quickest_precision(import_torch(), options.device) if installed else "float32"
        each = [
            PlannedWay(way, about_seconds(way, one, len(data), sites))
            for way in ways(goals, len(data), labels=data.labels is not None, precision=precision)
        ]
        each.sort(key=lambda planned: (planned.way.stage, planned.seconds if planned.way.stage else 0))
        without = [planned for planned in each if installed or not planned.way.trainings]
        left = [planned.way.name for planned in each if planned not in without]
        words = f'not tried without torch: {"; ".join(left)}: pip install "onnxsep[finetune]"' if left else ""
        return tuple(without), words

    def __call__(self) -> SearchResult:
        """Try the ways until one reaches the goals; what is planned, and what came of it, is noted.

        Raises:
            VerificationError: None does; with the report of the nearest.
            OnnxsepError: As the runs raise it.
        """
        for planned in self._ways:
            note(self._options.teller, planned.line)
        if self._missing:
            note(self._options.teller, self._missing)
        tried: list[WayReport] = []
        nearest: _Nearest | None = None
        plan: PlanFile | None = None
        impossible: TargetError | None = None
        trained: dict[Form, float] = {}  # how far from the goals each form was after its last training
        results: list[CompressResult] = []
        for number, planned in enumerate(self._ways, start=1):
            way, started = planned.way, time.perf_counter()
            if way.form == "plan" and impossible is not None:
                continue
            if tried and not way.helps(tried[-1].missed):
                continue
            if way.trainings > 1 and trained and way.form != min(trained, key=lambda form: trained[form]):
                continue  # another form did better with as much training
            if way.form is not None and way.form in FORMS:
                share = self._share(way.form)
                if share is None:
                    continue
                way = way.beginning_with(share)
            try:
                recipe = Recipe(f"the way {way.name!r}", way.steps)
                done = run_recipe(recipe, self._model, self._of_way(number, way), self._shared)
            except VerificationError as error:
                impossible = error if isinstance(error, TargetError) else impossible
                found = WayReport(
                    name=way.name, steps=_steps(way), reached=False, why=str(error), seconds=_since(started)
                )
            else:
                results.append(done)
                plan = plan or _plan_of(done)
                missed = self._goals.missed(done.report.evaluation.models)
                found = WayReport(
                    name=way.name, steps=_steps(way), reached=not missed, missed=missed, seconds=_since(started)
                )
                if way.trainings and way.form is not None:
                    trained[way.form] = distance(missed)
                if nearest is None or distance(missed) < nearest[0]:
                    nearest = distance(missed), done, found
            tried.append(found)
            note(
                self._options.teller,
                f"{way.name}: {'reached' if found.reached else in_words(found.missed) or found.why}",
            )
            if found.reached:
                return self._result(done, way, plan, tried, results)
        raise self._failed(nearest, tried, impossible)

    def _share(self, form: Form) -> float | None:
        """Of the weights that stay in a form for all layers; None where the goals allow none."""
        if form not in self._shares:
            announce(self._options.teller, f"finding the size of {form}")
            quantize = next(planned.way.steps[-1] for planned in self._ways if planned.way.form == form)
            runtime = self._options.runtime or RuntimeOptions()
            self._shares[form] = fitting_share(
                form, self._original, self._goals, self._shared.data, quantize.options, runtime
            )
        return self._shares[form]

    def _of_way(self, number: int, way: Way) -> CompressOptions:
        work = self._options.work
        if work is None:
            return self._run_options
        return replace(self._run_options, work=f"{os.fspath(work)}-{number}-{way.key}")

    def _result(
        self, done: CompressResult, way: Way, plan: PlanFile | None, tried: list[WayReport], all_: list[CompressResult]
    ) -> SearchResult:
        carried = plan if way.form == "plan" else None
        steps = way.steps if carried is None else way.with_plan(carried).steps
        report = self._report(done, tried)
        if not self._options.keep_steps:
            for other in all_:
                if other is not done and other.work is not None:
                    other.work.remove()
        mine = {one.name: getattr(done, one.name) for one in fields(CompressResult)}
        recipe = Recipe(way.name, steps, f"Found by compress for {self._asked()}.")
        return SearchResult(**{**mine, "report": report}, recipe=recipe, plan=carried)

    def _failed(
        self, nearest: _Nearest | None, tried: list[WayReport], impossible: TargetError | None
    ) -> VerificationError:
        if nearest is None:
            return VerificationError(f"no way reaches {self._asked()}: {tried[-1].why}")
        report = None if impossible is None else impossible.report
        least = least_words(report) if isinstance(report, PlanReport) else ""
        _, done, way = nearest
        where = "" if done.work is None else f"; its result is {done.work.path / (done.manifest.steps[-1].file or '')}"
        also = f". {self._missing[0].upper()}{self._missing[1:]}" if self._missing else ""
        return VerificationError(
            f"no way reaches {self._asked()}, nothing was written{': ' if least else ''}{least}. The nearest is"
            f" {way.name!r} ({in_words(way.missed)}){where}{also}",
            self._report(done, tried),
        )

    def _report(self, done: CompressResult, tried: list[WayReport]) -> CompressReport:
        """What a run reports, with what was tried, and what was not."""
        notes = [*done.report.notes, *([self._missing] if self._missing else [])]
        return done.report.model_copy(update={"ways": tuple(tried), "notes": tuple(notes)})

    def _asked(self) -> str:
        drop = self._goals.max_drop
        words = [target.text for target in self._goals.targets]
        return " and ".join([*words, *([] if drop is None else [f"{spelled('max_drop')} {drop:g}"])])


def _steps(way: Way) -> tuple[str, ...]:
    return way.lines


def _since(started: float) -> float:
    return time.perf_counter() - started


def _plan_of(done: CompressResult) -> PlanFile | None:
    """The plan that a step of the run has made."""
    for step in done.report.steps:
        if isinstance(step.report, PlanReport) and step.report.plan:
            return plan_from_text(step.report.plan, "the plan")
    return None


def _seconds_for_one(original: Model, options: SearchOptions) -> float:
    """What a run of the original takes for one sample: the shortest of some, as a first run prepares things."""
    feeds = make_feeds(original, inputs=None, input_shapes=dict(options.input_shapes or {}), seed=0).arrays
    runner = Runner(original, options.runtime or RuntimeOptions())
    times = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        runner(feeds)
        times.append(_since(started))
    return min(times)
