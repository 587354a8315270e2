"""How images are to be read for a model: what the user says, what the model's surroundings say, or what a trial finds.

In this order: the user; a file beside the model (``sidecars``); its metadata (``model_metadata``); its first layers
(``first_layers``); a trial of the usual ways (``trial``). What is not from the trial is judged by it: where another way
is clearly better, a warning says so.
"""

from dataclasses import replace
from typing import Literal

from onnxsep.data.comparing import ImageJudge, Sampled, compare, image_inputs
from onnxsep.data.first_layers import read_first_layers
from onnxsep.data.model_metadata import read_metadata
from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.preprocessing_report import PreprocessingReport, TriedPreprocessing, how_to_say
from onnxsep.data.sidecars import Said, own_sidecar, read_sidecars, shown
from onnxsep.data.trial import Outcome, Tried
from onnxsep.data.usual import IMAGENET, name_of

_TakenFrom = Literal["given", "sidecar", "metadata", "model"]
_PLAIN = Preprocessing()


def settle(given: Preprocessing | None, judge: ImageJudge, samples: Sampled) -> PreprocessingReport | None:
    """Decide how images are read.

    Args:
        given: What the user says.
        judge: The model.
        samples: The images, in the size of the input.

    Returns:
        None where nothing was looked for: the input takes integers, whose range says what goes in; or what is given
        does not look wrong.

    Raises:
        DataError: what stands beside the model or in it is broken or contradicts itself; or an image cannot be read.
    """
    asked = given or Preprocessing()
    entries = image_inputs(judge.model)
    if len(entries) != 1 or not entries[0].is_float:
        return None
    if not asked.leaves_values_open:
        return _judged(Said(asked, "what was given"), "given", judge, samples, asked)
    path = judge.model.path
    if path is not None and (said := read_sidecars(path)) is not None:
        return _judged(_formed(said, asked), "sidecar", judge, samples, asked)
    if (said := read_metadata(judge.model.proto)) is not None:
        return _judged(_formed(said, asked), "metadata", judge, samples, asked)
    if (said := read_first_layers(judge.model, entries[0])) is not None:
        return _judged(_formed(said, asked), "model", judge, samples, asked)
    return _tried(judge, samples, asked)


def _formed(said: Said, form: Preprocessing) -> Said:
    """What is said, in the layout and size of the user, and in the user's way of resizing where that is said."""
    found = replace(said.preprocessing, layout=form.layout, size=form.size)
    if (form.resize, form.crop) != (_PLAIN.resize, _PLAIN.crop):
        found = replace(found, resize=form.resize, crop=form.crop)
    return replace(said, preprocessing=found)


def _tried(judge: ImageJudge, samples: Sampled, form: Preprocessing) -> PreprocessingReport:
    """What a trial finds, where nobody says anything."""
    compared = compare(judge, samples, form, None)
    outcome = compared.outcome
    if outcome is None:
        return _plain(judge, form, compared.reason, None)
    if not outcome.strong:
        first, second = (figure(outcome, one) for one in outcome.rows[:2])
        reason = (
            f"of those tried on {outcome.rows[0].samples} samples none looks right; the best two: {first}, {second}"
        )
        return _plain(judge, form, reason, outcome)
    chosen = outcome.chosen
    found = chosen.way.usual.preprocessing
    name = figure(outcome, chosen)
    if outcome.rivals:
        rival = outcome.rivals[0]
        note = (
            f"warning: preprocessing: a trial on {chosen.samples} samples cannot tell {name} from"
            f" {figure(outcome, rival)}; the first is used. Say which is right:"
            f" {how_to_say(found)}, or {how_to_say(rival.way.usual.preprocessing)}"
        )
    else:
        ties = [one.way.usual.name for one in outcome.ties]
        also = f"; {' and '.join(ties)} would do as well" if ties else ""
        others = [one for one in outcome.rows if one is not chosen and one not in outcome.ties]
        next_best = f", the next best is {figure(outcome, others[0], chosen.samples)}" if others else ""
        note = f"preprocessing: {name}, found by a trial on {chosen.samples} samples{next_best}{also}"
        note = f"{note}. {_fix(judge, found)}"
    return PreprocessingReport(
        preprocessing=found.keys(),
        taken_from="trial",
        criterion=outcome.criterion.name,
        sure=outcome.sure,
        tried=rows(outcome),
        notes=(note, *compared.notes),
    )


def _plain(judge: ImageJudge, form: Preprocessing, reason: str, outcome: Outcome | None) -> PreprocessingReport:
    """From 0 to 1, where nothing is found."""
    note = (
        "warning: preprocessing: pixels go in from 0 to 1, and nothing shows that the model was made for that:"
        f" {reason}. Say what is right, for example {how_to_say(Preprocessing(mean=IMAGENET[0], std=IMAGENET[1]))}, or"
        f" {how_to_say(form)} if this is"
    )
    return PreprocessingReport(
        preprocessing=form.keys(),
        taken_from="default",
        criterion=None if outcome is None else outcome.criterion.name,
        sure=False,
        tried=() if outcome is None else rows(outcome),
        notes=(note,),
    )


def _judged(
    said: Said, taken: _TakenFrom, judge: ImageJudge, samples: Sampled, form: Preprocessing
) -> PreprocessingReport | None:
    """What is said somewhere, with a warning where a trial finds another one clearly better."""
    found = said.preprocessing
    compared = compare(judge, samples, form if taken != "given" else found, found)
    outcome = compared.outcome
    wrong = outcome is not None and outcome.strong and outcome.enough
    notes = list(compared.notes)
    if taken != "given":
        name = name_of(found, 3) or shown(found)
        notes[:0] = [f"preprocessing: {name}, from {said.where}", *(f"{said.where}: {note}" for note in said.notes)]
    if outcome is not None and wrong:
        own = next(one for one in outcome.rows if one.way.usual.preprocessing is found)
        better = outcome.chosen
        notes.append(
            f"warning: the preprocessing looks wrong: {said.where} ({shown(found)}) has"
            f" {outcome.criterion.words(own.score)} on {own.samples} samples, and {figure(outcome, better)}. To change"
            f" it: {how_to_say(better.way.usual.preprocessing)}"
        )
    if taken == "given" and not notes:
        return None
    return PreprocessingReport(
        preprocessing=found.keys(),
        taken_from=taken,
        where="" if taken == "given" else said.where,
        criterion=None if outcome is None else outcome.criterion.name,
        sure=not wrong,
        tried=() if outcome is None else rows(outcome),
        notes=tuple(notes),
    )


def figure(outcome: Outcome, one: Tried, samples: int | None = None) -> str:
    """A way and its figure; on how many samples, where these are not so many."""
    on = f" on {one.samples}" if samples not in (None, one.samples) else ""
    return f"{one.way.usual.name} ({outcome.criterion.words(one.score)}{on})"


def _fix(judge: ImageJudge, found: Preprocessing) -> str:
    beside = "" if judge.model.path is None else f", or a file {own_sidecar(judge.model.path).name!r} beside the model"
    return f"To fix it: {how_to_say(found)}{beside}"


def rows(outcome: Outcome) -> tuple[TriedPreprocessing, ...]:
    """What a trial has tried, for the report."""
    return tuple(
        TriedPreprocessing(
            name=one.way.usual.name,
            preprocessing=one.way.usual.preprocessing.keys(),
            score=one.score,
            samples=one.samples,
        )
        for one in outcome.rows
    )
