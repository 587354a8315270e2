"""Calibration and evaluation data: what the user names as ``--data``, as feeds for a model.

A source is a folder of images, an .npy or .npz file, or, from Python, arrays or an iterable of feeds. All become a
:class:`Dataset`, whose samples are read when they are needed: the images of a folder are never all in memory.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.data.images import ImageReader, find_images
from onnxsep.data.labels import as_labels, read_labels
from onnxsep.data.preprocessing import AnyPreprocessing, Preprocessing
from onnxsep.data.samples import FeedSamples, Given, ImageSamples, Samples, from_arrays
from onnxsep.errors import DataError, FeedError, OptionError
from onnxsep.model.io import Model
from onnxsep.running.inputs import Input, model_inputs, read_arrays

DEFAULT_BATCH = 16

Feed = Mapping[str, Any]  # arrays by input name
Source = str | os.PathLike[str] | Feed | np.ndarray | Iterable[Feed | np.ndarray]


class Dataset:
    """Samples for a model. It can be read any number of times, always in the same order.

    Attributes:
        source: The file or folder, or words for what was given in Python.
        names: Paths of the images relative to their folder, with "/"; None for arrays.
        labels: Class of each sample, int64 [samples], or None.
        classes: Names of the classes, where they have names: the number of a class is its place here.
        notes: What was decided for the user, or should be known: how images are read, what is not used.
        batch: The only batch size that the model takes; None where it takes any.
    """

    def __init__(
        self,
        samples: Samples,
        source: str,
        *,
        names: Sequence[str] | None = None,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        notes: Sequence[str] = (),
        batch: int | None = None,
    ) -> None:
        self._samples = samples
        self.source = source
        self.names = None if names is None else list(names)
        self.labels = labels
        self.classes = classes
        self.notes = tuple(notes)
        self.batch = batch

    def __len__(self) -> int:
        return len(self._samples)

    def fix_batch(self, size: int) -> None:
        """Feed so many samples at a time, as another model that reads the feeds takes no other number.

        Nothing changes where each sample is a feed of its own: its first axis is then no batch.

        Raises:
            DataError: the samples differ in shape.
            OptionError: the model takes another number.
        """
        keys = {self._samples.key(index) for index in range(len(self))}
        if None in keys:
            return
        if self.batch not in (None, size):
            raise OptionError(f"the model takes {self.batch} samples at a time and the teacher {size}")
        if len(keys) > 1 and size > 1:
            raise DataError(
                f"{self.source}: the teacher takes {size} samples at a time, and these differ in shape; give samples"
                " of one shape"
            )
        self.batch = size

    def batches(
        self, indices: Sequence[int] | None = None, batch: int | None = None, *, fill: bool = False
    ) -> Iterator[list[int]]:
        """Divide samples into feeds, keeping their order.

        Args:
            indices: Numbers of the samples; None: all.
            batch: At most so many in a feed; None: 16. A model with a fixed batch size gets that many instead, and
                samples that are left over at the end are not used. Samples of different shapes share no feed.
            fill: Use what is left over too, in a last feed that is filled up with samples of the feeds before it.

        Yields:
            The numbers of the samples of each feed.

        Raises:
            DataError: there are fewer samples than the model's fixed batch size.
            OptionError: the batch is less than 1.
        """
        check_batch(batch)
        chosen = range(len(self)) if indices is None else indices
        if self.batch is not None and len(chosen) < (1 if fill else self.batch):
            raise DataError(
                f"{self.source}: the model takes {self.batch} samples at a time, and there are {len(chosen)}"
            )
        size = self.batch or batch or DEFAULT_BATCH
        for key, group in itertools.groupby(chosen, key=self._samples.key):
            run = list(group)
            step = 1 if key is None else size
            for start in range(0, len(run), step):
                part = run[start : start + step]
                if fill and self.batch is not None:
                    part += itertools.islice(itertools.cycle(run), self.batch - len(part))
                if self.batch is None or len(part) == self.batch:
                    yield part

    def feed(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays for one of the :meth:`batches`, by input name, in the inputs' types.

        Raises:
            DataError: an image cannot be read.
        """
        return self._samples.read(indices)

    def feeds(self, indices: Sequence[int] | None = None, batch: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The feeds of :meth:`batches`, one after another.

        Raises:
            DataError: as :meth:`batches` and :meth:`feed`.
            OptionError: the batch is less than 1.
        """
        return map(self.feed, self.batches(indices, batch))

    def sample(self, count: int | None, seed: int = 0) -> list[int]:
        """Choose samples at random, without replacement; the same seed gives the same ones.

        Args:
            count: How many; None, or more than there are: all.
            seed: Seed of the choice, 0 or more.

        Returns:
            Their numbers, sorted.

        Raises:
            OptionError: the count is less than 1, or the seed negative.
        """
        check_sampling(count, seed)
        if count is None or count >= len(self):
            return list(range(len(self)))
        return sorted(np.random.default_rng(seed).choice(len(self), count, replace=False).tolist())

    def fingerprint(self, indices: Sequence[int] | None = None) -> str:
        """SHA-256, in hexadecimal, of what is fed: contents and labels of samples in their order, and preprocessing.

        Of an image, the file's bytes are hashed, so it need not be decoded. Names and places of files do not count.

        Args:
            indices: Numbers of the samples that are used; None: all.

        Raises:
            DataError: an image cannot be read.
        """
        hasher = hashlib.sha256()
        for index in range(len(self)) if indices is None else indices:
            hasher.update(self._samples.digest(index))
            hasher.update(b"" if self.labels is None else str(self.labels[index]).encode() + b"\n")
        return hasher.hexdigest()


def open_data(
    source: Source,
    model: Model,
    *,
    preprocessing: AnyPreprocessing | None = None,
    labels: str | os.PathLike[str] | npt.ArrayLike | None = None,
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
            " integers into the array 'y' of an .npz file, or give a CSV file of names and classes (--labels)"
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


def _set_labels(data: Dataset, labels: str | os.PathLike[str] | npt.ArrayLike) -> None:
    if isinstance(labels, str | os.PathLike):
        data.labels, data.classes, notes = read_labels(Path(labels), data.names, len(data), data.classes)
        data.notes += notes
    else:
        data.labels = as_labels(labels, len(data), "labels")


def check_sampling(count: int | None, seed: int) -> None:
    """Refuse a choice of samples that cannot be made, which needs no data to see.

    Raises:
        OptionError: the count is less than 1, or the seed negative.
    """
    if count is not None and count < 1:
        raise OptionError(f"the number of samples must be 1 or more, not {count}")
    if seed < 0:
        raise OptionError(f"the seed must be 0 or more, not {seed}")


def check_batch(batch: int | None) -> None:
    """Refuse a number of samples in a feed that makes no sense.

    Raises:
        OptionError: it is less than 1.
    """
    if batch is not None and batch < 1:
        raise OptionError(f"the batch must be 1 or more, not {batch}")
