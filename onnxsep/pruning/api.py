"""``prune``: load -> match -> choose -> apply -> ensure -> verify."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, get_args

import onnx

from onnxsep.engine.sites import find_sites
from onnxsep.errors import OptionError, VerificationError
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable
from onnxsep.options.hints import checks_types
from onnxsep.options.patterns import as_patterns
from onnxsep.options.progress import Progress
from onnxsep.pruning.outcome import Outcome
from onnxsep.pruning.report import FileSizes, PruneReport
from onnxsep.pruning.schedule import Goal
from onnxsep.pruning.selecting import Norm, Scope
from onnxsep.pruning.sizes import MEASURED_BELOW, zipped_bytes
from onnxsep.pruning.structured import prune_channels
from onnxsep.pruning.verifying import Verify, verify_pruned
from onnxsep.pruning.weights import prune_weights
from onnxsep.reporting.model_info import model_info, size_bytes
from onnxsep.reporting.records import VerificationReport
from onnxsep.running.feeds import check_input_shapes
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.verification import Settings, check_settings


@dataclass(frozen=True)
class PruneResult(Savable):
    """A pruned model and the report of what was done.

    ``model`` is the source's own object where nothing was pruned, or in a dry run. ``new_initializers`` are the
    changed weights that ``save`` puts into the data file, where the source has one.
    """

    model: Model
    report: PruneReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING


@checks_types
def prune(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    sparsity: float | None = None,
    step: float | None = None,
    steps: int | None = None,
    pattern: str | None = None,
    scope: Scope | None = None,
    norm: Norm = "l1",
    linear: bool = False,
    channels: bool = False,
    multiple: int = 0,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    dry_run: bool = False,
    verify: Verify = "auto",
    inputs: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    max_error: float | None = None,
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
) -> PruneResult:
    """Set the smallest weights of the Convs to zero, or take whole channels out of the graph.

    Writes nothing: ``PruneResult.save`` does. Exactly one of ``sparsity``, ``step`` and ``pattern`` says how much.
    Weights that are zero already count as pruned: pruning by a step, fine-tuning, and pruning by a step again is the
    iterative form of paper 004. Without fine-tuning in between the steps only set the count.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        sparsity: the share of the weights that is zero (with ``channels``: gone) in the end, above 0 and below 1.
        step: the share of the remaining weights that goes each time.
        steps: how many times; 1 by default.
        pattern: "2:4" keeps the two largest of every four consecutive input channels.
        scope: "global" compares the weights (channels) of all layers, "layer" takes the same share of each. By default
            "global", and "layer" for ``channels``: norms of filters say little across layers of different widths.
        norm: "l1" or "l2", of the filters that ``channels`` compares. Single weights have the same order in both.
        linear: prune the weights of Gemm and MatMul too.
        channels: remove whole output channels of Convs, with all that goes with them.
        multiple: with ``channels``, each Conv keeps a multiple of so many channels (8 or 16 suit ONNX Runtime).
        only: glob patterns; a layer whose name matches none is left alone.
        skip: glob patterns; a layer whose name matches one is left alone.
        dry_run: stop before anything is changed; the report says what would be done.
        verify: "full" runs both models, "auto" does so below 1 GB, or "none".
        inputs: .npz (or .npy) with inputs for the verification; else seeded random ones.
        input_shapes: shapes for inputs whose dimensions are free, by input name.
        seed: of the random inputs.
        max_error: fail where the verification's relative error is larger.
        follow_links: follow links in the location of external data.
        runtime: threads, provider, custom operators.
        progress: told of every weight that is done: (name, done, all).

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: an option cannot be used, or options contradict each other.
        UnsupportedModelError: the graph cannot be read.
        FeedError: the inputs or input shapes do not fit the model.
        VerificationError: the result is further from the source than allowed; its ``report`` says what was measured.
    """
    started = time.perf_counter()
    goal = Goal.parse(sparsity, step, steps, pattern)
    _check(goal, scope, norm, linear=linear, channels=channels, multiple=multiple)
    scope = scope or ("layer" if channels else "global")
    settings = Settings(
        verify,
        Path(inputs) if inputs is not None else None,
        dict(input_shapes or {}),
        seed,
        max_error,
        runtime or RuntimeOptions(),
    )
    wanted, unwanted = as_patterns(only), as_patterns(skip)
    check_settings(settings, get_args(Verify), dry_run=dry_run)
    reads = Reads.of(model=model, inputs=inputs, libraries=settings.runtime.custom_op_libraries)
    source = load(model, follow_links=follow_links)
    check_input_shapes(source, settings.input_shapes)
    sites = find_sites(source, settings.input_shapes, linear_layers=linear)
    common: _Common = {"only": wanted, "skip": unwanted, "dry_run": dry_run, "progress": progress}
    if channels:
        shapes = settings.input_shapes
        done = prune_channels(source, sites, goal, scope, norm, multiple=multiple, input_shapes=shapes, **common)
    else:
        done = prune_weights(source, sites, goal, scope, **common)
    compared, failure = _compare(source, done, settings, dry_run=dry_run)
    sizes, unmeasured = (None, ()) if dry_run else _sizes(source, done.model)
    report = PruneReport(
        source=model_info(source),
        method="channels" if channels else "magnitude" if goal.pattern is None else "pattern",
        options={
            "sparsity": sparsity,
            "step": step,
            "steps": goal.steps if step is not None else None,
            "pattern": pattern,
            "scope": scope,
            "norm": norm,
            "linear": linear,
            "channels": channels,
            "multiple": multiple,
            "only": wanted,
            "skip": unwanted,
        },
        surviving=done.surviving,
        layers=done.layers,
        totals=done.totals,
        sizes=sizes,
        notes=(*sites.notes, *done.notes, *unmeasured),
        verification=compared,
        dry_run=dry_run,
        seconds=time.perf_counter() - started,
    )
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return PruneResult(done.model.ordered_as(source), report, done.new_initializers, reads)


class _Common(TypedDict):
    only: tuple[str, ...]
    skip: tuple[str, ...]
    dry_run: bool
    progress: Progress | None


def _check(goal: Goal, scope: Scope | None, norm: Norm, *, linear: bool, channels: bool, multiple: int) -> None:
    """Refuse options that make no sense, alone or together."""
    for option, value, known in (("--scope", scope, get_args(Scope)), ("--norm", norm, get_args(Norm))):
        if value is not None and value not in known:
            raise OptionError(f"{option} {value!r} is not one of {', '.join(known)}")
    if goal.pattern is not None and scope is not None:
        raise OptionError("--pattern takes the same share of every layer; leave out --scope")
    if channels and goal.pattern is not None:
        raise OptionError("--channels and --pattern contradict each other: use --sparsity or --step with --channels")
    if channels and linear:
        raise OptionError("--channels removes channels of Convs; --linear is for single weights, leave out one of them")
    if multiple < 0:
        raise OptionError(f"--round {multiple} is negative; use 8 or 16, or 0 for none")
    if multiple and not channels:
        raise OptionError("--round is for --channels; add it, or leave out --round")


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
