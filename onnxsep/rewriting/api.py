"""The rewrite itself: load -> match -> plan -> factorize -> apply -> ensure -> verify."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import onnx

from onnxsep.calibration import STATISTICS, Fitting, fit_plan, tune_result
from onnxsep.checking.feeding import Feeding, layers_report
from onnxsep.data import AnyPreprocessing, Dataset, Preprocessing, Source, open_data
from onnxsep.engine.factors import Factorized, factorize_all
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import SIZES_UNKNOWN, Options, Plan, in_main_graph
from onnxsep.engine.sites import Sites, find_sites
from onnxsep.engine.sparsity import dense_factor_notes
from onnxsep.engine.surgery import Edit, replace_matches
from onnxsep.errors import FeedError, VerificationError
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, Reads, check_paths
from onnxsep.model.saving import Savable
from onnxsep.modes.base import Mode
from onnxsep.modes.block import BlockMode
from onnxsep.modes.ranks import check_rounding
from onnxsep.options.hints import checks_types
from onnxsep.options.patterns import as_patterns
from onnxsep.options.progress import Progress
from onnxsep.planner.plan_file import PlanFile, plan_of
from onnxsep.reporting.model_info import model_info
from onnxsep.reporting.records import VerificationReport
from onnxsep.rewriting.choosing import choice_of
from onnxsep.rewriting.report import RewriteReport
from onnxsep.rewriting.rows import conv_reports, planned, totals
from onnxsep.rewriting.verification import decide, verify_result
from onnxsep.running.execution import shapes_in_run
from onnxsep.running.feeds import check_input_shapes, make_feeds
from onnxsep.running.inputs import Input, model_inputs
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.verification import Settings, Verify, check_settings


@dataclass(frozen=True)
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


@checks_types
def rewrite(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    mode: str | Mode | BlockMode | None = None,
    plan: str | os.PathLike[str] | PlanFile | None = None,
    rank: RankPolicy | str | float = "paper",
    force: bool = False,
    include_first: bool = False,
    recurse: bool = False,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    round_ranks: int = 0,
    dry_run: bool = False,
    verify: Verify = "auto",
    inputs: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    max_error: float | None = None,
    data: Source | Dataset | None = None,
    preprocessing: AnyPreprocessing | None = None,
    init: str | None = None,
    samples: int = 500,
    positions: int = 64,
    statistics: str | os.PathLike[str] | None = None,
    refine: int = 0,
    tune: int = 0,
    layers: bool = False,
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Replace every Conv for which it pays by the form that ``mode`` names. Writes nothing: ``Result.save`` does.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        mode: the name of an installed mode, or a Mode or BlockMode.
        plan: instead of ``mode`` (and ``rank`` to ``round_ranks``): a plan, or its TOML file, that says what becomes of
            each layer. ``Result.plan`` is one.
        rank: "paper", "full", an integer, a share of the parameters such as 0.5, or "energy=0.95".
        force: replace Convs even where it does not pay.
        include_first: replace first Convs too (those reached from a graph input without passing another Conv).
        recurse: replace Convs that onnxsep itself made.
        only: glob patterns; a Conv whose name matches none is left alone.
        skip: glob patterns; a Conv whose name matches one is left alone.
        round_ranks: make channel counts multiples of this, 8 or 16, which suit ONNX Runtime; 0: as they are.
        dry_run: stop before anything is changed; the report says what would be done.
        verify: "full" runs both models, "local" each replaced Conv alone, "auto" chooses full below 1 GB, or "none".
        inputs: .npz (or .npy) with inputs for a full verification; else seeded random ones.
        input_shapes: shapes for inputs whose dimensions are free, by input name.
        seed: of the random inputs, and of what is sampled of the data.
        max_error: fail where the verification's relative error is larger.
        data: calibration data, to which the factors are fitted: a folder of images, an .npy or .npz file, arrays, or an
            iterable of feeds (``onnxsep.data``).
        preprocessing: of images: a Preprocessing, the path of a TOML file, or a dict with its keys.
        init: "svd" (weights only), "response", "compensated", "joint"; the last is the default with data, the first
            without. A mode offers those in its ``inits``.
        samples: use at most so many samples, drawn at random.
        positions: output positions sampled in each of them.
        refine: rounds in which pairs of Convs in a row are fitted again, together; about three times the time for two.
        statistics: with data, a file to record statistics of the original network in; without, one to fit to.
        tune: steps of tuning the new weights together, by distillation from the original on the same data; it needs
            ``onnxsep[finetune]``.
        layers: compare every tensor that source and result have in common, for the report: where does the error arise?
            On samples of ``data``, else on ``inputs`` or random ones.
        follow_links: follow links in the location of external data.
        runtime: threads, provider, custom operators.
        progress: told of every Conv that is done: (name, done, all).

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
    check_rounding(round_ranks)
    images = Preprocessing.of(preprocessing)
    fitting = Fitting(data, images, init, samples, positions, seed, statistics, tune, refine, dry_run)
    options = Options(
        RankPolicy.parse(rank),
        force,
        include_first,
        recurse,
        as_patterns(only),
        as_patterns(skip),
        round_ranks=round_ranks,
    )
    choice = choice_of(mode, plan, options)
    choice.check(fitting)
    settings = Settings(
        "none" if dry_run else verify,
        Path(inputs) if inputs is not None else None,
        dict(input_shapes or {}),
        seed,
        max_error,
        runtime or RuntimeOptions(),
        progress,
    )
    check_settings(settings, get_args(Verify), dry_run=dry_run)
    reads = Reads.of(
        model=model,
        plans=(plan,),
        data=data,
        preprocessing=preprocessing,
        statistics=statistics if data is None else None,
        inputs=inputs,
        libraries=settings.runtime.custom_op_libraries,
    )
    check_paths(reads, {STATISTICS: None if data is None or dry_run else statistics})
    source = load(model, follow_links=follow_links)
    check_input_shapes(source, settings.input_shapes)
    settings = decide(settings, source, dry_run=dry_run)
    sites = choice.sites(lambda linear: find_sites(source, settings.input_shapes, linear_layers=linear))
    if measured := _sizes_in_run(source, sites, settings):
        sites = choice.sites(
            lambda linear: find_sites(source, settings.input_shapes, linear_layers=linear, measured=measured)
        )
    chosen = choice.rows(source, sites, fitting)
    rows = chosen.plan
    if layers and data is not None and not isinstance(data, Dataset):
        data = open_data(data, source, preprocessing=preprocessing)  # it is read twice
        fitting = replace(fitting, data=data)
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
        outcome, errors, failure = verify_result(source, result, sites, rows, edit, settings)
    compared, why_not = None, ""
    if layers and not dry_run:
        feeding = Feeding(data, seed=seed)
        if data is None:
            feeding = Feeding(inputs=settings.inputs, input_shapes=settings.input_shapes, seed=seed)
        compared, why_not = layers_report(source, result, feeding, settings.runtime)
    report = RewriteReport(
        source=model_info(source),
        mode=choice.mode,
        rank=choice.rank,
        plan=choice.plan,
        options={
            "force": force,
            "include_first": include_first,
            "recurse": recurse,
            "only": options.only,
            "skip": options.skip,
            "round_ranks": round_ranks,
        },
        convs=conv_reports(rows, factors, errors),
        totals=totals(sites, rows, light),
        removed_weights=tuple(edit.removed_weights),
        removed_inputs=tuple(edit.removed_inputs),
        calibration=fitted.report,
        notes=(
            *sites.notes,
            *(() if dry_run else dense_factor_notes(source, sites, (row.site for row in rows.convs))),
            *_size_notes(rows, measured),
            *notes,
            *_input_notes(edit),
            *([why_not] if why_not else []),
        ),
        layers=compared,
        verification=outcome,
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
        lambda: plan_of(source, rows, chosen.said),
    )


def _sizes_in_run(source: Model, sites: Sites, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Shapes of what Convs read that no inference finds, from one run of a model whose own inputs leave none free."""
    graph = source.proto.graph
    unknown = [item for item in sites.found if isinstance(item, ConvSite) and item.input_size is None]
    names = [graph.node[item.place[1]].input[0] for item in unknown if in_main_graph(item)]
    if not names or settings.verify != "full":
        return {}
    try:
        feeds = settings.given or make_feeds(source, input_shapes=settings.input_shapes, seed=settings.seed)
    except FeedError:
        return {}
    free = [value for value in model_inputs(source.proto) if _has_free_sizes(value)]
    if settings.given is None and any(value.name not in settings.input_shapes for value in free):
        return {}
    return shapes_in_run(source, list(dict.fromkeys(names)), feeds, settings.runtime)


def _has_free_sizes(value: Input) -> bool:
    """Whether more of an input's shape is free than the batch."""
    return value.dims is None or not all(isinstance(size, int) for size in value.dims[1:])


def _size_notes(plan: Plan, measured: Mapping[str, tuple[int, ...]]) -> list[str]:
    unknown = sum(SIZES_UNKNOWN in row.notes for row in plan.replacements)
    if not unknown:
        return [f"sizes of {len(measured)} tensors were read off a run: no inference finds them"] if measured else []
    return [
        f"the input sizes of {unknown} replaced Convs are not in the model: their MACs were compared for large even "
        "sizes (--input-shape NAME:DIMS gives sizes)"
    ]


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
