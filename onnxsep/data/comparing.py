"""Comparing ways of preprocessing for a model on samples: which of them, by which criterion, on how many samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from onnxsep.data.images import ImageReader
from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.probes import Pictures, Pixels, Probe, find_probes
from onnxsep.data.sidecars import shown
from onnxsep.data.trial import AHEAD, FEWEST, MOST, Outcome, Trial, Way, is_large, is_too_large, macs
from onnxsep.data.usual import Usual, name_of, usual, with_form
from onnxsep.errors import FeedError
from onnxsep.model.io import Model
from onnxsep.running.inputs import Input, model_inputs
from onnxsep.running.integer_io import as_real
from onnxsep.running.runtime import CannotRun, RuntimeOptions


@dataclass(frozen=True)
class ImageJudge:
    """The model that says which preprocessing is right, and how it is run.

    Attributes:
        model: As it is run.
        runtime: How.
        output: The output with the class scores, where the user names it.
    """

    model: Model
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: str | None = None


@dataclass(frozen=True)
class Sampled:
    """Samples as a trial sees them.

    Attributes:
        read: Gives the pixels of one, uint8 [H, W, C].
        count: How many there are.
        labels: Their classes, where they have any.
        made_up: They show nothing that a model was trained on.
    """

    read: Callable[[int], Pixels]
    count: int
    labels: npt.NDArray[np.int64] | None = None
    made_up: bool = False


def image_inputs(model: Model) -> tuple[Input, ...]:
    """The inputs of a model as it is seen from outside; none where they cannot be told."""
    try:
        return tuple(model_inputs(as_real(model).proto))
    except FeedError:
        return ()


@dataclass(frozen=True)
class Compared:
    """A trial that was done, or why none was.

    Attributes:
        outcome: What it found; None where none was done.
        reason: Why not.
        notes: What was noticed.
    """

    outcome: Outcome | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def compare(
    judge: ImageJudge,
    samples: Sampled,
    form: Preprocessing,
    asked: Preprocessing | None,
    forms: Sequence[Usual] | None = None,
) -> Compared:
    """Try the usual ways on some samples.

    Args:
        judge: The model; it has one input.
        samples: The samples.
        form: Layout, size and way of resizing.
        asked: A way that is tried too, and judged.
        forms: Other ways than the usual ones.

    Raises:
        DataError: the input takes no images in this form.
    """
    if samples.made_up:
        return Compared(reason="images that are made up cannot")
    if samples.count < FEWEST:
        return Compared(reason=f"a trial takes {FEWEST} samples or more, and there are {samples.count}")
    proto, entry = as_real(judge.model).proto, image_inputs(judge.model)[0]
    main = ImageReader.for_input(proto, entry, form)
    channels = 1 if main.color == "GRAY" else 3
    order = np.random.default_rng(0).permutation(samples.count)[:MOST].tolist()
    pictures = Pictures(samples.read, order, samples.labels)
    if not pictures.load(1):
        return Compared(reason="no sample can be read")
    shape = (1, *main.values(pictures[0]).shape)
    cost = macs(as_real(judge.model), {entry.name: shape})
    if is_too_large(cost):
        return Compared(reason=f"at {cost / 1e9:,.0f} billion MACs for a sample it is too large for a trial")
    usuals = with_form(usual(channels, few=is_large(cost)) if forms is None else forms, form)
    place = None
    if asked is not None:
        name = name_of(asked, channels)
        place = next((number for number, one in enumerate(usuals) if one.name == name), len(usuals))
        usuals[place : place + 1] = [Usual(name or shown(asked), asked)]
    ways = [Way(one, ImageReader.for_input(proto, entry, one.preprocessing)) for one in usuals]
    try:
        return _by_criteria(judge, main, ways, pictures, cost, place)
    except CannotRun as error:
        return Compared(reason=f"the model cannot be run: {error}")


def _by_criteria(
    judge: ImageJudge, main: ImageReader, ways: Sequence[Way], pictures: Pictures, cost: float, asked: int | None
) -> Compared:
    """The first criterion by which the best way looks right; else the first one that the model allows."""
    weak: Outcome | None = None
    probes = find_probes(judge.model, main, pictures, judge.output, judge.runtime)
    for number, probe in enumerate(probes):
        outcome = Trial(probe, ways, pictures, cost, asked)()
        if outcome.strong:
            if outcome.rivals and asked is None:
                outcome = _with_second_opinion(outcome, probes[number + 1 :], pictures, cost)
            return Compared(outcome, notes=_about_labels(weak))
        weak = weak or outcome
    return Compared(weak, reason="" if weak else "its outputs are of no kind that shows it")


def _with_second_opinion(outcome: Outcome, probes: Sequence[Probe], pictures: Pictures, cost: float) -> Outcome:
    """The same without the rivals that are behind by this and by another criterion together (Stouffer's method)."""
    ways = [one.way for one in (outcome.chosen, *outcome.rivals)]
    for probe in probes:
        second = Trial(probe, ways, pictures, cost)()
        if not second.strong or second.chosen.way is not ways[0]:
            continue
        behind = {id(one.way): one.behind for one in second.rows}
        left = [one for one in outcome.rivals if (one.behind + behind[id(one.way)]) / 2**0.5 < AHEAD]
        outcome = replace(outcome, rivals=tuple(left))
        break
    return outcome


def _about_labels(weak: Outcome | None) -> tuple[str, ...]:
    """What is said where the model tells samples apart and the labels agree with nothing."""
    if weak is None or weak.criterion.name != "accuracy":
        return ()
    best = weak.rows[0]
    return (
        f"warning: the labels look wrong: whatever the preprocessing, no more than {best.score:.1%} of {best.samples}"
        " samples are right, although the model tells them apart; are the classes in the order of the model's outputs?",
    )
