"""From options, models and data to what a run of fine-tuning needs: checks, and defaults that depend on them."""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onnxsep.data import Dataset, check_labels
from onnxsep.errors import OptionError
from onnxsep.evaluation.scores import find_scores
from onnxsep.inputs import model_inputs
from onnxsep.io import Model, read_tensor
from onnxsep.pruning.mark import counts_as_pruned
from onnxsep.training import TorchGraph
from onnxsep.training.augment import Augment, image_layout
from onnxsep.training.batches import Batch, Batches
from onnxsep.training.figures import BatchNorm, Optimizer
from onnxsep.training.losses import TeacherTerm
from onnxsep.training.samples import Feeds
from onnxsep.training.schedule import Schedule
from onnxsep.training.trainer import Augmenter

Augmentation = Literal["auto", "none", "crop", "flip", "crop,flip"]
CHOICES: dict[str, tuple[str, ...]] = {
    "loss": get_args(TeacherTerm),
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "batch_norm": get_args(BatchNorm),
    "augment": get_args(Augmentation),
}
_LABEL_WEIGHT = 0.1  # of the cross-entropy beside a teacher
_SMALLEST_BATCH = 8  # below, the statistics of a batch say little
_MOST_REFERENCE = 256  # samples on which the teacher's outputs say what is what


def default_rate(optimizer: str) -> float:
    """The largest learning rate where none is given."""
    return 1e-3 if optimizer == "adam" else 0.05


def check_choices(**given: str) -> None:
    """Refuse words that are none of an option's.

    Raises:
        OptionError: names the option.
    """
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise OptionError(f"{_option(name)} {value!r} is not one of {', '.join(CHOICES[name])}")


def check_numbers(**given: float | None) -> None:
    """Refuse numbers out of range.

    Raises:
        OptionError: names the option and its range.
    """
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {
        "label_weight": (lambda x: 0 <= x <= 1, "from 0 to 1"),
        "temperature": (lambda x: 0 < x < math.inf, "above 0"),
        "epochs": (lambda x: x >= 1, "1 or more"),
        "batch": (lambda x: x >= 1, "1 or more"),
        "rate": (lambda x: 0 < x < math.inf, "above 0"),
        "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
        "validation": (lambda x: 0 <= x < 1, "0 or more and below 1"),
        "patience": (lambda x: x >= 0, "0 or more"),
    }
    for name, value in given.items():
        fits, words = ranges[name]
        if value is not None and not fits(value):
            raise OptionError(f"{_option(name)} must be {words}, not {value}")
    if given["patience"] and not given["validation"]:
        raise OptionError("--patience needs samples that are held out; leave out --validation 0")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def label_weight(given: float | None, teacher: Model | None, data: Dataset) -> float:
    """The share of the cross-entropy in the loss.

    Raises:
        OptionError: There is no teacher for the rest of the loss.
    """
    if teacher is None:
        if given is not None and given != 1:
            raise OptionError(f"--label-weight {given} leaves a share of the loss to a teacher; add --teacher")
        return 1.0
    if given is None:
        return 0.0 if data.labels is None else _LABEL_WEIGHT
    return given


def fit_batch(data: Dataset, teacher: Model | None) -> None:
    """Where the teacher takes only one size of batch, so does the run.

    Raises:
        OptionError: The model takes another one.
    """
    for entry in [] if teacher is None else model_inputs(teacher.proto):
        size = entry.dims[0] if entry.dims else None
        if isinstance(size, int):
            if data.batch not in (None, size):
                raise OptionError(f"the model takes {data.batch} samples at a time and the teacher {size}")
            data.batch = size


def scores(
    ours: Mapping[str, NDArray[Any]],
    count: int,
    name: str | None,
    data: Dataset,
    chosen: Sequence[int],
    *,
    needed: bool,
) -> str | None:
    """The output that holds class scores, and whether the labels are its classes.

    Args:
        ours: Outputs of the model.
        count: For so many samples.
        name: The one that the user named.
        data: The data.
        chosen: The samples that are used.
        needed: The loss needs scores.

    Returns:
        Its name; None where there is none and none is needed.

    Raises:
        OptionError: There is none and one is needed, or the named one is none.
        DataError: A label is no class of the model.
    """
    found, why = find_scores(ours, count, name)
    if found is None:
        if needed:
            raise OptionError(
                f"the loss needs class scores, and {why};"
                " --teacher with --loss outputs and no --label-weight needs none"
            )
        return None
    if data.labels is not None:
        names = None if data.names is None else [data.names[index] for index in chosen]
        check_labels(data.labels[list(chosen)], ours[found].shape[1], names)
    return found


def reference(batches: Batches) -> list[Batch]:
    """Samples on which the teacher's outputs say what is what: held-out ones, else some that are trained on."""
    found: list[Batch] = []
    for batch in batches.validation():
        found.append(batch)
        if sum(item.size for item in found) >= _MOST_REFERENCE:
            break
    return found or [batches.first()]


def batch_norm(graph: TorchGraph, data: Dataset, given: BatchNorm | None) -> tuple[BatchNorm, tuple[str, ...]]:
    """Whether statistics are trained, and what the user should know about it."""
    if given is not None:
        return given, ()
    if not graph.buffers:
        return "train", ()
    if data.batch is not None and data.batch < _SMALLEST_BATCH:
        note = (
            f"the models take {data.batch} samples at a time, too few for statistics: those of BatchNormalization stay"
            " as they are (--batch-norm train trains them)"
        )
        return "frozen", (note,)
    return "train", ()


def augmenter(given: Augmentation, feeds: Feeds, *, has_teacher: bool) -> tuple[Augmenter | None, str]:
    """What makes crops and flips, and which ones they are.

    Raises:
        OptionError: They were asked for and the input is no image that can be moved.
    """
    layout = image_layout(feeds)
    if given == "none" or (layout is None and given == "auto"):
        return None, "none"
    if layout is None:
        raise OptionError(
            f"--augment {given} needs one image as the only input, with 1, 3 or 4 channels and 16 or more pixels along"
            " each side; use --augment none"
        )
    chosen = ("crop,flip" if has_teacher else "crop") if given == "auto" else given
    return functools.partial(_make, layout, crop="crop" in chosen, flip="flip" in chosen), chosen


def _make(layout: tuple[str, tuple[int, int]], random: np.random.Generator, *, crop: bool, flip: bool) -> Augment:
    return Augment(*layout, random, crop=crop, flip=flip)


def is_pruned(model: Model, graph: TorchGraph) -> bool:
    """Whether zeros in the weights are to stay because they were pruned."""
    weights = [array for name, array in graph.arrays(graph.parameters).items() if array.ndim > 1]
    zeros = sum(array.size - int(np.count_nonzero(array)) for array in weights)
    return counts_as_pruned(model.proto, zeros, sum(array.size for array in weights))


def accuracy_of(
    data: Dataset, output: str | None, wanted: Sequence[Mapping[str, Any]]
) -> Literal["labels", "teacher", "nothing"]:
    """What accuracy counts."""
    if output is None:
        return "nothing"
    if data.labels is not None:
        return "labels"
    return "teacher" if wanted and output in wanted[0] else "nothing"


def identity(
    model: Model, teacher: Model | None, data: Dataset, chosen: Sequence[int], used: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run is made of, for its checkpoint; anything else and it is another run."""
    return {
        "the model": _hash(model),
        "the teacher": None if teacher is None else _hash(teacher),
        "the data or its labels": data.fingerprint(chosen),
        **used,
    }


def _hash(model: Model) -> str:
    hasher = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
    for tensor in model.proto.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            hasher.update(read_tensor(model, tensor).tobytes())
    return hasher.hexdigest()
