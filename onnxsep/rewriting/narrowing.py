"""A rewrite by a width mode: channels go, and all that follows from it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from onnxsep.calibration import Fitting, opened
from onnxsep.data import Dataset, partition, verification_feeds
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.narrowing import Narrowing, plan_narrowing
from onnxsep.engine.planning import site_macs
from onnxsep.engine.sites import Sites
from onnxsep.engine.slicing import mask_readers, take_out, take_out_sizes
from onnxsep.graph.counting import node_macs
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.places import Place
from onnxsep.graph.shapes import infer_shapes, skeleton
from onnxsep.model.io import Model
from onnxsep.modes.width import WidthMode
from onnxsep.options.progress import announce
from onnxsep.reporting.records import VerificationReport
from onnxsep.rewriting.choosing import OneWidthMode
from onnxsep.rewriting.report import ConvReport, Totals
from onnxsep.rewriting.rows import counted, left_row, sums_of_macs
from onnxsep.rewriting.verifying_weights import verify_pruned
from onnxsep.running.sizes import Sizes
from onnxsep.running.verification import Settings


@dataclass(frozen=True)
class Narrowed:
    """What was done, for the report.

    Attributes:
        model: the result; the source's own object where nothing changed, or in a dry run.
        rows: a row for each Conv, Gemm and MatMul.
        totals: sums.
        notes: for the report.
        verification: what was compared.
        failure: why the result must not be written, or "".
        new_initializers: changed initialisers that were in a data file.
    """

    model: Model
    rows: tuple[ConvReport, ...]
    totals: Totals
    notes: tuple[str, ...]
    verification: VerificationReport
    failure: str = ""
    new_initializers: tuple[str, ...] = ()


def narrow(
    source: Model,
    sites: Sites,
    sizes: Sizes,
    choice: OneWidthMode,
    fitting: Fitting,
    settings: Settings,
    *,
    dry_run: bool,
) -> Narrowed:
    """Take channels out of a model as a width mode says.

    Args:
        source: the model; it is not changed.
        sites: its Convs, Gemms and MatMuls.
        sizes: of its tensors.
        choice: the mode, and the layers that it may be about.
        fitting: the data, on whose samples the result is verified.
        settings: how it is verified.
        dry_run: change nothing.

    Raises:
        OptionError: what was asked for does not fit the model.
        DataError: the data do not fit the model.
    """
    asked = choice.options
    done = plan_narrowing(source, sites, choice.width_mode, only=asked.only, skip=asked.skip)
    light, result, moved, notes = sites.light, source, tuple[str, ...](), tuple[str, ...]()
    if done.narrower:
        notes = (*_stated(done), f"warning: mode {choice.mode}: {choice.width_mode.untrained}")
        if dry_run:
            light = infer_shapes(take_out_sizes(light, done.channels, done.gone), settings.input_shapes)
        else:
            result, moved = take_out(source, sites, done.channels, done.gone)
            light = skeleton(result)
            told = ensure_valid(source, light)
            light = infer_shapes(light, settings.input_shapes)
            notes = (*notes, *([told] if told else []))
    after = node_macs(light)
    macs = sums_of_macs([node_macs(sites.light), after], [sites.light, light], sizes)
    rows = tuple(_row(item, done, choice.width_mode, after) for item in sites.found)
    totals = counted(sites.light, light, macs, sizes, convs=len(rows), replaced=len(done.shapes))
    verification, failure = _verified(source, result, sites, done, fitting, settings, dry_run=dry_run)
    return Narrowed(result, rows, totals, notes, verification, failure, moved)


def _stated(done: Narrowing) -> Iterator[str]:
    """Which layers lose channels, and how many others follow."""
    made = {name for group, _ in done.narrower for name in group.names}
    for group, keeps in done.narrower:
        more = f" and {len(group.names) - 1} more, to which they are added" if len(group.names) > 1 else ""
        yield f"{group.names[0]!r}{more}: {group.channels} -> {keeps} channels"
    followers = len(done.shapes.keys()) - len(made)
    if followers > 0:
        yield f"{followers} other layers follow, with what stands between them"


def _row(item: ConvSite | Rejected, done: Narrowing, mode: WidthMode, macs: Mapping[Place, int | None]) -> ConvReport:
    if isinstance(item, Rejected):
        return left_row(item)
    shape = done.shapes.get(item.place)
    if shape is None:
        reason = done.reasons.get(item.place) or "its channels stay, and so do those that it reads"
        return left_row(Rejected(item.name, item.op_type, item.where, reason, item.place, item))
    before = item.conv.weight_shape
    pairs = zip(("computes", "reads"), before[:2], shape[:2], strict=True)
    notes = [f"{words} {old} -> {new}" for words, old, new in pairs if old != new]
    bias = shape[0] if item.conv.bias else 0
    return ConvReport(
        name=item.name,
        op_type=item.op_type,
        where=item.where,
        status="replaced",
        mode=mode.name,
        notes=(f"{' and '.join(notes)} channels",),
        weight_shape=before,
        group=item.conv.group,
        strides=item.conv.strides,
        rank=(),
        parameters_before=item.parameters,
        parameters_after=math.prod(shape) + bias,
        macs_before=site_macs(item),
        macs_after=macs.get(item.place),
    )


def _verified(
    source: Model,
    result: Model,
    sites: Sites,
    done: Narrowing,
    fitting: Fitting,
    settings: Settings,
    *,
    dry_run: bool,
) -> tuple[VerificationReport, str]:
    if dry_run:
        return VerificationReport(kind="none", ran=False, reason="dry run: nothing was changed"), ""
    if not done.narrower and settings.verify != "none":
        return VerificationReport(kind="none", ran=False, reason="nothing was replaced: the result is the source"), ""
    announce(settings.progress, "comparing original and result")
    if settings.verify == "local":  # layers have other ends than in the source: there is nothing to compare alone
        settings = replace(settings, verify="auto")
    if settings.verify == "full" and settings.given is None and fitting.data is not None:
        dataset = opened(fitting, source, settings.runtime).data
        assert isinstance(dataset, Dataset)
        parts = partition(dataset, fitting.samples, fitting.seed)
        settings = replace(settings, given=verification_feeds(dataset, parts))
    masked = partial(mask_readers, source, sites, done.channels, done.gone)
    dtypes = {item.dtype for item in sites.found if isinstance(item, ConvSite) and item.place in done.shapes}
    return verify_pruned(source, result, masked, dtypes, settings)
