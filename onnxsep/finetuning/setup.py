"""From options, models and data to what a run of fine-tuning needs: checks, and defaults that depend on them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxsep.data import Dataset, check_labels
from onnxsep.engine.sparsity import counts_as_pruned
from onnxsep.errors import DataError, OptionError, UnsupportedModelError, spelled
from onnxsep.finetuning.options import FinetuneOptions
from onnxsep.model.io import Model, read_tensor
from onnxsep.running.inputs import model_inputs
from onnxsep.running.scores import find_scores
from onnxsep.training import TorchGraph
from onnxsep.training.batches import Batches
from onnxsep.training.choices import BatchNorm, Precision
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss
from onnxsep.training.norms import Norms, norm_places

AccuracyOf = Literal["labels", "teacher", "nothing"]
_LABEL_WEIGHT = 0.1  # of the cross-entropy beside a teacher
_SMALLEST_BATCH = 8  # below, the statistics of a batch say little
_MANY_CONVS = 8  # networks of fewer train well without norms
_MOST_CALIBRATED = 512  # samples that give inserted norms their first statistics


def check_labels_there(options: FinetuneOptions, teacher: Model | None, data: Dataset) -> None:
    """Labels are needed without a teacher, or where they are to have a share of the loss.

    Raises:
        DataError: There are none.
    """
    if data.labels is not None or (teacher is not None and not options.label_weight):
        return
    without = (
        f"leave out {spelled('label_weight')}"
        if teacher is not None
        else f"learn a model's outputs ({spelled('teacher')}), without labels"
    )
    raise DataError(
        f"{data.source} has no labels, which are needed here: put the images into one folder for each class, or"
        " integers into the array 'y' of an .npz file, or give a CSV file of names and classes"
        f" ({spelled('labels')}); or"
        f" {without}"
    )


def label_weight(given: float | None, teacher: Model | None, data: Dataset) -> float:
    """The share of the cross-entropy in the loss.

    Raises:
        OptionError: There is no teacher for the rest of the loss.
    """
    if teacher is None:
        if given is not None and given != 1:
            raise OptionError(
                f"{spelled('label_weight', given)} leaves a share of the loss to a teacher; add {spelled('teacher')}"
            )
        return 1.0
    if given is None:
        return 0.0 if data.labels is None else _LABEL_WEIGHT
    return given


def fit_batch(data: Dataset, teacher: Model | None) -> None:
    """Where the teacher takes only one size of batch, so does the run.

    Raises:
        DataError: The samples cannot be put together.
        OptionError: The model takes another one.
    """
    for entry in [] if teacher is None else model_inputs(teacher.proto):
        size = entry.dims[0] if entry.dims else None
        if isinstance(size, int):
            data.fix_batch(size)


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
                f" {spelled('teacher')} with {spelled('loss', 'outputs')} and no {spelled('label_weight')} needs none"
            )
        return None
    if data.labels is not None:
        names = None if data.names is None else [data.names[index] for index in chosen]
        check_labels(data.labels[list(chosen)], ours[found].shape[1], names)
    return found


def batch_norm(
    graph: TorchGraph, batches: Batches, options: FinetuneOptions, processes: int, *, has_scores: bool
) -> tuple[BatchNorm, Norms | None, tuple[str, ...]]:
    """Whether statistics are trained, the norms that are put in, and what the user should know about it.

    Args:
        graph: The model; norms are put into it.
        batches: The data.
        options: What was asked for.
        processes: How many share a batch.
        has_scores: The model is a classifier.

    Raises:
        OptionError: Norms are to be put in and there are too few samples for their statistics.
    """
    size, given = batches.feed_size // processes, options.batch_norm
    if given == "insert" and size < _SMALLEST_BATCH:
        each = " in each process" if processes > 1 else ""
        raise OptionError(
            f"{spelled('batch_norm', 'insert')} needs {_SMALLEST_BATCH} or more samples at once for its"
            f" statistics, not {size}{each}"
        )
    if given is None and graph.buffers and batches.feed_size < _SMALLEST_BATCH and batches.is_fixed:
        note = (
            f"the models take {size} samples at a time, too few for statistics: those of BatchNormalization stay"
            f" as they are ({spelled('batch_norm', 'train')} trains them)"
        )
        return "frozen", None, (note,)
    norms = None
    notes: tuple[str, ...] = ()
    asked = given == "insert"
    helps = has_scores and not graph.buffers and norm_places(graph) >= _MANY_CONVS and size >= _SMALLEST_BATCH
    if asked or (given is None and helps):
        norms = Norms(graph, map(graph.tensors, batches.some(_MOST_CALIBRATED)))
        given, notes = "insert", (_about(norms),)
    if processes > 1 and given != "frozen" and (graph.buffers or norms):
        notes += (
            f"BatchNormalization saw the {size} samples of a process at a time, not the whole batch: the result is not"
            f" exactly that of one process ({spelled('batch_norm', 'frozen')} makes it so)",
        )
    return given or "train", norms if norms else None, notes


def _about(norms: Norms) -> str:
    words = f"BatchNormalization stood behind {len(norms)} Convs in training; it is folded into them"
    left = norms.without_bias
    if left:
        words += f"; {len(left)} more have no bias that it could be folded into: {', '.join(left[:3])}"
        words += ", ..." if len(left) > 3 else ""
    return words


def check_precision(learner: Learner, batches: Batches, precision: Precision) -> None:
    """Find out now that torch can compute the model in a reduced precision.

    Raises:
        UnsupportedModelError: It cannot.
    """
    if precision == "float32":
        return
    try:
        learner.rehearse(batches.first().feeds)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error}; {spelled('precision', 'float32')} may do") from error


def is_pruned(model: Model, graph: TorchGraph) -> bool:
    """Whether zeros in the weights are to stay because they were pruned."""
    weights = [array for name, array in graph.arrays(graph.parameters).items() if array.ndim > 1]
    zeros = sum(array.size - int(np.count_nonzero(array)) for array in weights)
    return counts_as_pruned(model.proto, zeros, sum(array.size for array in weights))


def accuracy_of(data: Dataset, output: str | None, loss: Loss) -> AccuracyOf:
    """What accuracy counts."""
    if output is None:
        return "nothing"
    if data.labels is not None:
        return "labels"
    return "teacher" if loss.knows_choice else "nothing"


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
