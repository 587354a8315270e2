"""Opening what the user names as ``--data``.

A source is a folder of images, an .npy or .npz file, or, from Python, arrays or an iterable of feeds.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxsep.data.dataset import Dataset
from onnxsep.data.images import ImageReader, find_images
from onnxsep.data.labels import AnyLabels, as_labels, read_labels
from onnxsep.data.preprocessing import AnyPreprocessing, Preprocessing
from onnxsep.data.samples import FeedSamples, Given, ImageSamples, from_arrays
from onnxsep.errors import DataError, FeedError, spelled
from onnxsep.model.io import Model
from onnxsep.running.inputs import Input, model_inputs, read_arrays

Feed = Mapping[str, Any]  # arrays by input name


Source = str | os.PathLike[str] | Feed | np.ndarray | Iterable[Feed | np.ndarray]


def open_data(
    source: Source,
    model: Model,
    *,
    preprocessing: AnyPreprocessing | None = None,
    labels: AnyLabels | None = None,
    need_labels: bool = False,
) -> Dataset:
    """Open data for a model and check what can be checked without decoding images.

    Args:
        source: A folder of images, flat or with one folder for each class; an .npz file with arrays named after the
            model's inputs, or ``x`` for the only one, and labels as ``y``; an .npy file for the only input. In Python
            also such arrays by name (or the one array), or an iterable of feeds. A feed has arrays with the model's
            own shapes; b samples, if the first dimension of all inputs is free and that of all arrays is b; otherwise
            it is one sample. An iterator is read once and kept. Arrays are taken as they are: floats finite, and
            nothing is cast.
        model: The model that will be fed.
        preprocessing: How images become values; not for arrays.
        labels: A CSV file of names and classes (:func:`onnxsep.data.labels.read_labels`), or the classes of the samples
            as integers; instead of those that the source has.
        need_labels: Refuse data without labels.

    Raises:
        DataError: the data cannot be read or does not fit the model, or labels do not fit the data.
    """
    try:
        entries = tuple(model_inputs(model.proto))
    except FeedError as error:
        raise DataError(f"no data can be given for this model: {error}") from error
    if not entries:
        raise DataError("no data can be given for this model: it has no inputs")
    data = _open(source, model, entries, Preprocessing.of(preprocessing))
    if labels is not None:
        _set_labels(data, labels)
    if need_labels and data.labels is None:
        raise DataError(
            f"{data.source} has no labels, which are needed here: put the images into one folder for each class, or"
            " integers into the array 'y' of an .npz file, or give a CSV file of names and classes"
            f" ({spelled('labels')})"
        )
    if data.batch is not None and data.batch > 1:
        next(data.batches())  # refuses too few samples
        if left := len(data) % data.batch:
            data.notes += (
                f"the model takes {data.batch} samples at a time: the last {left} of {len(data)} are left where a batch"
                " cannot be filled up",
            )
    return data


def _open(source: Source, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None) -> Dataset:
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise DataError(f"the data {str(path)!r} does not exist; check the path")
        if path.is_dir():
            return _open_images(path, model, entries, preprocessing or Preprocessing())
        if path.suffix.lower() not in (".npy", ".npz"):
            raise DataError(
                f"the data {str(path)!r} is neither a folder of images nor an .npy or .npz file; to use single images,"
                " put them into a folder"
            )
    if preprocessing is not None and preprocessing != Preprocessing():
        raise DataError(
            "scale, mean, std and the other settings of preprocessing are for images; arrays are taken as they are:"
            " leave the settings out, and give arrays that hold what the model takes"
        )
    if isinstance(source, str | os.PathLike):
        try:
            arrays: Mapping[str, Any] = read_arrays(path, memory_map=path.suffix.lower() == ".npy")
        except FeedError as error:
            raise DataError(str(error)) from error
        return _dataset(from_arrays(arrays, entries, repr(str(path))), repr(str(path)))
    if isinstance(source, np.ndarray):
        source = {"x": source}
    if isinstance(source, Mapping):
        return _dataset(from_arrays(source, entries, "the data"), "the data")
    if not isinstance(source, Iterable):
        raise DataError(f"data must be a path, arrays or an iterable of feeds, not {type(source).__name__}")
    return _open_feeds(source, entries)


def _dataset(given: Given, source: str) -> Dataset:
    return Dataset(given.samples, source, labels=given.labels, notes=given.notes, batch=given.batch)


def _open_images(folder: Path, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing) -> Dataset:
    if len(entries) > 1:
        names = ", ".join(map(str, entries))
        raise DataError(f"images can be given for one input only, and the model has: {names}; give arrays (.npz)")
    reader = ImageReader.for_input(model.proto, entries[0], preprocessing)
    found = find_images(folder)
    batch = entries[0].dims[0] if entries[0].dims else None
    return Dataset(
        ImageSamples(reader, found.paths),
        repr(str(folder)),
        names=found.names,
        labels=found.labels,
        classes=found.classes,
        notes=(str(reader), *found.notes),
        batch=batch if isinstance(batch, int) else None,
    )


def _open_feeds(source: Iterable[Feed | np.ndarray], entries: tuple[Input, ...]) -> Dataset:
    keep = iter(source) is source  # a generator may fill the same arrays again for its next feed
    parts: list[Given] = []
    count = 0
    for number, item in enumerate(source):
        feed = {"x": item} if isinstance(item, np.ndarray) else item
        if not isinstance(feed, Mapping):
            raise DataError(f"feed {number} is a {type(item).__name__}: a feed must be arrays by input name, a dict")
        if keep:
            feed = {name: np.array(array) for name, array in feed.items()}
        parts.append(from_arrays(feed, entries, f"feed {number}", is_feed=True, first=count))
        count += len(parts[-1].samples)
    if not parts:
        raise DataError("the data holds no feeds: the iterable is empty (was it an iterator that is used up?)")
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        raise DataError(f"{len(labels)} of {len(parts)} feeds have labels ('y'): give them with all or with none")
    return Dataset(
        FeedSamples([part.samples for part in parts]),
        "the data",
        labels=np.concatenate(labels) if labels else None,
        notes=parts[0].notes,
    )


def _set_labels(data: Dataset, labels: AnyLabels) -> None:
    if isinstance(labels, str | os.PathLike):
        data.labels, data.classes, notes = read_labels(Path(labels), data.names, len(data), data.classes)
        data.notes += notes
    else:
        data.labels = as_labels(labels, len(data), "labels")
