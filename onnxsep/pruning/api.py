"""``prune``: load -> match -> choose -> apply -> ensure -> verify."""

import time
from dataclasses import dataclass, replace

from onnxsep.data import ImageJudge, open_data, unfitted, verification_feeds
from onnxsep.engine.sites import find_sites
from onnxsep.errors import VerificationError
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable
from onnxsep.options.patterns import as_patterns
from onnxsep.options.progress import announce
from onnxsep.options.taking import takes
from onnxsep.pruning.options import PruneOptions
from onnxsep.pruning.outcome import Outcome
from onnxsep.pruning.report import FileSizes, PruneReport
from onnxsep.pruning.sizes import MEASURED_BELOW, zipped_bytes
from onnxsep.pruning.structured import prune_channels
from onnxsep.pruning.weights import prune_weights
from onnxsep.reporting.model_info import model_info, size_bytes
from onnxsep.reporting.records import VerificationReport
from onnxsep.rewriting.verifying_weights import verify_pruned
from onnxsep.running.feeds import Feeds, check_input_shapes
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.verification import Settings, missed_error


@dataclass(frozen=True, repr=False)
class PruneResult(Savable):
    """A pruned model and the report of what was done.

    ``model`` is the source's own object where nothing was pruned, or in a dry run. ``new_initializers`` are the
    changed weights that ``save`` puts into the data file, where the source has one.
    """

    model: Model
    report: PruneReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING


@takes(PruneOptions)
def prune(model: AnyModel, options: PruneOptions) -> PruneResult:
    """Set the smallest weights of the Convs to zero, or take whole channels out of the graph.

    Writes nothing: ``PruneResult.save`` does. Exactly one of ``sparsity``, ``step`` and ``pattern`` says how much.
    Weights that are zero already count as pruned: pruning by a step, fine-tuning, and pruning by a step again is the
    iterative form of paper 004. Without fine-tuning in between the steps only set the count.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: an option cannot be used, or options contradict each other.
        UnsupportedModelError: the graph cannot be read.
        FeedError: the inputs or input shapes do not fit the model.
        DataError: the data cannot be read, or do not fit the model.
        VerificationError: the result is further from the source than allowed; its ``report`` says what was measured.
    """
    started = time.perf_counter()
    goal, settings, scope, dry_run = options.goal, options.verifying(), options.compared, options.dry_run
    reads = Reads.of(model, options.reads())
    source = load(model, follow_links=options.follow_links)
    check_input_shapes(source, settings.input_shapes)
    settings = replace(settings, given=_feeds(source, options, settings.runtime))
    sites = find_sites(source, settings.input_shapes, linear_layers=options.linear)
    only, skip = as_patterns(options.only), as_patterns(options.skip)
    if options.channels:
        done = prune_channels(
            source,
            sites,
            goal,
            scope,
            options.norm,
            multiple=options.multiple,
            only=only,
            skip=skip,
            input_shapes=options.shapes,
            dry_run=dry_run,
            progress=options.teller,
        )
    else:
        done = prune_weights(source, sites, goal, scope, only=only, skip=skip, dry_run=dry_run, progress=options.teller)
    announce(options.teller, "comparing original and result")
    compared, failure = _compare(source, done, settings, dry_run=dry_run)
    announce(options.teller, "measuring the sizes after zip")
    sizes, unmeasured = (None, ()) if dry_run else _sizes(source, done.model)
    report = PruneReport(
        source=model_info(source),
        method="channels" if options.channels else "magnitude" if goal.pattern is None else "pattern",
        options={
            **options.as_json(model=model),
            "steps": goal.steps if options.step is not None else None,
            "scope": scope if goal.pattern is None else None,
        },
        surviving=done.surviving,
        layers=done.layers,
        totals=done.totals,
        sizes=sizes,
        notes=(*sites.notes, *done.notes, *unmeasured),
        verification=compared,
        missed=missed_error(compared.relative, settings.max_error),
        dry_run=dry_run,
        seconds=time.perf_counter() - started,
    )
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return PruneResult(done.model.ordered_as(source), report, done.new_initializers, reads)


def _feeds(source: Model, options: PruneOptions, runtime: RuntimeOptions) -> Feeds | None:
    """What the result is verified on where there are data."""
    if options.data is None or options.inputs is not None or options.verify == "none" or options.dry_run:
        return None
    judge, images = ImageJudge(source, runtime), options.preprocessing
    data = open_data(options.data, source, preprocessing=images, judge=judge, skip_bad=options.skip_bad)
    return replace(verification_feeds(data, unfitted(data, options.seed)), notes=data.notes)


def _compare(source: Model, done: Outcome, settings: Settings, *, dry_run: bool) -> tuple[VerificationReport, str]:
    if dry_run:
        return VerificationReport(kind="none", ran=False, reason="dry run: nothing was changed"), ""
    if done.model is source and settings.verify != "none":
        return VerificationReport(kind="none", ran=False, reason="nothing was pruned: the result is the source"), ""
    return verify_pruned(source, done.model, done.masked, done.dtypes, settings)


def _sizes(source: Model, result: Model) -> tuple[FileSizes | None, tuple[str, ...]]:
    """Sizes before and after, or a note where the model is too large to be packed just to measure that."""
    before = size_bytes(source)
    if before >= MEASURED_BELOW:
        return None, (f"sizes after zip are not measured from {MEASURED_BELOW:,} bytes on",)
    zipped = zipped_bytes(source)
    if result is source:
        return FileSizes(bytes_before=before, bytes_after=before, zipped_before=zipped, zipped_after=zipped), ()
    sizes = FileSizes(
        bytes_before=before,
        bytes_after=size_bytes(result),
        zipped_before=zipped,
        zipped_after=zipped_bytes(result),
    )
    return sizes, ()
