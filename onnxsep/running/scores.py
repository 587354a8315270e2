"""Class scores: which output holds them, and what they say about each sample."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.errors import OptionError, spelled
from onnxsep.reporting.records import Paired

Scores = npt.NDArray[np.float64]


def as_scores(value: Any, samples: int) -> Scores | None:
    """An output as class scores, [samples, classes]; None where it has another shape.

    [samples, classes, 1, 1] will do. At least two classes: one score per sample is no choice.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim < 2:
        return None
    if value.shape[0] != samples or value.shape[1] < 2 or any(size != 1 for size in value.shape[2:]):
        return None
    return np.asarray(value.reshape(value.shape[:2]), np.float64)


def find_scores(outputs: Mapping[str, Any], samples: int, name: str | None) -> tuple[str | None, str]:
    """The output that holds the class scores.

    Args:
        outputs: What the model gave for one feed.
        samples: How many samples the feed holds.
        name: The output that the user named; None: the only one that looks like class scores. Floats do, and where
            there are none of these, integers of 8 bits: the scores of a quantised model.

    Returns:
        Its name, and ""; or None and the reason why there is none.

    Raises:
        OptionError: the user named an output that the model does not have or that holds no scores.
    """
    if name is not None:
        if name not in outputs:
            raise OptionError(f"the models have no output {name!r}; they have: {', '.join(map(repr, outputs))}")
        if as_scores(outputs[name], samples) is None:
            raise OptionError(
                f"the output {name!r} holds no class scores: for {samples} samples it is {_kind(outputs[name])}, and"
                f" [{samples}, classes] is expected"
            )
        return name, ""
    found = [key for key, value in outputs.items() if as_scores(value, samples) is not None]
    floats = [key for key in found if outputs[key].dtype.kind == "f"]
    found = floats or [key for key in found if outputs[key].dtype.itemsize == 1]
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, (
            f"several outputs look like class scores: {', '.join(map(repr, found))} ({spelled('output')} names one)"
        )
    shown = ", ".join(f"{key!r} is {_kind(value)}" for key, value in outputs.items())
    return None, f"no output holds class scores: for {samples} samples {shown}, and [{samples}, classes] is expected"


def _kind(value: Any) -> str:
    return f"{value.dtype.name} {list(value.shape)}" if isinstance(value, np.ndarray) else "no tensor"


def ranks(scores: Scores, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Place of the right class among the scores of each sample, 0 for the highest.

    Of equal scores the class with the lower number comes first, as in argmax. Where a score is NaN there is no order,
    and the right class comes last: behind all others.

    Args:
        scores: [samples, classes].
        labels: [samples], in range.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    places = np.count_nonzero((scores > own) | ((scores == own) & before), axis=1)
    places[np.isnan(scores).any(axis=1)] = scores.shape[1]
    return np.asarray(places, np.int64)


def choices(scores: Scores) -> npt.NDArray[np.int64]:
    """The class with the highest score of each sample; -1 where a score is NaN."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1)).astype(np.int64)


def paired(outcomes: npt.NDArray[np.bool_], first: npt.NDArray[np.bool_]) -> Paired:
    """The difference of two shares from their outcomes on the same samples, [samples].

    Each sample contributes d = 1 (won), -1 (lost) or 0; the standard error is that of the mean of d.
    """
    won, lost = int(np.count_nonzero(outcomes & ~first)), int(np.count_nonzero(first & ~outcomes))
    total = len(outcomes)
    difference = (won - lost) / total
    variance = (won + lost) / total - difference**2
    return Paired(difference=difference, standard_error=math.sqrt(variance / total), won=won, lost=lost)
