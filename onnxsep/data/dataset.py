"""Calibration and evaluation data as feeds for a model.

Samples are read when they are needed: the images of a folder are never all in memory.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from onnxsep.data.comparing import ImageJudge, Sampled
from onnxsep.data.images import ImageReader, Picture
from onnxsep.data.pixel_arrays import judge_arrays
from onnxsep.data.preprocessing import Decided, Preprocessing
from onnxsep.data.preprocessing_report import PreprocessingReport
from onnxsep.data.samples import ImageSamples, Samples
from onnxsep.data.settling import settle
from onnxsep.errors import DataError, OptionError
from onnxsep.model.io import Model

DEFAULT_BATCH = 16
_NAMED = 10  # images that cannot be read and are named


class Dataset:
    """Samples for a model. It can be read any number of times, always in the same order.

    Attributes:
        source: The file or folder, or words for what was given in Python.
        names: Paths of the images relative to their folder, with "/"; None for arrays.
        labels: Class of each sample, int64 [samples], or None.
        classes: Names of the classes, where they have names: the number of a class is its place here.
        notes: What was decided for the user, or should be known: how images are read, what is not used.
        batch: The only batch size that the model takes; None where it takes any.
        kept: Numbers of the images that can be read, among those that were found; None: all of them.
        found: How many were found, where some cannot be read.
        preprocessing: What was found out about the preprocessing of images; None where nothing was looked for.
        reserved: Numbers of samples that are kept for another use, so that ``sample`` does not choose them: what the
            steps of a run are measured on.
    """

    preprocessing: PreprocessingReport | None = None
    kept: list[int] | None = None
    found: int = 0

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
        self.reserved: tuple[int, ...] = ()

    def __repr__(self) -> str:
        labels = "without labels" if self.labels is None else "with labels"
        classes = "" if self.classes is None else f" of {len(self.classes)} classes"
        return f"<Dataset {self.source}: {len(self):,} samples {labels}{classes}>"

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def decided(self) -> Decided | None:
        """How images are read, for other parts of the same run; None where the samples are no images."""
        return Decided.on(self._samples.reader.preprocessing) if isinstance(self._samples, ImageSamples) else None

    def skip_bad(self) -> None:
        """Leave out images that cannot be read; nothing for other samples. Each image is decoded for that.

        Raises:
            DataError: none of them can be read.
        """
        if not isinstance(self._samples, ImageSamples) or self.names is None:
            return
        reader, paths, names = self._samples.reader, self._samples.paths, self.names
        reasons = [reader.why_not(path) for path in paths]
        kept = [number for number, reason in enumerate(reasons) if not reason]
        left = [name for name, reason in zip(names, reasons, strict=True) if reason]
        if not left:
            return
        if not kept:
            raise DataError(f"none of the {len(paths)} images of {self.source} can be read: {reasons[0]}")
        self.kept, self.found = kept, len(paths)
        self._samples = ImageSamples(reader, tuple(paths[number] for number in kept))
        self.names = [names[number] for number in kept]
        self.labels = None if self.labels is None else self.labels[kept]
        shown = ", ".join(map(repr, left[:_NAMED])) + (", ..." if len(left) > _NAMED else "")
        self.notes += (f"warning: {len(left)} of {len(paths)} images cannot be read and are left out: {shown}",)

    def settle(self, model: Model, judge: ImageJudge) -> None:
        """Find out how images are to be read (``onnxsep.data.settling``); of arrays, whether they look wrong.

        Args:
            model: Whose input they are read for.
            judge: The model that says which preprocessing is right.

        Raises:
            DataError: as :func:`onnxsep.data.settling.settle`.
        """
        if not isinstance(self._samples, ImageSamples):
            self.preprocessing = judge_arrays(self._samples, self.labels, judge)
            self.notes += self.preprocessing.notes if self.preprocessing else ()
            return
        reader, paths = self._samples.reader, self._samples.paths
        made_up = any(isinstance(path, Picture) and path.made_up for path in paths)
        samples = Sampled(lambda number: reader.pixels(paths[number]), len(paths), self.labels, made_up)
        found = settle(reader.preprocessing, judge, samples)
        keys = reader.preprocessing.keys() if found is None else found.preprocessing
        said = Preprocessing.from_values(keys)
        made = ImageReader.for_input(model.proto, reader.entry, said)
        self._samples, self.preprocessing = ImageSamples(made, paths), found
        at = self.notes.index(str(reader))
        self.notes = (*self.notes[:at], str(made), *(found.notes if found else ()), *self.notes[at + 1 :])

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
        """Choose samples at random, without replacement and without the reserved; the same seed gives the same ones.

        Args:
            count: How many; None, or more than there are: all.
            seed: Seed of the choice, 0 or more.

        Returns:
            Their numbers, sorted.

        Raises:
            OptionError: the count is less than 1, or the seed negative.
        """
        check_sampling(count, seed)
        reserved = set(self.reserved)
        usable = [index for index in range(len(self)) if index not in reserved]
        if count is None or count >= len(usable):
            return usable
        places = np.random.default_rng(seed).choice(len(usable), count, replace=False)
        return [usable[place] for place in sorted(places.tolist())]

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
