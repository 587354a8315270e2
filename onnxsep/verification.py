"""Verifying a rewrite: which comparison is run, on what, and what it may show."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnxsep.comparison import Comparison, compare_outputs
from onnxsep.errors import FeedError, OptionError, VerificationError
from onnxsep.execution import unseen_places
from onnxsep.factors import Progress
from onnxsep.feeds import Feeds, make_feeds
from onnxsep.io import Model
from onnxsep.local import compare_pieces
from onnxsep.planning import Plan, Replacement
from onnxsep.report import OutputReport, VerificationReport, part_reports
from onnxsep.runtime import CannotRun, RuntimeOptions
from onnxsep.sites import Sites
from onnxsep.surgery import Edit
from onnxsep.tables import size_bytes
from onnxsep.types import Place

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
    given: Feeds | None = None
    """What ``inputs`` holds, once ``decide`` has read it."""


def check_settings(settings: Settings, kinds: Collection[str], *, dry_run: bool) -> None:
    """Refuse settings that make no sense, before any work is done.

    Args:
        settings: what the user chose.
        kinds: the kinds of verification that there are.
        dry_run: whether nothing is to be verified anyway.

    Raises:
        OptionError: a value is out of range, or two contradict each other.
    """
    kind, limit = settings.verify, settings.max_error
    settings.runtime.check()
    if kind not in kinds:
        raise OptionError(f"verify={kind!r} is not one of {', '.join(kinds)}")
    if settings.seed < 0:
        raise OptionError(f"the seed must be 0 or more, not {settings.seed}")
    if limit is not None and not 0 <= limit < math.inf:
        raise OptionError(f"--max-error {limit} is no error that could be allowed; use a number such as 0.1")
    if limit is not None and (dry_run or kind == "none"):
        why = "--dry-run" if dry_run else "--no-verify"
        raise OptionError(f"--max-error needs a verification, and {why} switches it off; leave out one of the two")


def decide(settings: Settings, source: Model, *, dry_run: bool) -> Settings:
    """Settings with "auto" decided and the given inputs read.

    Raises:
        OptionError: two settings contradict each other.
        FeedError: the given inputs do not fit the model.
    """
    kind = settings.verify
    if kind == "auto":
        kind = "full" if size_bytes(source) < FULL_BELOW else "local"
    if settings.inputs is not None and kind != "full" and not dry_run:
        raise OptionError(f"--inputs are for a full verification, and this one is {kind!r}; add --verify full")
    given = None
    if kind == "full" and settings.inputs is not None:
        given = make_feeds(source, inputs=settings.inputs, input_shapes=settings.input_shapes)
    return replace(settings, verify=kind, given=given)


def verify_result(
    source: Model, result: Model, sites: Sites, plan: Plan, edit: Edit, settings: Settings
) -> tuple[VerificationReport, dict[Place, float], str]:
    """Compare result and source as asked.

    Returns:
        What was measured; the output error of every replaced Conv, from a local verification; and why the
        verification failed, or "".
    """
    kind, limit, replacements = settings.verify, settings.max_error, plan.replacements
    if kind == "none":
        return VerificationReport(kind="none", ran=False, reason="switched off (--no-verify)"), {}, ""
    if not replacements:
        reason = "nothing was replaced: the result is the source"
        return VerificationReport(kind="none", ran=False, reason=reason), {}, ""

    def pieces(rows: Sequence[Replacement]) -> list[tuple[Replacement, Comparison]]:
        options, seed, progress = settings.runtime, settings.seed, settings.progress
        compared = compare_pieces(source, result, sites, rows, edit.made, options, seed=seed, progress=progress)
        return list(zip(rows, compared, strict=True))

    try:
        if kind == "local":
            compared = pieces(replacements)
            errors = {row.site.place: piece.relative for row, piece in compared}
            return (
                _local_report([piece for _, piece in compared]),
                errors,
                _too_large(max(errors.values()), plan, settings),
            )
        feeds = settings.given or make_feeds(source, input_shapes=settings.input_shapes, seed=settings.seed)
        whole = compare_outputs(source, result, feeds, settings.runtime)
        notes, failure = list(whole.notes), _too_large(whole.relative, plan, settings)
        unseen, where = unseen_places(source, [row.site.place for row in replacements], feeds, settings.runtime)
        if unseen:
            alone = pieces([row for row in replacements if row.site.place in unseen])
            errors = {row.site.place: piece.relative for row, piece in alone}
            notes.append(_unseen_note(where, errors))
            report = full_report(whole, notes, [piece for _, piece in alone])
            return report, errors, failure or _too_large(report.relative or 0.0, plan, settings)
        if failure and whole.relative <= _AMPLIFIED and (limit is None or whole.relative <= limit):
            # All ranks are full. Is a replacement wrong, or does the model amplify rounding? Each Conv alone tells.
            worst = max(piece.relative for _, piece in pieces(replacements))
            failure = _too_large(worst, plan, settings)
            notes.append(f"the model amplifies rounding: each replaced Conv alone is exact within {worst:.1g}")
        return full_report(whole, notes), {}, failure
    except CannotRun as error:
        reason = str(error)
    except FeedError as error:
        if settings.input_shapes:
            raise  # what the user gave does not fit; else there are no default inputs, which is nobody's mistake
        reason = str(error)
    except VerificationError as error:
        return _not_verified(kind, str(error)), {}, str(error)
    failure = f"--max-error was asked for and could not be measured: {reason}" if settings.max_error is not None else ""
    return _not_verified(kind, reason), {}, failure


def _not_verified(kind: Verify, reason: str) -> VerificationReport:
    return VerificationReport(kind="local" if kind == "local" else "full", ran=False, reason=reason)


def _unseen_note(where: Sequence[str], errors: Mapping[Place, float]) -> str:
    convs = f"{len(errors)} replaced Convs" if len(errors) > 1 else "1 replaced Conv"
    return (
        f"these inputs show nothing of {convs}{not_run(where)}; each was compared alone, on random input: relative"
        f" error up to {max(errors.values()):.3g}"
    )


def not_run(where: Sequence[str]) -> str:
    """Which nested graphs and functions did not run, in words that go on a sentence; "" where all did."""
    some = "; ".join(where[:3]) + (f"; and {len(where) - 3} more" if len(where) > 3 else "")
    return f" (not run: {some})" if where else ""


def full_report(whole: Comparison, notes: Sequence[str], alone: Sequence[Comparison] = ()) -> VerificationReport:
    """The record of a comparison of all outputs, and of pieces that these say nothing about."""
    return VerificationReport(
        kind="full",
        ran=True,
        max_abs=max(one.max_abs for one in (whole, *alone)),
        mean_abs=max(one.mean_abs for one in (whole, *alone)),
        relative=max(one.relative for one in (whole, *alone)),
        outputs=tuple(
            OutputReport(
                name=one.name,
                max_abs=one.max_abs,
                mean_abs=one.mean_abs,
                relative=one.relative,
                parts=part_reports(one.parts),
            )
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
