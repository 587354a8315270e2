"""Verifying a rewrite: which comparison is run, on what, and what it may show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxsep.engine.pieces import compare_pieces
from onnxsep.engine.planning import Plan
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import Edit
from onnxsep.errors import FeedError, OptionError, VerificationError, spelled
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.reporting.model_info import size_bytes
from onnxsep.reporting.records import MeasuredOn, VerificationReport
from onnxsep.running.comparison import Comparison, compare_outputs
from onnxsep.running.execution import unseen_places
from onnxsep.running.feeds import make_feeds
from onnxsep.running.options import Verify
from onnxsep.running.runtime import CannotRun
from onnxsep.running.verification import FULL_BELOW, Settings, full_report, too_far

# A model may amplify rounding (sigmoids that saturate); above this relative error that is no excuse any more.
_AMPLIFIED = 0.1


# At full rank everywhere, what rounding in the stored type may add up to over a whole network.
_EXACT_TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}


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
        raise OptionError(
            f"{spelled('inputs')} are for a full verification, and this one is {kind!r}; add"
            f" {spelled('verify', 'full')}"
        )
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
        return VerificationReport(kind="none", ran=False, reason=f"switched off ({spelled('verify', 'none')})"), {}, ""
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
            report = full_report(whole, notes, feeds.measured_on, [piece for _, piece in alone])
            return report, errors, failure or _too_large(report.relative or 0.0, plan, settings)
        if failure and whole.relative <= _AMPLIFIED and (limit is None or whole.relative <= limit):
            # All ranks are full. Is a replacement wrong, or does the model amplify rounding? Each Conv alone tells.
            worst = max(piece.relative for _, piece in pieces(replacements))
            failure = _too_large(worst, plan, settings)
            notes.append(f"the model amplifies rounding: each replaced Conv alone is exact within {worst:.1g}")
        return full_report(whole, notes, feeds.measured_on), {}, failure
    except CannotRun as error:
        reason = str(error)
    except FeedError as error:
        if settings.input_shapes:
            raise  # what the user gave does not fit; else there are no default inputs, which is nobody's mistake
        reason = str(error)
    except VerificationError as error:
        return _not_verified(kind, str(error)), {}, str(error)
    failure = (
        (f"{spelled('max_error')} was asked for and could not be measured: {reason}")
        if settings.max_error is not None
        else ""
    )
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


def _local_report(pieces: Sequence[Comparison]) -> VerificationReport:
    return VerificationReport(
        kind="local",
        ran=True,
        max_abs=max(piece.max_abs for piece in pieces),
        mean_abs=max(piece.mean_abs for piece in pieces),
        relative=max(piece.relative for piece in pieces),
        measured_on=MeasuredOn(kind="random"),
        notes=tuple(dict.fromkeys(note for piece in pieces for note in piece.notes)),
    )


def _too_large(relative: float, plan: Plan, settings: Settings) -> str:
    """Why a measured relative error is larger than the user, or the ranks, allow; "" where it is not."""
    if settings.max_error is not None and relative > settings.max_error:
        return too_far(relative, settings.max_error)
    allowed = max(_EXACT_TOLERANCE[row.site.dtype] for row in plan.replacements)
    if all(row.exact for row in plan.replacements) and relative > allowed:
        return (
            f"all ranks are full, yet the outputs differ by {relative:.3g} (relative; allowed {allowed:g}). This is a "
            f"bug of the mode or of onnxsep; {spelled('verify', 'none')} writes the result all the same"
        )
    return ""
