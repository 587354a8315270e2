"""Opening what the user names as ``--data``.

A source is a folder of images, an .npy or .npz file, the word ``synthetic``, or, from Python, arrays, an iterable of
feeds (``batches``) or a dataset with named columns (``rows``).
"""

import os
from collections.abc import Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from onnxsep.data.batches import Numbered, as_array, is_read_once, is_tensor, open_batches
from onnxsep.data.comparing import ImageJudge
from onnxsep.data.dataset import Dataset
from onnxsep.data.image_folder import find_images
from onnxsep.data.images import ImageReader
from onnxsep.data.labels import AnyLabels, as_labels, read_labels
from onnxsep.data.preprocessing import AnyPreprocessing, Decided, Preprocessing
from onnxsep.data.rows import SOURCE, Table, has_rows, read_rows
from onnxsep.data.samples import Given, ImageSamples, Samples, from_arrays
from onnxsep.data.synthetic import SYNTHETIC, synthetic_count, synthetic_images
from onnxsep.errors import DataError, FeedError, spelled
from onnxsep.model.io import Model
from onnxsep.running.inputs import Input, model_inputs, read_arrays

Feed = Mapping[str, Any]  # arrays by input name


Source = str | os.PathLike[str] | Feed | np.ndarray | Iterable[Any] | Numbered | Dataset


def open_data(
    source: Source,
    model: Model,
    *,
    preprocessing: AnyPreprocessing | None = None,
    labels: AnyLabels | None = None,
    need_labels: bool = False,
    judge: ImageJudge | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Open data for a model and check what can be checked without decoding images.

    Args:
        source: A folder of images, flat or with one folder for each class; an .npz file with arrays named after the
            model's inputs, or ``x`` for the only one, and labels as ``y``; an .npy file for the only input;
            ``synthetic`` or ``synthetic:N`` (``onnxsep.data.synthetic``), where no path has this name. In Python also
            such arrays or tensors by name (or the one), and

            - an iterable of feeds: arrays by name, with the model's own shapes; b samples, if the first dimension of
              all inputs is free and that of all arrays is b; otherwise one sample;
            - batches of a torch DataLoader: x, or (x, y) where y are the classes, or a dict of tensors;
            - a dataset of Hugging Face's ``datasets``: its column of images, or columns named after the inputs, and its
              column of classes.

            Iterators and loaders are read once and kept. Arrays are taken as they are: floats finite, and nothing is
            cast. A dataset that was opened already is copied.
        model: The model that will be fed.
        preprocessing: How images become values; not for arrays. Where it says nothing about the values, or None, they
            are looked for (``onnxsep.data.settling``): ``Dataset.preprocessing`` says what was found.
        labels: A CSV file of names and classes (:func:`onnxsep.data.labels.read_labels`), or the classes of the samples
            as integers; instead of those that the source has.
        need_labels: Refuse data without labels.
        skip_bad: Leave out images that cannot be read; the notes count and name them.
        judge: The model that says which preprocessing is right, and how it is run; None: ``model``.

    Raises:
        DataError: the data cannot be read or does not fit the model, or labels do not fit the data.
    """
    try:
        entries = tuple(model_inputs(model.proto))
    except FeedError as error:
        raise DataError(f"no data can be given for this model: {error}") from error
    if not entries:
        raise DataError("no data can be given for this model: it has no inputs")
    if isinstance(source, Dataset):
        data = copy(source)  # labels and the size of batches may be set for one of its users
    else:
        data = _open(source, model, entries, Preprocessing.of(preprocessing), labelled=labels is not None)
        if skip_bad:
            data.skip_bad()
    if labels is not None:
        _set_labels(data, labels)
    if need_labels and data.labels is None:
        raise DataError(
            f"{data.source} has no labels, which are needed here: put the images into one folder for each class, or"
            " integers into the array 'y' of an .npz file, or give a CSV file of names and classes"
            f" ({spelled('labels')})"
        )
    if not isinstance(source, Dataset) and not isinstance(preprocessing, Decided):
        data.settle(model, judge or ImageJudge(model))
    if data.batch is not None and data.batch > 1:
        next(data.batches())  # refuses too few samples
        if left := len(data) % data.batch:
            data.notes += (
                f"the model takes {data.batch} samples at a time: the last {left} of {len(data)} are left where a batch"
                " cannot be filled up",
            )
    return data


def _open(
    source: Source, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None, *, labelled: bool
) -> Dataset:
    if (count := synthetic_count(source)) is not None:
        return _open_synthetic(count, model, entries, preprocessing)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise DataError(
                f"the data {str(path)!r} does not exist; check the path (images that are made up: {SYNTHETIC})"
            )
        if path.is_dir():
            return _open_images(path, model, entries, preprocessing)
        if path.suffix.lower() not in (".npy", ".npz"):
            raise DataError(
                f"the data {str(path)!r} is neither a folder of images nor an .npy or .npz file; to use single images,"
                " put them into a folder"
            )
    if has_rows(source):
        return _open_rows(read_rows(source, entries, labelled=labelled), model, entries, preprocessing)
    _refuse_preprocessing(preprocessing)
    if isinstance(source, str | os.PathLike):
        try:
            arrays: Mapping[str, Any] = read_arrays(path, memory_map=path.suffix.lower() == ".npy")
        except FeedError as error:
            raise DataError(str(error)) from error
        return _dataset(from_arrays(arrays, entries, repr(str(path))), repr(str(path)))
    if isinstance(source, np.ndarray) or is_tensor(source):
        source = {"x": as_array(source, "the data")}
    if isinstance(source, Mapping):
        arrays = {name: as_array(one, f"the data, {name!r}") for name, one in source.items()}
        return _dataset(from_arrays(arrays, entries, "the data"), "the data")
    if not (is_read_once(source) or isinstance(source, Iterable)):
        raise DataError(
            f"{spelled('data')} must be a path, arrays, an iterable of feeds or a dataset, not {type(source).__name__}"
        )
    return open_batches(source, entries)


def _dataset(given: Given, source: str) -> Dataset:
    return Dataset(given.samples, source, labels=given.labels, notes=given.notes, batch=given.batch)


def _reader(model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None) -> ImageReader:
    if len(entries) > 1:
        names = ", ".join(map(str, entries))
        raise DataError(f"images can be given for one input only, and the model has: {names}; give arrays (.npz)")
    return ImageReader.for_input(model.proto, entries[0], _plain(preprocessing))


def _open_synthetic(
    count: int, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None
) -> Dataset:
    reader = _reader(model, entries, preprocessing)
    return Dataset(
        ImageSamples(reader, synthetic_images(count, reader.size)),
        f"{count} synthetic images",
        notes=(str(reader), f"the data are {count} synthetic images (dead leaves): real ones are better"),
        batch=_fixed(entries[0]),
    )


def _open_images(
    folder: Path, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None
) -> Dataset:
    reader = _reader(model, entries, preprocessing)
    found = find_images(folder)
    return Dataset(
        ImageSamples(reader, found.paths),
        repr(str(folder)),
        names=found.names,
        labels=found.labels,
        classes=found.classes,
        notes=(str(reader), *found.notes),
        batch=_fixed(entries[0]),
    )


def _open_rows(table: Table, model: Model, entries: tuple[Input, ...], preprocessing: Preprocessing | None) -> Dataset:
    if not table.pictures:
        _refuse_preprocessing(preprocessing)
        found = from_arrays(table.arrays, entries, SOURCE)
        samples: Samples = found.samples
        batch, notes = found.batch, (*found.notes, *table.notes)
    else:
        reader = ImageReader.for_input(model.proto, entries[0], _plain(preprocessing))
        samples, batch, notes = ImageSamples(reader, table.pictures), _fixed(entries[0]), (str(reader), *table.notes)
    return Dataset(samples, SOURCE, labels=table.labels, classes=table.classes, notes=notes, batch=batch)


def _plain(preprocessing: Preprocessing | None) -> Preprocessing:
    """The same, and not Decided: readers are compared and hashed."""
    return Preprocessing() if preprocessing is None else Preprocessing.from_values(preprocessing.keys())


def _fixed(entry: Input) -> int | None:
    """The only batch size that an input takes; None where it takes any."""
    batch = entry.dims[0] if entry.dims else None
    return batch if isinstance(batch, int) else None


def _refuse_preprocessing(preprocessing: Preprocessing | None) -> None:
    if preprocessing not in (None, Preprocessing()) and not isinstance(preprocessing, Decided):
        raise DataError(
            "scale, mean, std and the other settings of preprocessing are for images; arrays are taken as they are:"
            " leave the settings out, and give arrays that hold what the model takes"
        )


def _set_labels(data: Dataset, labels: AnyLabels) -> None:
    if isinstance(labels, str | os.PathLike):
        data.labels, data.classes, notes = read_labels(Path(labels), data.names, len(data), data.classes)
        data.notes += notes
    else:
        given = np.asarray(labels)
        if data.kept is not None and given.ndim and len(given) == data.found:
            given = given[data.kept]
        data.labels = as_labels(given, len(data), "labels")
