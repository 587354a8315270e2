"""The rewrite itself: load -> match -> plan -> factorize -> apply -> ensure -> verify."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import onnx

from onnxsep.ensure import ensure_valid
from onnxsep.errors import FeedError, OptionError, VerificationError
from onnxsep.factors import Factorized, Progress, factorize_all
from onnxsep.feeds import check_input_shapes, make_feeds
from onnxsep.io import Model, load
from onnxsep.local import compare_pieces
from onnxsep.modes import Mode, get_mode
from onnxsep.planning import SIZES_UNKNOWN, Options, Plan, make_plan
from onnxsep.report import OutputReport, RewriteReport, VerificationReport
from onnxsep.runtime import CannotRun, RuntimeOptions
from onnxsep.saving import SavedFiles, save
from onnxsep.shapes import infer_shapes, skeleton
from onnxsep.sites import Sites, find_sites, read_weight
from onnxsep.surgery import Edit, replace_convs
from onnxsep.tables import conv_reports, model_info, planned, size_bytes, totals
from onnxsep.types import Place, RankPolicy
from onnxsep.verify import Comparison, compare_outputs

Verify = Literal["auto", "full", "local", "none"]
FULL_BELOW = 10**9  # bytes; a full verification holds the model several times
# A model may amplify rounding (sigmoids that saturate); above this relative error that is no excuse any more.
_AMPLIFIED = 0.1
# At full rank everywhere, what rounding in the stored type may add up to over a whole network.
_EXACT_TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


@dataclass(frozen=True)
class Settings:
    """What does not concern the choice of Convs: inputs, runtime, verification."""

    verify: Verify = "auto"
    inputs: Path | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    max_error: float | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    progress: Progress | None = None


@dataclass(frozen=True)
class Result:
    """A rewritten model and the report of what was done.

    ``model`` is the source's own object where nothing was replaced, or in a dry run. ``new_initializers`` are the names
    of the factors in the main graph; ``save`` puts them into the data file where the source has one.
    """

    model: Model
    report: RewriteReport
    new_initializers: tuple[str, ...] = ()

    @property
    def proto(self) -> onnx.ModelProto:
        """The rewritten model; weights in external files are not in it."""
        return self.model.proto

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write the model, atomically; its external weights are streamed into one new data file beside it."""
        return save(self.model, path, externalize=self.new_initializers)


def rewrite(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    mode: str | Mode,
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
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Replace every Conv for which it pays by the form that ``mode`` names. Writes nothing: ``Result.save`` does.

    Args:
        model: a file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        mode: the name of an installed mode, or a Mode.
        rank: "paper", "full", an integer, a share of the parameters such as 0.5, or "energy=0.95".
        force: replace Convs even where it does not pay.
        include_first: replace first Convs too (those reached from a graph input without passing another Conv).
        recurse: replace Convs that onnxsep itself made.
        only: glob patterns; a Conv whose name matches none is left alone.
        skip: glob patterns; a Conv whose name matches one is left alone.
        round_ranks: make channel counts multiples of this (8 or 16 suit ONNX Runtime).
        dry_run: stop before anything is changed; the report says what would be done.
        verify: "full" runs both models, "local" each replaced Conv alone, "auto" chooses full below 1 GB, or "none".
        inputs: .npz (or .npy) with inputs for a full verification; else seeded random ones.
        input_shapes: shapes for inputs whose dimensions are free, by input name.
        seed: of the random inputs.
        max_error: fail where the verification's relative error is larger.
        follow_links: follow links in the location of external data.
        runtime: threads, provider, custom operators.
        progress: told of every Conv that is done: (name, done, all).

    Raises:
        ModelLoadError: the model cannot be read.
        OptionError: a rank, pattern or other option cannot be used.
        ModeNotFoundError: no such mode.
        UnsupportedModelError: the graph cannot be read.
        FeedError: the inputs or input shapes do not fit the model.
        VerificationError: the result does not compute what it should; its ``report`` says what was done and measured.
    """
    started = time.perf_counter()
    chosen = get_mode(mode)
    if verify not in get_args(Verify):
        raise OptionError(f"verify={verify!r} is not one of {', '.join(get_args(Verify))}")
    if max_error is not None and not 0 <= max_error < math.inf:
        raise OptionError(f"--max-error {max_error} is no error that could be allowed; use a number such as 0.1")
    if round_ranks < 0:
        raise OptionError(f"--round-ranks {round_ranks} is negative; use 8 or 16, or 0 for none")
    options = Options(
        RankPolicy.parse(rank), force, include_first, recurse, _patterns(only), _patterns(skip), round_ranks=round_ranks
    )
    settings = Settings(
        "none" if dry_run else verify,
        Path(inputs) if inputs is not None else None,
        dict(input_shapes or {}),
        seed,
        max_error,
        runtime or RuntimeOptions(),
        progress,
    )
    source = load(model, follow_links=follow_links)
    check_input_shapes(source, settings.input_shapes)
    settings = _with_verification(settings, source, dry_run=dry_run)
    sites = find_sites(source, settings.input_shapes)
    plan = make_plan(sites.found, chosen, options, lambda site: read_weight(source, sites, site))
    factors = factorize_all(
        source, sites, plan, workers=settings.runtime.threads, force=force, progress=settings.progress
    )
    edit, result = Edit(), source
    notes: tuple[str, ...] = ()
    errors: dict[Place, float] = {}
    failure = ""
    if dry_run:
        light = planned(sites, plan)
        outcome = VerificationReport(kind="none", ran=False, reason="dry run: nothing was changed")
    else:
        light = sites.light
        if plan.replacements:
            result, edit, light, notes = _apply(source, plan, factors, settings)
        outcome, errors, failure = _verify(source, result, sites, plan, edit, settings)
    report = RewriteReport(
        source=model_info(source),
        mode=chosen.name,
        rank=str(options.rank),
        options={
            "force": force,
            "include_first": include_first,
            "recurse": recurse,
            "only": options.only,
            "skip": options.skip,
            "round_ranks": round_ranks,
        },
        convs=conv_reports(plan, factors, errors),
        totals=totals(sites, plan, light),
        removed_weights=tuple(edit.removed_weights),
        removed_inputs=tuple(edit.removed_inputs),
        notes=(*sites.notes, *_size_notes(plan), *notes),
        verification=outcome,
        dry_run=dry_run,
        seconds=time.perf_counter() - started,
    )
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return Result(result, report, tuple(edit.new_initializers))


def _size_notes(plan: Plan) -> list[str]:
    unknown = sum(SIZES_UNKNOWN in row.notes for row in plan.replacements)
    if not unknown:
        return []
    return [
        f"the input sizes of {unknown} replaced Convs are not in the model: their MACs were compared for large even "
        "sizes (--input-shape NAME:DIMS gives sizes)"
    ]


def _patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _with_verification(settings: Settings, source: Model, *, dry_run: bool) -> Settings:
    """Settings with "auto" decided; what contradicts itself is refused before any work is done."""
    kind = settings.verify
    if kind == "auto":
        kind = "full" if size_bytes(source) < FULL_BELOW else "local"
    if settings.max_error is not None and kind == "none":
        why = "--dry-run" if dry_run else "--no-verify"
        raise OptionError(f"--max-error needs a verification, and {why} switches it off; leave out one of the two")
    if settings.inputs is not None and kind != "full":
        raise OptionError(f"--inputs are for a full verification, and this one is {kind!r}; add --verify full")
    if kind == "full" and settings.inputs is not None:
        make_feeds(source, inputs=settings.inputs, input_shapes=settings.input_shapes)  # raises if they do not fit
    return replace(settings, verify=kind)


def _apply(
    source: Model, plan: Plan, factors: Mapping[Place, Factorized], settings: Settings
) -> tuple[Model, Edit, onnx.ModelProto, tuple[str, ...]]:
    """The result as a changed copy of the source, its skeleton with shapes, and notes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    replacements = plan.replacements
    edit = replace_convs(proto, replacements, {place: factorized.arrays for place, factorized in factors.items()})
    result = Model(proto, path=source.path, base_dir=source.base_dir, follow_links=source.follow_links)
    light = skeleton(result)
    note = ensure_valid(skeleton(source), light)
    notes = [note] if note else []
    if edit.removed_inputs:
        notes.append(
            f"{len(edit.removed_inputs)} graph inputs stood for replaced weights and went with them: "
            f"{', '.join(edit.removed_inputs[:3])}{', ...' if len(edit.removed_inputs) > 3 else ''}"
        )
    return result, edit, infer_shapes(light, settings.input_shapes), tuple(notes)


def _verify(
    source: Model, result: Model, sites: Sites, plan: Plan, edit: Edit, settings: Settings
) -> tuple[VerificationReport, dict[Place, float], str]:
    """Compare result and source as asked.

    Returns:
        What was measured; the output error of every replaced Conv, from a local verification; and why the
        verification failed, or "".
    """
    kind, replacements = settings.verify, plan.replacements
    if kind == "none":
        return VerificationReport(kind="none", ran=False, reason="switched off (--no-verify)"), {}, ""
    if not replacements:
        reason = "nothing was replaced: the result is the source"
        return VerificationReport(kind="none", ran=False, reason=reason), {}, ""

    def pieces() -> list[Comparison]:
        options, seed, progress = settings.runtime, settings.seed, settings.progress
        return compare_pieces(source, result, sites, replacements, edit.made, options, seed=seed, progress=progress)

    try:
        if kind == "local":
            compared = pieces()
            errors = {row.site.place: piece.relative for row, piece in zip(replacements, compared, strict=True)}
            return _local_report(compared), errors, _too_large(max(errors.values()), plan, settings)
        feeds = make_feeds(source, inputs=settings.inputs, input_shapes=settings.input_shapes, seed=settings.seed)
        whole = compare_outputs(source, result, feeds, settings.runtime)
        notes, failure = list(whole.notes), _too_large(whole.relative, plan, settings)
        if failure and whole.relative <= min(_AMPLIFIED, settings.max_error or _AMPLIFIED):
            # All ranks are full. Is a replacement wrong, or does the model amplify rounding? Each Conv alone tells.
            alone = max(piece.relative for piece in pieces())
            failure = _too_large(alone, plan, settings)
            notes.append(f"the model amplifies rounding: each replaced Conv alone is exact within {alone:.1g}")
        return _full_report(whole, notes), {}, failure
    except CannotRun as error:
        reason = str(error)
    except FeedError as error:
        if settings.inputs is not None or settings.input_shapes:
            raise  # what the user gave does not fit; else there are no default inputs, which is nobody's mistake
        reason = str(error)
    except VerificationError as error:
        return _not_verified(kind, str(error)), {}, str(error)
    failure = f"--max-error was asked for and could not be measured: {reason}" if settings.max_error is not None else ""
    return _not_verified(kind, reason), {}, failure


def _not_verified(kind: Verify, reason: str) -> VerificationReport:
    return VerificationReport(kind="local" if kind == "local" else "full", ran=False, reason=reason)


def _full_report(whole: Comparison, notes: Sequence[str]) -> VerificationReport:
    return VerificationReport(
        kind="full",
        ran=True,
        max_abs=whole.max_abs,
        mean_abs=whole.mean_abs,
        relative=whole.relative,
        outputs=tuple(
            OutputReport(name=one.name, max_abs=one.max_abs, mean_abs=one.mean_abs, relative=one.relative)
            for one in whole.outputs
        ),
        notes=tuple(notes),
    )


def _local_report(pieces: Sequence[Comparison]) -> VerificationReport:
    return VerificationReport(
        kind="local",
        ran=True,
        max_abs=max(piece.max_abs for piece in pieces),
        mean_abs=max(piece.mean_abs for piece in pieces),
        relative=max(piece.relative for piece in pieces),
        notes=tuple(dict.fromkeys(note for piece in pieces for note in piece.notes)),
    )


def _too_large(relative: float, plan: Plan, settings: Settings) -> str:
    """Why a measured relative error is larger than the user, or the ranks, allow; "" where it is not."""
    if settings.max_error is not None and relative > settings.max_error:
        return f"the relative error {relative:.3g} is above --max-error {settings.max_error:g}"
    allowed = max(_EXACT_TOLERANCE[row.site.dtype] for row in plan.replacements)
    if all(row.exact for row in plan.replacements) and relative > allowed:
        return (
            f"all ranks are full, yet the outputs differ by {relative:.3g} (relative; allowed {allowed:g}). This is a "
            "bug of the mode or of onnxsep; --no-verify writes the result all the same"
        )
    return ""
