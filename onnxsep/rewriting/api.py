"""The rewrite itself: load -> match -> plan -> factorize -> apply -> ensure -> verify."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import onnx

from onnxsep.calibration import Fitting, fit_plan, opened, tune_result
from onnxsep.checking.feeding import Feeding, layers_report
from onnxsep.checking.options import SAMPLES
from onnxsep.data import Dataset, Preprocessing
from onnxsep.engine.factors import Factorized, factorize_all
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.own_constants import with_own_constants
from onnxsep.engine.planned_costs import planned
from onnxsep.engine.planning import SIZES_UNKNOWN, Plan
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.engine.sparsity import dense_factor_notes
from onnxsep.engine.surgery import Edit, replace_matches
from onnxsep.errors import OptionError, VerificationError, spelled
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import Measured, infer_shapes, skeleton
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import NOTHING, Reads, check_paths
from onnxsep.model.saving import Savable
from onnxsep.options.progress import announce
from onnxsep.options.taking import takes
from onnxsep.planner.judged import judged
from onnxsep.planner.limiting import Limited, is_low_rank, limit_effects
from onnxsep.planner.plan_file import PlanFile, plan_of
from onnxsep.planner.shipping import budget_notes
from onnxsep.reporting.model_info import model_info
from onnxsep.reporting.records import VerificationReport
from onnxsep.rewriting.choosing import OneWidthMode
from onnxsep.rewriting.narrowing import narrow
from onnxsep.rewriting.options import RewriteOptions
from onnxsep.rewriting.report import RewriteReport
from onnxsep.rewriting.rows import conv_reports, totals
from onnxsep.rewriting.spectra import spectra
from onnxsep.rewriting.verification import decide, verify_result
from onnxsep.running.feeds import Feeds, check_input_shapes
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.sizes import Sizes, find_sizes
from onnxsep.running.verification import Settings, missed_error


@dataclass(frozen=True, repr=False)
class Result(Savable):
    """A rewritten model and the report of what was done.

    ``model`` is the source's own object where nothing was replaced, or in a dry run. ``new_initializers`` are the names
    of the factors in the main graph; ``save`` puts them into the data file where the source has one.
    """

    model: Model
    report: RewriteReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING
    make_plan_file: Callable[[], PlanFile] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def plan(self) -> PlanFile:
        """What was done with each layer, or would be; ``rewrite(model, plan=...)`` does it again.

        All weights of the source are read for it: ask before the result is saved in the source's place.

        Raises:
            ModelLoadError: They cannot be read.
        """
        assert self.make_plan_file is not None
        return self.make_plan_file()


@takes(RewriteOptions)
def rewrite(model: AnyModel, options: RewriteOptions) -> Result:
    """Replace every Conv for which it pays by the form that ``mode`` names. Writes nothing: ``Result.save`` does.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: a rank, pattern or other option cannot be used; the statistics would overwrite another file.
        ModeNotFoundError: no such mode.
        UnsupportedModelError: the graph cannot be read.
        FeedError: the inputs or input shapes do not fit the model.
        DataError: the data do not fit the model.
        CalibrationError: the factors cannot be fitted to the data, or the statistics belong to another model.
        MissingDependencyError: ``tune`` was asked for and torch is not installed.
        VerificationError: the result does not compute what it should; its ``report`` says what was done and measured.
    """
    started = time.perf_counter()
    choice, dry_run, layers = options.choice, options.dry_run, options.layers
    fitting, settings = options.fitting(Preprocessing.of(options.preprocessing)), options.verifying()
    reads = Reads.of(model, options.reads())
    check_paths(reads, options.writes())
    source = load(model, follow_links=options.follow_links)
    check_input_shapes(source, settings.input_shapes)
    announce(settings.progress, "finding the layers")
    settings = decide(settings, source, dry_run=dry_run)
    original = source
    if isinstance(choice, OneWidthMode):
        source = with_own_constants(source)
    shapes, find = settings.input_shapes, partial(find_sites, source, transposed=True)
    sites = choice.sites(lambda linear: find(shapes, linear_layers=linear))
    sizes = find_sizes(source, shapes, settings.runtime, feeds=settings.given)
    if not sizes.complete and fitting.data is not None:
        fitting = opened(fitting, source, settings.runtime)
        sizes = _sizes_of_data(source, fitting, settings.runtime)
        shapes = sizes.shapes
    measured = sizes.of(source) if any(map(_of_unknown_size, sites.found)) else {}
    if measured or shapes is not settings.input_shapes:
        sites = choice.sites(lambda linear: find(shapes, linear_layers=linear, measured=measured))
    if isinstance(choice, OneWidthMode):
        return _narrowed(original, source, sites, sizes, choice, model, options, settings, reads, started)
    fitting = opened(fitting, source, settings.runtime) if choice.measures else fitting
    chosen = choice.rows(source, sites, fitting)
    rows, limited, fitting = chosen.plan, Limited(), chosen.unseen_kept(fitting)
    if chosen.max_effect is not None and any(map(is_low_rank, rows.convs)):
        fitting = opened(fitting, source, settings.runtime)
        limited = limit_effects(source, sites, rows, fitting, chosen.max_effect, settings.runtime, settings.progress)
    fitted = fit_plan(source, sites, rows, chosen.init, fitting, settings.runtime, settings.progress)
    factors = factorize_all(
        source,
        sites,
        rows,
        given=fitted.calibrated.outcomes,
        workers=settings.runtime.threads,
        force=choice.force,
        progress=settings.progress,
    )
    factors |= {place: found for place, found in fitted.calibrated.by_place.items() if place in factors}
    rows.annotate(fitted.calibrated.notes)
    edit, result = Edit(), source
    notes: tuple[str, ...] = ()
    errors: dict[Place, float] = {}
    failure = ""
    if dry_run:
        light, edit = planned(sites, rows)
        outcome = VerificationReport(kind="none", ran=False, reason="dry run: nothing was changed")
    else:
        light = sites.light
        if rows.replacements:
            result, edit, light, notes = _apply(source, rows, factors, settings)
            result, fitted = tune_result(source, result, edit, fitted, fitting, settings.runtime, settings.progress)
        if settings.verify == "full" and settings.given is None:
            settings = replace(settings, given=fitted.unseen())
        announce(settings.progress, "comparing original and result")
        outcome, errors, failure = verify_result(source, result, sites, rows, edit, settings)
    planning, too_much = (None, "") if chosen.planned is None else judged(chosen.planned, result, dry_run=dry_run)
    failure = failure or too_much
    compared, why_not = None, ""
    if layers and not dry_run:
        announce(settings.progress, "comparing the layers")
        feeding = Feeding(inputs=settings.inputs, input_shapes=settings.input_shapes, seed=options.seed)
        if fitted.parts is not None:
            feeding = Feeding(fitted.dataset, indices=tuple(fitted.parts.verified[:SAMPLES]))
        compared, why_not = layers_report(source, result, feeding, settings.runtime, settings.progress)
    report = RewriteReport(
        source=model_info(source),
        mode=choice.mode,
        rank=choice.rank,
        plan=choice.plan,
        planning=planning,
        options=options.as_json(model=model),
        convs=conv_reports(rows, factors, errors, limited.effects, spectra(source, sites, rows)),
        totals=totals(sites, rows, light, sizes),
        removed_weights=tuple(edit.removed_weights),
        removed_inputs=tuple(edit.removed_inputs),
        calibration=fitted.report,
        notes=(
            *sites.notes,
            *(() if dry_run else dense_factor_notes(source, sites, (row.site for row in rows.convs))),
            *([] if shapes is settings.input_shapes else [_sample_note(fitting, shapes)]),
            *_size_notes(rows, measured),
            *sizes.notes(source),
            *limited.notes,
            *(() if chosen.planned is None else budget_notes(chosen.planned.report)),
            *_untrained_notes(rows, fitted.calibrated.by_place),
            *notes,
            *_input_notes(edit),
            *([why_not] if why_not else []),
        ),
        layers=compared,
        verification=outcome,
        missed=missed_error(outcome.relative, settings.max_error),
        dry_run=dry_run,
        seconds=time.perf_counter() - started,
    )
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return Result(
        result.ordered_as(source),
        report,
        tuple(edit.new_initializers),
        reads,
        lambda: chosen.planned.plan if chosen.planned else plan_of(source, sites, rows, chosen.said),
    )


def _narrowed(
    original: Model,
    source: Model,
    sites: Sites,
    sizes: Sizes,
    choice: OneWidthMode,
    model: AnyModel,
    options: RewriteOptions,
    settings: Settings,
    reads: Reads,
    started: float,
) -> Result:
    """A rewrite by a width mode."""
    fitting = options.fitting(Preprocessing.of(options.preprocessing))
    done = narrow(source, sites, sizes, choice, fitting, settings, dry_run=options.dry_run)
    result, why_not = original if done.model is source else done.model, ""
    if options.layers and not options.dry_run:
        why_not = f"layers are not compared: mode {choice.mode} changes their channels"
    report = RewriteReport(
        source=model_info(source),
        mode=choice.mode,
        rank=choice.rank,
        options=options.as_json(model=model),
        convs=done.rows,
        totals=done.totals,
        notes=(*sites.notes, *done.notes, *([why_not] if why_not else [])),
        verification=done.verification,
        missed=missed_error(done.verification.relative, settings.max_error),
        dry_run=options.dry_run,
        seconds=time.perf_counter() - started,
    )
    if done.failure:
        raise VerificationError(f"{done.failure}; nothing was written", report)

    def no_plan() -> PlanFile:
        raise OptionError(f"a plan says what becomes of layers one by one, and mode {choice.mode} changes their widths")

    return Result(result.ordered_as(original), report, done.new_initializers, reads, no_plan)


def _of_unknown_size(item: ConvSite | Rejected) -> bool:
    return isinstance(item, ConvSite) and item.input_size is None


def _sizes_of_data(source: Model, fitting: Fitting, runtime: RuntimeOptions) -> Sizes:
    """What is known for a sample of data that are open."""
    assert isinstance(fitting.data, Dataset)
    return find_sizes(source, runtime=runtime, feeds=Feeds(fitting.data.feed(range(fitting.data.batch or 1))))


def _sample_note(fitting: Fitting, shapes: Mapping[str, tuple[int, ...]]) -> str:
    assert isinstance(fitting.data, Dataset)
    told = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return f"sizes that the model leaves free are those of a sample of {fitting.data.source}: {told}"


def _size_notes(plan: Plan, measured: Measured) -> list[str]:
    unknown = sum(SIZES_UNKNOWN in row.notes for row in plan.replacements)
    if not unknown:
        return [f"sizes of {len(measured)} tensors were read off a run: no inference finds them"] if measured else []
    return [
        f"the input sizes of {unknown} replaced Convs are not in the model: their MACs were compared for large even "
        f"sizes ({spelled('input_shapes', hint='NAME:DIMS')} gives sizes)"
    ]


def _untrained_notes(plan: Plan, fitted: Collection[Place]) -> list[str]:
    """What is said of blocks that start from the weights alone and will not do as they are."""
    rows = [row for row in plan.replacements if isinstance(row, BlockReplacement) and row.site.place not in fitted]
    found = dict.fromkeys((row.mode.name, row.mode.untrained) for row in rows if row.mode.untrained)
    return [f"warning: mode {name}: {words}" for name, words in found]


def _input_notes(edit: Edit) -> list[str]:
    gone = edit.removed_inputs
    if not gone:
        return []
    some = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
    return [f"graph inputs that stand for replaced weights go with them: {some} ({len(gone)} in all)"]


def _apply(
    source: Model, plan: Plan, factors: Mapping[Place, Factorized], settings: Settings
) -> tuple[Model, Edit, onnx.ModelProto, tuple[str, ...]]:
    """The result as a changed copy of the source, its skeleton with shapes, and notes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    replacements = plan.replacements
    edit = replace_matches(proto, replacements, factors)
    result = Model(proto, path=source.path, base_dir=source.base_dir, follow_links=source.follow_links)
    light = skeleton(result)
    note = ensure_valid(source, light)
    notes = (note,) if note else ()
    return result, edit, infer_shapes(light, settings.input_shapes), notes
