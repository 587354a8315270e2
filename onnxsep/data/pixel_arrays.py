"""Arrays that hold images: whether their values are those that the model was made for.

Arrays are taken as they are. But values that are pixels in one of the usual forms show it: undone, they are whole
numbers from 0 to 255. So the pixels are known, and a trial can compare the form that was given with the others.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxsep.data.comparing import ImageJudge, Sampled, compare, image_inputs
from onnxsep.data.images import ImageReader
from onnxsep.data.preprocessing import Preprocessing
from onnxsep.data.preprocessing_report import PreprocessingReport
from onnxsep.data.probes import Pixels
from onnxsep.data.samples import Samples
from onnxsep.data.settling import figure, rows
from onnxsep.data.trial import FEWEST
from onnxsep.data.usual import Usual, usual
from onnxsep.errors import DataError
from onnxsep.running.integer_io import as_real

_NEAR = {2: 0.25, 4: 0.05, 8: 0.05}  # of a whole number, by the bytes of a float
_FEWEST_LEVELS = 64  # between the darkest and the brightest pixel


def judge_arrays(
    samples: Samples, labels: npt.NDArray[np.int64] | None, judge: ImageJudge
) -> PreprocessingReport | None:
    """What is wrong with arrays that hold images; None where nothing is seen.

    Args:
        samples: The arrays.
        labels: Classes of the samples.
        judge: The model that they are for.
    """
    entries = image_inputs(judge.model)
    if len(entries) != 1 or not entries[0].is_float or len(samples) < FEWEST or samples.key(0) is None:
        return None
    shape, dtype = _form(samples.read([0])[entries[0].name])
    if len(shape) != 4 or shape[0] != 1 or dtype.itemsize not in _NEAR:
        return None
    sides = [shape[1:3], shape[2:4]]
    reader = next(filter(None, (_reader(judge, size) for size in sides)), None)
    if reader is None:
        return None

    def values(number: int) -> npt.NDArray[np.floating]:
        one: npt.NDArray[np.floating] = samples.read([number])[reader.entry.name][0]
        return one.transpose(1, 2, 0) if reader.layout == "NCHW" else one

    forms = array_forms(shape[1 if reader.layout == "NCHW" else 3])
    few = [values(number) for number in range(FEWEST)]
    number = find_form(np.concatenate([one.reshape(-1, one.shape[2]) for one in few]), forms)
    if number is None:
        return None
    given = forms[number]
    sampled = Sampled(lambda place: as_pixels(values(place), given), len(samples), labels)
    form = Preprocessing(size=reader.size, layout=reader.layout)
    asked = replace(given.preprocessing, size=form.size, layout=form.layout)
    compared = compare(judge, sampled, form, asked, forms)
    outcome = compared.outcome
    if outcome is None or not (outcome.strong and outcome.enough):
        return None
    own = next(one for one in outcome.rows if one.way.usual.preprocessing is asked)
    note = (
        f"warning: the arrays look wrong for this model: they hold pixels as {figure(outcome, own)}, and as"
        f" {figure(outcome, outcome.chosen)} the same samples do better. Arrays are taken as they are: convert them to"
        f" {_formula(outcome.chosen.way.usual.preprocessing)}"
    )
    return PreprocessingReport(
        preprocessing=given.preprocessing.keys(),
        taken_from="given",
        criterion=outcome.criterion.name,
        sure=False,
        tried=rows(outcome),
        notes=(note,),
    )


def _form(array: npt.NDArray[np.generic]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    return array.shape, array.dtype


def _formula(form: Preprocessing) -> str:
    text = "pixel / 255" if form.scale is None else f"pixel * {form.scale:g}"
    mean, std = ([f"{one:g}" for one in values] for values in (form.mean, form.std))
    return f"({text} - [{', '.join(mean)}]) / [{', '.join(std)}]"


def _reader(judge: ImageJudge, size: tuple[int, ...]) -> ImageReader | None:
    proto, entry = as_real(judge.model).proto, image_inputs(judge.model)[0]
    try:
        return ImageReader.for_input(proto, entry, Preprocessing(size=(size[0], size[1])))
    except DataError:
        return None


def array_forms(channels: int) -> list[Usual]:
    """The usual forms, without those that differ in the order of the channels: an array does not tell its order."""
    found: list[Usual] = []
    for one in usual(channels):
        plain = one.preprocessing
        form = Preprocessing(scale=plain.scale, mean=plain.mean, std=plain.std)
        if all(form != other.preprocessing for other in found):
            found.append(Usual(one.name, form))
    return found


def find_form(values: npt.NDArray[np.floating], forms: Sequence[Usual]) -> int | None:
    """The number of the form that values [..., channels] have; None where they have none of them."""
    for number, one in enumerate(forms):
        pixels = _undone(values, one.preprocessing)
        if pixels.min() < -0.5 or pixels.max() > 255.5 or np.ptp(pixels) < _FEWEST_LEVELS:
            continue
        if np.abs(pixels - np.rint(pixels)).max() <= _NEAR[values.dtype.itemsize]:
            return number
    return None


def as_pixels(values: npt.NDArray[np.floating], form: Usual) -> Pixels:
    """The pixels of values in a form, uint8."""
    return np.asarray(np.clip(np.rint(_undone(values, form.preprocessing)), 0, 255), np.uint8)


def _undone(values: npt.NDArray[np.floating], form: Preprocessing) -> npt.NDArray[np.float64]:
    scale = 1 / 255 if form.scale is None else form.scale
    return np.asarray((values.astype(np.float64) * np.array(form.std) + np.array(form.mean)) / scale)
